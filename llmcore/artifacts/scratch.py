"""The scratch folder of a global recipe under way: training checkpoints and the like, which outlive a crash."""

from __future__ import annotations

import shutil
from pathlib import Path

from llmcore.artifacts.backends import FileBackend
from llmcore.artifacts.store import Store


def open_scratch(store: Store, key: str, folder: Path) -> Path:
    """The recipe's own scratch, which outlives a crash."""
    if isinstance(store.backend, FileBackend):
        scratch = store.backend.root / "runs" / key / "scratch"
        scratch.mkdir(parents=True, exist_ok=True)
        return scratch
    scratch = folder / "scratch"
    scratch.mkdir()
    prefix = f"runs/{key}/scratch/"
    for entry in store.backend.entries(prefix):
        path = store.backend.local(entry.name, fresh=True)
        target = scratch / entry.name.removeprefix(prefix)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path is not None:
            shutil.move(path, target)
    return scratch


def save_scratch(store: Store, key: str, scratch: Path) -> None:
    """Make the store's copy equal the local one; on a file store they are the same folder."""
    if isinstance(store.backend, FileBackend):
        return
    prefix = f"runs/{key}/scratch/"
    present = {entry.name.removeprefix(prefix): entry for entry in store.backend.entries(prefix)}
    local = {str(path.relative_to(scratch)): path for path in sorted(scratch.rglob("*")) if path.is_file()}
    # the trainer's marker of a checkpoint must never be in the store before its tensors
    for name in sorted(local, key=lambda name: (local[name].stat().st_mtime_ns, name)):
        if (
            name not in present
            or present[name].bytes != local[name].stat().st_size
            or not name.endswith(".safetensors")
        ):
            store.backend.upload(prefix + name, local[name])
    for name in present.keys() - local.keys():
        store.backend.delete(prefix + name)


def drop_scratch(store: Store, key: str) -> None:
    """Remove the store's copy: the artifact is committed."""
    if isinstance(store.backend, FileBackend):
        shutil.rmtree(store.backend.root / "runs" / key / "scratch", ignore_errors=True)
        return
    for entry in list(store.backend.entries(f"runs/{key}/scratch/")):
        store.backend.delete(entry.name)


def scratch_files(store: Store, key: str) -> dict[str, str]:
    """The files in the store's copy of a recipe's scratch: name -> name of the object that holds it."""
    prefix = f"runs/{key}/scratch/"
    index = None if isinstance(store.backend, FileBackend) else store.record(f"{prefix}index.json")
    if index is not None:
        return {name: f"{prefix}files/{digest}" for name, digest in index.items()}
    return {entry.name.removeprefix(prefix): entry.name for entry in store.backend.entries(prefix)}
