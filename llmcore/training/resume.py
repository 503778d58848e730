"""Another training's checkpoint as an artifact, from which a training goes on: its bytes enter that one's key.

A training whose spread changed (micro-batch, processes, threads) has another key, and so does not see the checkpoints
of the one before. Only who names that one goes on from it, and lineage then shows both.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from llmcore.artifacts.keys import file_digest
from llmcore.artifacts.stage import Files, Run, Stage
from llmcore.errors import LlmcoreError, UsageError
from llmcore.training.marker import FOLDER, Marker

if TYPE_CHECKING:  # so that training needs none of the store's dependencies
    from llmcore.artifacts.store import Store

SCRATCH = re.compile(rf"runs/([0-9a-f]{{64}})/scratch/{FOLDER}/(step-\d+(?:\.json|/[^/]+))")
ARTIFACTS = "artifacts/checkpoint/"


@dataclass(frozen=True)
class CheckpointParams:
    """Which checkpoint. key: of the training that saved it; step: after which; digest: over its marker and bytes."""

    key: str
    step: int
    digest: str


def find(store: Store, key: str) -> CheckpointParams:
    """The newest whole checkpoint of a training that did not end. key: of the training, or its first 6 or more digits.

    Where its scratch is gone, the newest that was ever taken from it. Raises UsageError if there is none, or the digits
    fit several trainings.
    """
    if not re.fullmatch(r"[0-9a-f]{6,64}", key):
        raise UsageError(f"--resume {key}: not a key; give 6 or more of its hexadecimal digits")
    found = _in_scratch(store, key) or _taken(store, key)
    keys = {params.key for params in found}
    if len(keys) > 1:
        raise UsageError(f"--resume {key}: fits {len(keys)} trainings in {store.uri}; give more digits")
    if not found:
        raise UsageError(f"--resume {key}: no checkpoint of such a training in {store.uri}; it ended, or saved none")
    return max(found, key=lambda params: params.step)


def take(inputs: Mapping[str, Files], params: CheckpointParams, run: Run) -> dict[str, Any]:
    """Copy the checkpoint out of the other training's scratch: checkpoint.json (its marker) and the files it names.

    Raises LlmcoreError where it is gone, or its bytes are not those that it was found with.
    """
    name = f"step-{params.step:08d}"
    where = f"checkpoint {name} of training {params.key[:12]}"
    _fetch(run, params.key, f"{name}.json", "checkpoint.json", where)
    try:
        marker = Marker.read((run.out / "checkpoint.json").read_bytes())
    except ValueError as error:
        raise LlmcoreError(f"{where} is damaged: {error}; name another with --resume") from error
    if marker.digest != params.digest:
        raise LlmcoreError(f"{where} was saved again meanwhile; run again")
    for file, digest in marker.files.items():
        _fetch(run, params.key, f"{name}/{file}", file, where)
        if file_digest(run.out / file) != digest:
            raise LlmcoreError(
                f"{where} is damaged: {file} is not what was saved; delete runs/{params.key}/scratch/{FOLDER}/"
                f"{name}.json from the store and run again, to go on from the one before"
            )
    return {"step": marker.step, "trained": marker.recipe}


def _fetch(run: Run, key: str, file: str, name: str, where: str) -> None:
    path = run.scratch_of(key, f"{FOLDER}/{file}")
    if path is None:
        raise LlmcoreError(f"{where} is no longer there ({file}); run again to take the one after it")
    shutil.copyfile(path, run.out / name)


def _in_scratch(store: Store, key: str) -> list[CheckpointParams]:
    """The checkpoints in the scratch of trainings whose key begins so, as far as sizes tell whole."""
    whole_key = len(key) == 64
    sizes: dict[str, dict[str, int]] = {}
    for entry in store.backend.entries(f"runs/{key}/scratch/{FOLDER}/" if whole_key else "runs/"):
        match = SCRATCH.fullmatch(entry.name)
        if match and match.group(1).startswith(key):
            sizes.setdefault(match.group(1), {})[match.group(2)] = entry.bytes
    found = []
    for training, files in sizes.items():
        for name in sorted((name for name in files if name.endswith(".json") and "/" not in name), reverse=True):
            marker = _marker(store, f"runs/{training}/scratch/{FOLDER}/{name}")
            stem = PurePosixPath(name).stem
            if marker is not None and all(files.get(f"{stem}/{file}") == size for file, size in marker.sizes.items()):
                found.append(CheckpointParams(training, marker.step, marker.digest))
                break
    return found


def _taken(store: Store, key: str) -> list[CheckpointParams]:
    """The checkpoints that are artifacts already: somebody went on from them before."""
    records = (store.record(entry.name) for entry in store.backend.entries(ARTIFACTS))
    params = (CheckpointParams(**record["identity"]["params"]) for record in records if record is not None)
    return [found for found in params if found.key.startswith(key)]


def _marker(store: Store, name: str) -> Marker | None:
    try:
        return Marker.read(store.backend.read(name) or b"")
    except ValueError:
        return None


STAGE = Stage(
    "checkpoint",
    version=1,
    role="checkpoint",
    params=CheckpointParams,
    function="llmcore.training.resume:take",
)
