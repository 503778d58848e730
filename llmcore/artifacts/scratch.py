"""The scratch folder of a global recipe under way: training checkpoints and the like, which outlive a crash.

On a folder it lies in the store. Elsewhere the store has a copy, which is always whole:

    runs/<key>/scratch/files/<sha256>   the files, named by what they hold
    runs/<key>/scratch/index.json       name -> sha256; replaced last, so that it never names what is not there

A copy is taken of hard links, which hold on to what the trainer meanwhile rotates away. What is still being written
(names that start with a dot) stays behind, and so does a checkpoint's marker without all the files it names.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path, PurePosixPath

from llmcore.artifacts.backends import FileBackend
from llmcore.artifacts.disk import disk_errors
from llmcore.artifacts.keys import file_digest
from llmcore.artifacts.store import Store
from llmcore.errors import LlmcoreError

LOOKS = 5  # at a folder in which checkpoints are being rotated
MAY_GROW_BYTES = 1 << 20  # logs and the like are copied, because a link would go on growing


def open_scratch(store: Store, key: str, folder: Path) -> Path:
    """The recipe's own scratch, which outlives a crash; a file of the copy that is damaged is left out.

    Raises LlmcoreError if the copy holds a name that leads out of the folder.
    """
    if isinstance(store.backend, FileBackend):
        scratch = store.backend.root / "runs" / key / "scratch"
        with disk_errors("write to", f"the store {store.backend.root}", "set `store`"):
            scratch.mkdir(parents=True, exist_ok=True)
        return scratch
    scratch = folder / "scratch"
    scratch.mkdir()
    index = store.record(_index(key)) or {}
    for name in index:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise LlmcoreError(f"{_index(key)} in {store.uri} holds {name!r}, which leads out of scratch: delete it")
    store.each(sorted(index.items()), lambda item: _fetch(store, key, scratch / item[0], item[1]))
    return scratch


def save_scratch(store: Store, key: str, scratch: Path) -> None:
    """Make the store's copy equal the local one; on a file store they are the same folder."""
    if isinstance(store.backend, FileBackend):
        return
    with (
        disk_errors("copy", str(scratch), "set TMPDIR"),
        tempfile.TemporaryDirectory(prefix=".copy-", dir=scratch.parent) as held,
    ):
        files = _hold(scratch, Path(held))
        digests = {name: file_digest(path) for name, path in files.items()}
        store.each(sorted(files), lambda name: _send(store, _file(key, digests[name]), files[name]))
    store.backend.replace(_index(key), json.dumps(digests, indent=1, sort_keys=True).encode())
    wanted = {_index(key), *(_file(key, digest) for digest in digests.values())}
    for entry in list(store.backend.entries(_prefix(key))):
        if entry.name not in wanted:
            store.backend.delete(entry.name)


def drop_scratch(store: Store, key: str) -> None:
    """Remove the store's copy: the artifact is committed."""
    if isinstance(store.backend, FileBackend):
        shutil.rmtree(store.backend.root / "runs" / key / "scratch", ignore_errors=True)
        return
    store.backend.delete(_index(key))
    for entry in list(store.backend.entries(_prefix(key))):
        store.backend.delete(entry.name)


def scratch_files(store: Store, key: str) -> dict[str, str]:
    """The files in the store's copy of a recipe's scratch: name -> name of the object that holds it."""
    index = None if isinstance(store.backend, FileBackend) else store.record(_index(key))
    if index is not None:
        return {name: _file(key, digest) for name, digest in index.items()}
    prefix = _prefix(key)
    return {entry.name.removeprefix(prefix): entry.name for entry in store.backend.entries(prefix)}


def _prefix(key: str) -> str:
    return f"runs/{key}/scratch/"


def _index(key: str) -> str:
    return f"{_prefix(key)}index.json"


def _file(key: str, digest: str) -> str:
    return f"{_prefix(key)}files/{digest}"


def _fetch(store: Store, key: str, path: Path, digest: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not store.backend.download(_file(key, digest), path) or file_digest(path) != digest:
        path.unlink(missing_ok=True)


def _send(store: Store, name: str, path: Path) -> None:
    if not store.backend.holds(name, path):
        store.backend.upload(name, path)


def _hold(scratch: Path, held: Path) -> dict[str, Path]:
    """Links to all files that are whole, by name; what vanishes meanwhile is left out."""
    for look in range(LOOKS):
        files, broken = _hold_once(scratch, held / str(look))
        if not broken:
            break
    return files


def _hold_once(scratch: Path, held: Path) -> tuple[dict[str, Path], bool]:
    """The links, and whether a checkpoint was left out because it was rotated away under us."""
    names = [name for name in _names(scratch) if not any(part.startswith(".") for part in name.parts)]
    # a marker comes into being after the files it names and goes before them: who links it first can tell their loss
    markers = {name for name in names if name.suffix == ".json"}
    found = [name for name in sorted(names, key=lambda name: name not in markers) if _link(scratch, held, name)]
    files = {str(name): held / name for name in found}
    whole = [name for name in found if name not in markers or _named_by(held, name) <= files.keys()]
    return {str(name): held / name for name in whole}, not markers.issubset(whole)


def _names(scratch: Path) -> list[PurePosixPath]:
    # os.walk, unlike rglob, does not mind folders that vanish under it
    return [
        PurePosixPath(Path(parent, file).relative_to(scratch))
        for parent, _, files in os.walk(scratch)
        for file in files
    ]


def _link(scratch: Path, held: Path, name: PurePosixPath) -> bool:
    target = held / name
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if (scratch / name).stat().st_size > MAY_GROW_BYTES:
            os.link(scratch / name, target)
        else:
            shutil.copyfile(scratch / name, target)
    except FileNotFoundError:
        return False
    return True


def _named_by(held: Path, marker: PurePosixPath) -> set[str]:
    """The files of the checkpoint that a marker is for: those under "files", in the folder beside it of its stem."""
    try:
        content = json.loads((held / marker).read_bytes())
    except ValueError:
        return set()
    files = content.get("files") if isinstance(content, dict) else None
    return {str(marker.with_suffix("") / name) for name in files} if isinstance(files, dict) else set()
