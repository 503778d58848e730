"""Bits per byte of the quickstart's model on frozen raw text that it never read, by seed, beside another checkout's.

    python -m benchmarks.recipe [--against CHECKOUT] [--seeds 1,2,3] [--set train.layers=3 …] [--until evaluate]
    python -m benchmarks.recipe --freeze STORE

Each run goes in a store of its own up to the training. What is scored is `held_out.jsonl.xz` beside this file: the
documents that the quickstart held out when the file was made (`--freeze`), as text before cleaning, so that a change of
extraction, cleaning or filters changes the model and not the measure. Their ids come from the raw bytes, so they are
held out still; a run that trained on one of them is refused. The checkouts take turns, seed by seed. Prints one JSON
line: the mean over the seeds, each seed's value, seconds of each stage.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import yaml

from llmcore.artifacts.export import gather
from llmcore.artifacts.index import last_of
from llmcore.artifacts.manifest import Manifest
from llmcore.artifacts.recipe import StoreFiles
from llmcore.artifacts.store import Store, open_store
from llmcore.evaluation.bits_per_byte import document_nats
from llmcore.model.huggingface import load
from llmcore.planning.config import quickstart_text
from llmcore.tokens.tokenizer import end_of_text, load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
HELD_OUT = Path(__file__).with_name("held_out.jsonl.xz")
DIGEST = "6702153eda2ec7f7bc9dbd5680e47067da4815957efa3f1d1aed17a4099cb750"  # SHA-256 of the file's bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="another checkout of this repository")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="here, not there")
    parser.add_argument("--until", default="train", help="stage to stop after")
    parser.add_argument("--freeze", metavar="STORE", help="write the held-out set anew from a store's last quickstart")
    given = parser.parse_args()
    if given.freeze:
        freeze(open_store(given.freeze))
        return
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in map(int, given.seeds.split(",")):
        sides = {"here": (ROOT, given.set), **({"against": (given.against, [])} if given.against else {})}
        for side, (checkout, changes) in sides.items():
            found.setdefault(side, []).append(measured(checkout.resolve(), changes, seed, given.until))
            print(side, seed, found[side][-1], file=sys.stderr, flush=True)
    means = {side: round(statistics.mean(run["bits_per_byte"] for run in runs), 4) for side, runs in found.items()}
    gain = {"fewer_bits": round(1 - means["here"] / means["against"], 4)} if given.against else {}
    print(json.dumps({"benchmark": "recipe", "held_out": DIGEST[:12], "bits_per_byte": means, **gain, "runs": found}))


def measured(checkout: Path, changes: list[str], seed: int, until: str) -> dict[str, Any]:
    """One run of the quickstart in a checkout: bits per byte of the held-out text, in all and by source; seconds."""
    with TemporaryDirectory() as temporary:
        settings = yaml.safe_load(quickstart_text())
        settings["store"] = f"file://{temporary}/store"
        settings["train"]["seed"] = seed
        for change in changes:
            place, _, value = change.partition("=")
            section, _, name = place.partition(".")
            settings.setdefault(section, {})[name] = yaml.safe_load(value)
        path = Path(temporary) / "quickstart.yaml"
        path.write_text(yaml.safe_dump(settings))
        environment = {**os.environ, "PYTHONPATH": str(checkout)}
        began = time.perf_counter()
        command = [sys.executable, "-m", "llmcore.cli", "run", str(path), "--until", until]
        subprocess.run(command, env=environment, cwd=checkout, stdout=subprocess.DEVNULL, check=True)
        seconds = time.perf_counter() - began
        store = open_store(settings["store"])
        return {**scored(store), "seconds": round(seconds, 1), "stages": stage_seconds(store)}


def scored(store: Store) -> dict[str, Any]:
    """Bits per byte of the held-out text by the store's last model."""
    data = HELD_OUT.read_bytes()
    if hashlib.sha256(data).hexdigest() != DIGEST:
        raise SystemExit(f"{HELD_OUT}: not the frozen set; check it out again")
    held_out = pl.read_ndjson(lzma.decompress(data))
    splits = last(store, "split")
    for _, documents in StoreFiles(store, splits.outputs).tables("kept/"):
        trained = documents.filter(pl.col("split") == "train").join(held_out, on="id", how="semi")
        if trained.height:
            raise SystemExit(f"{trained.height} documents of the held-out set were trained on; freeze another one")
    with TemporaryDirectory() as temporary:
        gather(StoreFiles(store, last(store, "train").outputs), ("config.json", "model.safetensors"), Path(temporary))
        model = load(Path(temporary)).eval()
    tokenizer = load_tokenizer(StoreFiles(store, last(store, "tokenizer").outputs))
    end = end_of_text(tokenizer)
    pieces = [np.array([*encoding.ids, end]) for encoding in tokenizer.encode_batch(held_out["text"].to_list())]
    sizes = held_out["text"].str.len_bytes()
    bits = pl.Series(document_nats(model, pieces, end)) / np.log(2)
    by = pl.DataFrame({"source": held_out["source"], "bits": bits, "bytes": sizes}).group_by("source").sum()
    sources = {source: round(amount / size, 4) for source, amount, size in sorted(by.iter_rows())}
    return {"bits_per_byte": round(float(bits.sum()) / int(sizes.sum()), 4), "sources": sources}


def stage_seconds(store: Store) -> dict[str, float]:
    from llmcore.artifacts.manifest import manifests

    found: dict[str, float] = {}
    for manifest in manifests(store):
        found[manifest.stage] = round(found.get(manifest.stage, 0.0) + float(manifest.run.get("seconds", 0.0)), 1)
    return found


def last(store: Store, stage: str) -> Manifest:
    found = last_of(store, stage, stage)
    if found is None:
        raise SystemExit(f"no {stage} in {store.uri}")
    return found


def freeze(store: Store) -> None:
    ids = pl.concat(
        [
            documents.filter(pl.col("split") == "test").select("id")
            for _, documents in StoreFiles(store, last(store, "split").outputs).tables("kept/")
        ]
    )
    texts = [table for _, table in StoreFiles(store, last(store, "extract").outputs).tables("kept/")]
    found = pl.concat(texts).join(ids, on="id", how="semi").select("id", "source", "text").sort("id")
    HELD_OUT.write_bytes(lzma.compress(found.write_ndjson().encode(), preset=9 | lzma.PRESET_EXTREME))
    print(found.height, found["text"].str.len_bytes().sum(), hashlib.sha256(HELD_OUT.read_bytes()).hexdigest())


if __name__ == "__main__":
    main()
