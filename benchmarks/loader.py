"""Tokens a second of fetching batches, and the memory it takes, beside another checkout's loader over the same files.

    python benchmarks/loader.py [--documents N] [--batch N] [--window N] [--steps N] [--against CHECKOUT]

Documents have log-normal lengths, as web pages do (median 500 tokens), and lie in shards of 10,000; each side runs in a
process of its own, reads the same steps of the same plan, and must fetch the same bytes. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SHARD = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--against", type=Path, help="another checkout of this repository")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        print(json.dumps(fetch(given.here, given.window, given.batch, given.steps)))
        return
    with TemporaryDirectory() as folder:
        tokens = write(Path(folder), given.documents, given.window)
        ours = run(ROOT, Path(folder), given)
        result = {"benchmark": "loader", "documents": given.documents, "tokens": tokens, **ours}
        if given.against:
            theirs = run(given.against, Path(folder), given)
            result |= {f"against_{name}": value for name, value in theirs.items()}
            result["same_batches"] = ours["digest"] == theirs["digest"]
    print(json.dumps(result))


def write(folder: Path, documents: int, window: int) -> int:
    """Token shards and their plan; returns the number of tokens."""
    import polars as pl

    from llmcore.tokens.pack import plan_windows

    rng = np.random.default_rng(0)
    parts = []
    for number, start in enumerate(range(0, documents, SHARD)):
        lengths = rng.lognormal(np.log(500), 1.1, min(SHARD, documents - start)).astype(np.int64).clip(2, 100_000)
        flat = pl.Series(rng.integers(0, 1 << 16, lengths.sum(), dtype=np.uint16))
        rows = np.repeat(np.arange(len(lengths)), lengths)
        table = pl.DataFrame({"row": rows, "tokens": flat}).group_by("row", maintain_order=True).agg("tokens")
        name = f"g000-x-{number:05d}.parquet"
        table.write_parquet(folder / name)
        facts = {"shard": name, "row": np.arange(len(lengths)), "n_tokens": lengths}
        parts.append(pl.DataFrame(facts).with_columns(id=pl.format("{}-{}", "shard", "row")))
    plan = plan_windows(pl.concat(parts), window)
    plan.write_parquet(folder / "plan.parquet", compression="zstd", row_group_size=1 << 16)
    return int(plan["length"].sum())


def run(checkout: Path, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """The same fetching in a process that imports llmcore from a checkout."""
    sizes = [f"--{name}={getattr(given, name)}" for name in ("window", "batch", "steps")]
    command = [sys.executable, __file__, "--here", str(folder), *sizes]
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def fetch(folder: Path, window: int, batch: int, steps: int) -> dict[str, Any]:
    from llmcore.training.loader import Windows, windows_of_step

    before = peak()
    began = time.perf_counter()
    windows = Windows(folder / "plan.parquet", {path.name: path for path in folder.glob("g*.parquet")}, window)
    opened = time.perf_counter() - began
    state, seconds = hashlib.sha256(), 0.0
    for step in range(steps):
        numbers = windows_of_step(step, len(windows), batch, "benchmark", 1)
        began = time.perf_counter()
        fetched = windows[numbers]
        seconds += time.perf_counter() - began
        for array in (fetched.tokens, fetched.targets, fetched.document_ids):
            state.update(array.tobytes())
    return {
        "tokens_per_second": round(steps * batch * window / seconds),
        "open_seconds": round(opened, 2),
        "peak_megabytes": round((peak() - before) / 1e6),
        "digest": state.hexdigest()[:16],
    }


def peak() -> int:
    """Most bytes that this process ever held; getrusage would count what its parent held before it."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found.group(1)) * 1024 if found else 0


if __name__ == "__main__":
    main()
