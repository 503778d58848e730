"""What a shard costs beside its own work, from a hundred to a hundred thousand of them; and looking at so many.

    python -m benchmarks.shards                    100, 1,000, 10,000 and 100,000 shards in a folder
    python -m benchmarks.shards --most 1000        up to so many
    python -m benchmarks.shards --whole-recipe     beside it the way not taken: the whole recipe pickled for a shard

Prints one JSON line: processor milliseconds a shard of a stage that does nothing: of listing, computing (hash, store,
memo), travelling to a worker, gathering; what reading and writing the tables costs alone is told apart. Then of finding
all of them done again, and the seconds of `plan` for a chain of per-shard stages over so many shards.
"""

from __future__ import annotations

import argparse
import json
import pickle
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from llmcore.artifacts import jobs, runner
from llmcore.artifacts.manifest import ArtifactRef
from llmcore.artifacts.params import Params
from llmcore.artifacts.recipe import From, Step, resolve
from llmcore.artifacts.stage import Files, Run, ShardResult, Stage
from llmcore.artifacts.store import Store, open_store
from llmcore.planning.chain import Chain
from llmcore.planning.plan import plan_chain

SIZES = (100, 1_000, 10_000, 100_000)
STAGES = 12  # per-shard stages in a chain from ingest to tokenise


class ShardsParams(Params):
    shards: int


class NothingParams(Params):
    place: int = 0


def shards(inputs: Mapping[str, Files], params: ShardsParams, run: Run) -> dict[str, Any]:
    (run.out / "kept").mkdir()
    for number in range(params.shards):
        table = pl.DataFrame({"id": [number]})
        table.write_parquet(run.out / f"kept/g000-some-{number:05d}.parquet")
    return {}


def nothing(documents: pl.DataFrame, params: NothingParams) -> ShardResult:
    return ShardResult({"kept": documents, "dropped": documents.head(0)})


SHARDS = Stage("shards", 1, ShardsParams, "benchmarks.shards:shards")
NOTHING = Stage("nothing", 1, NothingParams, "benchmarks.shards:nothing", kind="per_shard")


def processor_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    done = work()
    return time.process_time() - began, done


def measure(store: Store, size: int, whole_recipe: bool) -> dict[str, float]:
    first = Step("shards", SHARDS, ShardsParams(shards=size))
    done: dict[str, ArtifactRef] = {"shards": runner.build(store, resolve(store, first, {}))}
    second = Step("nothing", NOTHING, NothingParams(), {"documents": From(("shards",))})
    recipe = resolve(store, second, done)

    listing, todo = processor_seconds(lambda: jobs.jobs_to_do(store, recipe))
    computed, memos = processor_seconds(lambda: jobs.run_chunk(store, jobs.chunk_of(recipe, todo)))
    travel, _ = processor_seconds(lambda: pickle.loads(pickle.dumps(jobs.chunk_of(recipe, todo))))
    gathered, done["nothing"] = processor_seconds(lambda: runner.commit_shards(store, recipe, memos))
    again, left = processor_seconds(lambda: jobs.jobs_to_do(store, recipe))
    if left:
        raise SystemExit(f"{len(left)} of {size} shards have no memo although all were computed")
    tables, _ = processor_seconds(lambda: _tables_alone(store, todo))
    figures = {
        "tables_ms": 1e3 * tables / size,
        "list_ms": 1e3 * listing / size,
        "compute_ms": 1e3 * computed / size,
        "travel_ms": 1e3 * travel / size,
        "gather_ms": 1e3 * gathered / size,
        "overhead_ms": 1e3 * (listing + computed - tables + travel + gathered) / size,
        "found_again_ms": 1e3 * again / size,
        "plan_seconds": plan_seconds(store, first, done["shards"], done["nothing"]),
    }
    if whole_recipe:
        once, _ = processor_seconds(lambda: pickle.loads(pickle.dumps(recipe)))
        figures["whole_recipe_ms"] = 1e3 * once
    return {name: round(value, 3) for name, value in figures.items()}


def _tables_alone(store: Store, todo: list[jobs.ShardJob]) -> None:
    """Reading and writing the same tables with nothing around it: what no way of running shards can save."""
    with tempfile.TemporaryDirectory() as folder:
        for job in todo:
            table = pl.read_parquet(store.fetch_blob(job.blob, ".parquet"))
            for part in (table, table.head(0)):
                part.write_parquet(Path(folder) / "part.parquet", compression="zstd", compression_level=3)


def plan_seconds(store: Store, first: Step, *known: ArtifactRef) -> float:
    """Wall time of `plan` over a chain in which STAGES per-shard stages are cached."""
    chain = Chain(steps={"shards": first})
    done = {"shards": known[0]}
    for place in range(STAGES):
        before = f"nothing {place - 1}" if place else "shards"
        step = Step(f"nothing {place}", NOTHING, NothingParams(place=place), {"documents": From((before,))})
        recipe = resolve(store, step, done)
        chain.steps[step.name] = step
        memos = _memos_as(recipe, store, known[1])
        done[step.name] = runner.commit_shards(store, recipe, memos)
    began = time.monotonic()
    rows = list(plan_chain(open_store(store.uri), chain))
    if any(row.state != "cached" for row in rows):
        raise SystemExit("plan: a step that was made is not found")
    return time.monotonic() - began


def _memos_as(recipe: Any, store: Store, like: ArtifactRef) -> dict[str, jobs.Memo]:
    """Memos of a stage that passes its shards on, without the work."""
    shards = recipe.files["documents"]
    return {
        job.memo: {
            "stem": Path(job.shard).stem,
            "rows_read": 1,
            "outputs": {
                job.shard: {"blob": shards[job.shard].blob, "bytes": shards[job.shard].bytes, "rows": 1},
            },
            "metrics": {},
        }
        for job in jobs.shard_jobs(recipe)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=SIZES[-1], help="shards at most")
    parser.add_argument("--whole-recipe", action="store_true", help="also time pickling the whole recipe once")
    asked = parser.parse_args()
    figures = {}
    for size in (size for size in SIZES if size <= asked.most):
        with tempfile.TemporaryDirectory(prefix="shards-") as folder:
            figures[str(size)] = measure(open_store(f"file://{folder}/store"), size, asked.whole_recipe)
    print(json.dumps({"benchmark": "shards", "figures": figures}))


if __name__ == "__main__":
    main()
