"""`plan` of a dataset of many shards, in a folder and on an S3 server that is far away.

    python -m benchmarks.plan [--shards 100000] [--milliseconds 50]

A chain of STAGES per-shard stages over so many shards, all of them done; the shards' blobs themselves are left out, for
`plan` asks for none. Prints one JSON line: seconds and requests of a plan by a process that knows nothing yet, in a
folder and through a proxy that makes each request take so long; `read_every_listing_seconds` is the way not taken:
reading all files of every artifact for the keys, as manifests that list them would have it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from llmcore.artifacts import jobs, runner
from llmcore.artifacts.manifest import ArtifactRef, Output, manifest_of
from llmcore.artifacts.params import Params
from llmcore.artifacts.recipe import From, Step, resolve
from llmcore.artifacts.s3 import S3Backend
from llmcore.artifacts.stage import Stage
from llmcore.artifacts.store import Store, open_store
from llmcore.planning.chain import Chain
from llmcore.planning.plan import plan_chain
from tests import s3_server
from tests.delaying_proxy import delaying_proxy

STAGES = 14  # per-shard stages from ingest to tokenise


class NothingParams(Params):
    place: int = 0


# never run: only what was made of them is looked at
SOURCE = Stage("source", 1, NothingParams, "llmcore.sources.collect:collect")
NOTHING = Stage("nothing", 1, NothingParams, "llmcore.text.clean:clean", kind="per_shard")


def lay(store: Store, shards: int) -> Chain:
    """The chain, with the artifacts of all its steps committed."""
    first = Step("source", SOURCE, NothingParams())
    outputs = {f"kept/g000-some-{number:05d}.parquet": Output(f"{number:064x}", 1000, 10) for number in range(shards)}
    done: dict[str, ArtifactRef] = {"source": runner.commit(store, resolve(store, first, {}), outputs, {}, {})}
    chain = Chain(steps={"source": first})
    for place in range(STAGES):
        before = f"nothing {place - 1}" if place else "source"
        step = Step(f"nothing {place}", NOTHING, NothingParams(place=place), {"documents": From((before,))})
        recipe = resolve(store, step, done)
        done[step.name] = runner.commit_shards(store, recipe, {job.memo: memo(job) for job in jobs.shard_jobs(recipe)})
        chain.steps[step.name] = step
    return chain


def memo(job: jobs.ShardJob) -> jobs.Memo:
    """Of a shard that was passed on as it was, with an empty table of what was dropped."""
    name = Path(job.shard).name
    outputs = {job.shard: {"blob": job.blob, "bytes": 1000, "rows": 10}}
    outputs[f"dropped/{name}"] = {"blob": "0" * 64, "bytes": 100, "rows": 0}
    return {"stem": Path(name).stem, "rows_read": 10, "outputs": outputs, "metrics": {}}


def planned(uri: str, chain: Chain) -> dict[str, Any]:
    open_store.cache_clear()
    store = open_store(uri)
    with tempfile.TemporaryDirectory(prefix="plan-") as cache:
        os.environ["LLMCORE_CACHE"] = cache
        began = time.monotonic()
        rows = list(plan_chain(store, chain))
        seconds = time.monotonic() - began
    if any(row.state != "cached" for row in rows):
        raise SystemExit(f"plan does not find what was made: {rows}")
    asked = sum(store.backend.requests.values()) if isinstance(store.backend, S3Backend) else None
    return {"seconds": round(seconds, 3), **({"requests": asked} if asked is not None else {})}


def read_everything(uri: str, chain: Chain) -> float:
    store = open_store(uri)
    began = time.monotonic()
    done: dict[str, ArtifactRef] = {}
    for step in chain.steps.values():
        found = runner.find(store, resolve(store, step, done))
        if found is None:
            raise SystemExit(f"{step.name} is gone")
        done[step.name] = found
        len(manifest_of(store, found).outputs)
    return round(time.monotonic() - began, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--milliseconds", type=float, default=50.0, help="that a request takes longer")
    asked = parser.parse_args()
    figures: dict[str, Any] = {"benchmark": "plan", "shards": asked.shards, "stages": STAGES + 1}
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        uri = f"file://{folder}/store"
        chain = lay(open_store(uri), asked.shards)
        figures["folder"] = planned(uri, chain) | {"read_every_listing_seconds": read_everything(uri, chain)}
        with s3_server.moto(Path(folder)) as settings, s3_server.in_environment(settings):
            bucket = s3_server.make_bucket("plan")
            chain = lay(open_store(f"{bucket}/store"), asked.shards)
            port = int(settings["AWS_ENDPOINT_URL"].rsplit(":", 1)[1])
            with delaying_proxy(port, asked.milliseconds / 1000) as far:
                os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{far}"
                figures["s3"] = planned(f"{bucket}/store", chain) | {"milliseconds": asked.milliseconds}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
