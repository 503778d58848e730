"""An artifact, or some files of one, as ordinary files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from llmcore.artifacts.disk import ask_for_room, disk_errors
from llmcore.artifacts.manifest import Manifest
from llmcore.artifacts.stage import Files
from llmcore.artifacts.store import TRANSFERS, Store, suffix_of
from llmcore.errors import LlmcoreError, UsageError


def export_files(store: Store, manifest: Manifest, folder: Path, beside: Mapping[str, str] | None = None) -> None:
    """Copy every output, verified, to `folder` under its own name; the folder appears whole or not at all.

    beside: name -> text of further files to write, which are no outputs.
    Raises UsageError if the folder exists and holds anything, or cannot be written.
    """
    with disk_errors("write", str(folder), "choose another folder"):
        target = folder.expanduser().resolve()
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UsageError(f"{folder}: exists already; name a new or empty folder")
        ask_for_room(target.parent, sum(output.bytes for output in manifest.outputs.values()), str(folder))
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as aside:
            made = Path(aside) / target.name
            made.mkdir()
            _copy(store, manifest, made)
            for name, text in (beside or {}).items():
                (made / name).write_text(text, encoding="utf-8")
            if target.exists():
                target.rmdir()
            made.rename(target)


def gather(files: Files, names: tuple[str, ...], folder: Path) -> None:
    """Lay those files of an artifact that exist side by side in a folder, as loaders want them."""
    folder.mkdir(parents=True, exist_ok=True)
    present = set(files.names())
    for name in names:
        if name in present:
            shutil.copyfile(files.path(name), folder / name)


def _copy(store: Store, manifest: Manifest, folder: Path) -> None:
    outputs = list(manifest.outputs.items())
    for name, _ in outputs:
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise LlmcoreError(f"{manifest.step}: output name {name!r} leads out of the folder; not exported")
    # so many at a time, because a local cache of a remote store need not hold them all
    for start in range(0, len(outputs), TRANSFERS):
        some = outputs[start : start + TRANSFERS]
        paths = store.each(some, lambda item: store.fetch_blob(item[1].blob, suffix_of(item[0]), item[0]))
        for (name, _), path in zip(some, paths, strict=True):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)
