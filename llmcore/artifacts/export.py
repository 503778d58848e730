"""An artifact as ordinary files."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from llmcore.artifacts.manifest import Manifest
from llmcore.artifacts.store import Store, suffix_of
from llmcore.errors import LlmcoreError, UsageError


def export_files(store: Store, manifest: Manifest, folder: Path) -> None:
    """Copy every output, verified, to `folder` under its own name; the folder appears whole or not at all.

    Raises UsageError if the folder exists and holds anything.
    """
    target = folder.expanduser().resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{folder}: exists already; name a new or empty folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as aside:
            made = Path(aside) / target.name
            made.mkdir()
            for name, output in manifest.outputs.items():
                path = made / name
                if not path.resolve().is_relative_to(made.resolve()):
                    raise LlmcoreError(f"{manifest.step}: output name {name!r} leads out of the folder; not exported")
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(store.fetch_blob(output.blob, suffix_of(name), name), path)
            if target.exists():
                target.rmdir()
            made.rename(target)
    except OSError as error:
        raise LlmcoreError(f"{folder}: cannot write: {error.strerror}; free space or choose another") from error
