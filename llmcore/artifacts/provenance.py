"""What a manifest records beside its identity: code digest, environment, run."""

from __future__ import annotations

import glob
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from llmcore.artifacts.digests import data_digest
from llmcore.artifacts.keys import key_of

# Regular expressions, because parsing all modules takes a fifth of a second, which `plan` does not have. What they see
# too much (a name quoted in a comment) costs nothing; that they see all that a parser sees is tested.
IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(?P<dots>\.*)(?P<origin>[\w.]*)[ \t]+import[ \t]+(?P<names>\([^)]*\)|[^\n]+)"
    r"|import[ \t]+(?P<modules>[^\n]+))",
    re.MULTILINE,
)
# a string that names a module, a function in one or a file: how processes are started and modules loaded by name
QUOTED = re.compile(r"""(["'])([\w./-]+)(?::\w+)?\1""")


def code_digest(*modules: str) -> str:
    """SHA-256 over the sources of modules and of all they lead to, directly or not.

    That is what they import of `llmcore` (and of their own packages), what strings in them name as a module
    (`-m llmcore.training.trainer`, "module:function"), the packages around them, and the files that lie beside a module
    and are named by a string in it (templates, tables). Only code is read; nothing is imported.
    """
    ours = {"llmcore", *(module.partition(".")[0] for module in modules)}
    seen: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = None if name in seen else _source(name)
        if path is None:
            continue
        state = path.stat()
        code = _read(name, path, state.st_mtime_ns, state.st_size)
        seen[name] = code.digest
        seen |= {f"{name}/{file.name}": data_digest(file) for file in code.files}
        waiting += [mention for mention in code.mentions if mention.partition(".")[0] in ours]
    return key_of(seen)


@dataclass(frozen=True)
class _Code:
    """A module's source: its digest, the names in it that may be modules, the files beside it that it names."""

    digest: str
    mentions: frozenset[str]
    files: tuple[Path, ...]


@lru_cache(maxsize=1024)
def _read(name: str, path: Path, modified: int, size: int) -> _Code:
    """modified, size: so that what is edited is read again."""
    source = path.read_bytes()
    text = source.decode("utf-8", "replace")
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    mentions = {package}
    for found in IMPORT.finditer(text):
        if found["modules"] is not None:
            mentions |= set(re.findall(r"[\w.]+", found["modules"]))
            continue
        around = package.split(".")[: package.count(".") + 2 - len(found["dots"])] if found["dots"] else []
        origin = ".".join([*around, *([found["origin"]] if found["origin"] else [])])
        mentions |= {origin, *(f"{origin}.{one}" for one in re.findall(r"\w+", found["names"]))}
    quoted = {found[2] for found in QUOTED.finditer(text)}
    mentions |= {one for one in quoted if "." in one and "/" not in one}
    files = {path.parent / one.split("/", 1)[0] for one in quoted if one.split("/", 1)[0] in _data_beside(path.parent)}
    around_each = {mention.rsplit(".", cut)[0] for mention in mentions for cut in range(mention.count(".") + 1)}
    return _Code(hashlib.sha256(source).hexdigest(), frozenset(around_each - {name, ""}), tuple(sorted(files)))


@lru_cache(maxsize=4096)
def _source(name: str) -> Path | None:
    """Where a module's source lies. Only the package at its top is looked up: a look-up below it would import it."""
    top, *rest = name.split(".")
    found = _top(top)
    if found is None or found.suffix == ".py":
        return found if not rest else None
    path = found.joinpath(*rest)
    candidates = [path / "__init__.py", *([path.with_name(f"{path.name}.py")] if rest else [])]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


@lru_cache(maxsize=256)
def _top(name: str) -> Path | None:
    """The folder of a top-level package, or the file of a module that lies in none."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None


@lru_cache(maxsize=256)
def _data_beside(folder: Path) -> frozenset[str]:
    """The files and folders in a package's folder that are no code."""
    return frozenset(
        entry.name
        for entry in os.scandir(folder)
        if not entry.name.endswith((".py", ".pyc"))
        and entry.name != "__pycache__"
        and not (Path(entry) / "__init__.py").exists()
    )


def recorded_packages() -> tuple[str, ...]:
    """What llmcore depends on, as its own package says, extras included but not what only its tests need."""
    required = importlib.metadata.requires("llmcore") or ()
    needed = (line for line in required if not re.search(r"extra\s*==\s*['\"]test['\"]", line))
    return tuple(sorted({re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0].lower() for line in needed}))


@lru_cache(maxsize=1)
def environment() -> dict[str, Any]:
    """Git commit, package versions and hardware of this process."""
    packages = {}
    for name in recorded_packages():
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "llmcore": importlib.metadata.version("llmcore"),
        "git": _git_commit(),
        "python": platform.python_version(),
        "packages": packages,
        "machine": platform.machine(),
        "processor": _first_line("/proc/cpuinfo", "model name"),
        "cores": os.cpu_count(),
        "gpus": [_first_line(path, "Model") for path in sorted(glob.glob("/proc/driver/nvidia/gpus/*/information"))],
    }


def _first_line(path: str, name: str) -> str | None:
    """What a file of `name: value` lines says first under a name; None where there is no such file or name."""
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:
            return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)
    except OSError:
        return None


def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


MOST_FOLDERS = 16  # that a run's record names


def folders_of_paths(paths: Mapping[str, str]) -> list[str]:
    """The folders below which files lay under their names (name -> path, or s3://…), each with its last slash."""
    return sorted({place[: -len(name)] for name, place in paths.items() if place.endswith(f"/{name}")})[:MOST_FOLDERS]


def run_record(started: datetime, flow_run: str | None, outside: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What is true of this run alone. outside: of its step; `trace` finds files by the folders of its `paths`."""
    folders = folders_of_paths((outside or {}).get("paths", {}))
    return {
        **({"folders": folders} if folders else {}),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - started).total_seconds(), 3),
        "host": socket.gethostname(),
        "flow_run": flow_run,
    }
