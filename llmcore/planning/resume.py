"""Finding the checkpoint of another training, to go on from it: `--resume KEY`."""

from __future__ import annotations

import re

from llmcore.artifacts.scratch import scratch_files
from llmcore.artifacts.store import Store
from llmcore.errors import UsageError
from llmcore.training import resume
from llmcore.training.marker import FOLDER, Marker
from llmcore.training.resume import CheckpointParams

KEY_DIGITS = 64


def find(store: Store, key: str) -> CheckpointParams:
    """The newest whole checkpoint of a training that did not end. key: of the training, or its first digits.

    Where its scratch is gone, the newest that was ever taken from it. Raises UsageError if there is none, or the digits
    fit several trainings.
    """
    if not re.fullmatch(rf"[0-9a-f]{{1,{KEY_DIGITS}}}", key):
        raise UsageError(f"--resume {key}: not a key; give its hexadecimal digits, or the first of them")
    found = [params for one in _trainings(store, key) if (params := _in_scratch(store, one)) is not None]
    found = found or _taken(store, key)
    if len({params.key for params in found}) > 1:
        raise UsageError(f"--resume {key}: fits several trainings in {store.uri}; give more digits")
    if not found:
        raise UsageError(f"--resume {key}: no checkpoint of such a training in {store.uri}; it ended, or saved none")
    return max(found, key=lambda params: params.step)


def _trainings(store: Store, key: str) -> list[str]:
    if len(key) == KEY_DIGITS:
        return [key]
    runs = (entry.name.split("/") for entry in store.backend.entries("runs/"))
    return sorted({parts[1] for parts in runs if parts[2:3] == ["scratch"] and parts[1].startswith(key)})


def _in_scratch(store: Store, key: str) -> CheckpointParams | None:
    """The newest checkpoint in a training's scratch that is whole, as far as sizes tell; the stage reads its bytes."""
    files = scratch_files(store, key)
    for name in sorted((name for name in files if re.fullmatch(rf"{FOLDER}/step-\d+\.json", name)), reverse=True):
        try:
            marker = Marker.read(store.backend.read(files[name]) or b"")
        except ValueError:
            continue
        stored = {file: files.get(f"{FOLDER}/{marker.name}/{file}") for file in marker.files}
        entries = {file: store.backend.entry(place) for file, place in stored.items() if place is not None}
        sizes = {file: entry.bytes for file, entry in entries.items() if entry is not None}
        if sizes == dict(marker.sizes):
            return CheckpointParams(key, marker.step, marker.digest)
    return None


def _taken(store: Store, key: str) -> list[CheckpointParams]:
    """The checkpoints that are artifacts already: somebody went on from them before."""
    entries = store.backend.entries(f"artifacts/{resume.STAGE.name}/")
    records = (store.record(entry.name) for entry in entries)
    params = (CheckpointParams(**record["identity"]["params"]) for record in records if record is not None)
    return [found for found in params if found.key.startswith(key)]
