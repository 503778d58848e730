"""What a manifest records beside its identity: code digest, environment, run."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import socket
import subprocess
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

RECORDED_PACKAGES = (
    "numpy",
    "polars",
    "pyarrow",
    "torch",
    "tokenizers",
    "safetensors",
    "fasttext-community",
    "presidio-analyzer",
    "scrapy",
    "resiliparse",
    "trafilatura",
    "ftfy",
    "numba",
    "gguf",
    "prefect",
)


@lru_cache(maxsize=64)
def code_digest(module: str) -> str:
    """SHA-256 over the sources of a module and of every `llmcore` module it imports, directly or not."""
    seen: dict[str, bytes] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.origin or not spec.origin.endswith(".py"):
            continue
        source = Path(spec.origin).read_bytes()
        seen[name] = source
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names if alias.name.startswith("llmcore")]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llmcore"):
                waiting.append(str(node.module))
                names = (alias.name for alias in node.names)
                waiting += [f"{node.module}.{name}" for name in names if _is_module(node.module, name)]
    total = hashlib.sha256()
    for name in sorted(seen):
        total.update(name.encode() + b"\0" + hashlib.sha256(seen[name]).digest())
    return total.hexdigest()


def _is_module(package: str | None, name: str) -> bool:
    try:
        return importlib.util.find_spec(f"{package}.{name}") is not None
    except (ModuleNotFoundError, ValueError):
        return False


@lru_cache(maxsize=1)
def environment() -> dict[str, Any]:
    """Git commit, package versions and hardware of this process."""
    packages = {}
    for name in RECORDED_PACKAGES:
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
        "cores": os.cpu_count(),
    }


def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def run_record(started: datetime, flow_run: str | None) -> dict[str, Any]:
    return {
        "started": started.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - started).total_seconds(), 3),
        "host": socket.gethostname(),
        "flow_run": flow_run,
    }
