"""What this machine can do."""

from __future__ import annotations

import importlib.util
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from llmcore.artifacts.store import open_store
from llmcore.errors import LlmcoreError


@dataclass(frozen=True)
class Finding:
    """`state` is "ok", "absent" (works without) or "broken"."""

    what: str
    state: str
    detail: str

    def plain(self) -> dict[str, str]:
        return asdict(self)


def examine(store_uri: str) -> Iterator[Finding]:
    """Look at the processor, GPU, compiler, store, Prefect server and optional extras."""
    yield Finding("cores", "ok", str(os.cpu_count()))
    yield _gpu()
    compiler = shutil.which("g++") or shutil.which("c++")
    yield Finding("C++ compiler", "ok" if compiler else "absent", compiler or "train.compile needs one; set it false")
    yield _store(store_uri)
    yield _server()
    for extra, module in (("kquants", "llama_cpp"), ("ray", "prefect_ray")):
        present = importlib.util.find_spec(module) is not None
        yield Finding(
            f"extra {extra}", "ok" if present else "absent", module if present else f"pip install 'llmcore[{extra}]'"
        )


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("GPU", "absent", "training runs on the processor")
    names = ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
    return Finding("GPU", "ok", names)


def _store(uri: str) -> Finding:
    try:
        store = open_store(uri)
        store.backend.now()
    except LlmcoreError as error:
        return Finding("store", "broken", str(error))
    try:
        store.backend.probe()
    except LlmcoreError as error:
        return Finding("store", "broken", f"{error} (what is in it can be read)")
    return Finding("store", "ok", store.uri)


def _server() -> Finding:
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        return Finding("Prefect server", "absent", "PREFECT_API_URL is not set: a temporary server is used")
    if not url.startswith(("http://", "https://")):
        return Finding("Prefect server", "broken", f"PREFECT_API_URL {url!r} is no http address")
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=5) as answer:
            return Finding("Prefect server", "ok" if answer.status == 200 else "broken", url)
    except (OSError, urllib.error.URLError) as error:
        return Finding("Prefect server", "broken", f"{url}: {error}; start it with `prefect server start`")
