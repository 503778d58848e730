"""Small real stages for the tests of store and runner; a module of its own because worker processes import it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from llmcore.artifacts.params import Params
from llmcore.artifacts.stage import Files, Run, ShardResult, Stage


class NumbersParams(Params):
    shards: int = 3
    rows: int = 10
    salt: int = 0


class KeepParams(Params):
    divisor: int = 2
    lose: bool = False
    noise: bool = False


class SumParams(Params):
    seconds: float = 0.0
    log: str = ""


def numbers(inputs: Mapping[str, Files], params: NumbersParams, run: Run) -> dict[str, Any]:
    (run.out / "kept").mkdir()
    for shard in range(params.shards):
        values = [shard * params.rows + row + params.salt for row in range(params.rows)]
        pl.DataFrame({"id": values}).write_parquet(run.out / f"kept/g000-toy-{shard:05d}.parquet")
    return {"numbers": params.shards * params.rows}


def keep(documents: pl.DataFrame, params: KeepParams) -> ShardResult:
    good = pl.col("id") % params.divisor == 0
    dropped = documents.filter(~good)
    if params.noise:
        return ShardResult(
            {"kept": documents.with_columns(noise=pl.lit(os.urandom(8).hex())), "dropped": documents.head(0)}
        )
    return ShardResult(
        {"kept": documents.filter(good), "dropped": dropped.head(0) if params.lose else dropped}, {"shards_seen": 1}
    )


def total(inputs: Mapping[str, Files], params: SumParams, run: Run) -> dict[str, Any]:
    if params.log:
        with Path(run.outside["log"]).open("a") as file:
            file.write(f"{os.getpid()}\n")
    ends = time.monotonic() + params.seconds
    while time.monotonic() < ends:
        run.progress(0, 1)
        time.sleep(0.02)
    (run.out / "total.txt").write_text(str(inputs["documents"].table("kept/")["id"].sum()))
    return {"done": 1}


NUMBERS = Stage("numbers", 1, NumbersParams, "tests.toy_stages:numbers")
KEEP = Stage("keep", 1, KeepParams, "tests.toy_stages:keep", kind="per_shard")
TOTAL = Stage("total", 1, SumParams, "tests.toy_stages:total")
