"""A tiny corpus as the stages before training leave it, and trainings of it, alone or in a process of their own."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmcore.artifacts import runner
from llmcore.artifacts.keys import file_digest
from llmcore.artifacts.recipe import From, Recipe, Step, resolve
from llmcore.artifacts.stage import Stage
from llmcore.artifacts.store import Store
from llmcore.training import resume, stage
from llmcore.training.params import TrainParams
from llmcore.training.resume import CheckpointParams
from tests.local_files import LocalFiles, LocalRun

WINDOW, VOCABULARY, END = 32, 64, 0
TINY = TrainParams(
    layers=2,
    width=32,
    heads=4,
    kv_heads=2,
    ffn_width=48,
    steps=40,
    batch=8,
    micro_batch=4,
    warm_up=4,
    threads=1,
    compile=False,
    precision="fp32",
    validation_every=10,
    validation_windows=6,
    checkpoint_every=7,
)


def write_corpus(root: Path, seed: int = 0) -> list[np.ndarray[Any, Any]]:
    """Token shards, a first-fit plan and a tokenizer as the stages before leave them; returns the train documents."""
    source = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for split, documents in (("train", 60), ("validation", 8)):
        rows.clear()
        made, window, slot, at = [], 0, 0, 0
        shards: dict[str, list[np.ndarray[Any, Any]]] = {"g000-00-a-00000.parquet": [], "g000-01-b-00000.parquet": []}
        for number in range(documents):
            # each next token follows from the last by a fixed rule, so there is something to learn
            length = int(source.integers(3, 120))
            first = int(source.integers(6, VOCABULARY))
            tokens = np.array([6 + (first + 7 * i) % (VOCABULARY - 6) for i in range(length)] + [END], dtype=np.uint16)
            shard = sorted(shards)[number % 2]
            start = 0
            while start < len(tokens):
                piece = min(len(tokens) - start, WINDOW - at)
                rows.append(
                    {
                        "window": window,
                        "slot": slot,
                        "id": f"{number:032x}",
                        "shard": shard,
                        "row": len(shards[shard]),
                        "start": start,
                        "length": piece,
                    }
                )
                start, at, slot = start + piece, at + piece, slot + 1
                if at == WINDOW:
                    window, slot, at = window + 1, 0, 0
            shards[shard].append(tokens)
            made.append(tokens)
        for shard, held in shards.items():
            table = pa.table(
                {
                    "id": [f"{i:032x}" for i in range(len(held))],
                    "tokens": pa.array([list(map(int, tokens)) for tokens in held], pa.list_(pa.uint16())),
                    "n_tokens": [len(tokens) for tokens in held],
                }
            )
            (root / "tokens" / split).mkdir(parents=True, exist_ok=True)
            pq.write_table(table, root / "tokens" / split / shard)
        (root / "plan/plan").mkdir(parents=True, exist_ok=True)
        schema = {"slot": pa.int32(), "id": pa.string(), "shard": pa.string()}
        pq.write_table(
            pa.table({name: pa.array([row[name] for row in rows], schema.get(name, pa.int64())) for name in rows[0]}),
            root / f"plan/plan/{split}.parquet",
        )
        if split == "train":
            train_documents = made
    (root / "plan/plan.json").write_text(json.dumps({"window": WINDOW}))
    (root / "tokenizer").mkdir(exist_ok=True)
    special = [{"id": END, "content": "<|endoftext|>"}, {"id": 1, "content": "<|pad|>"}]
    vocabulary = {"model": {"vocab": {f"t{i}": i for i in range(6, VOCABULARY)}}, "added_tokens": special}
    (root / "tokenizer/tokenizer.json").write_text(json.dumps(vocabulary))
    return train_documents


@dataclass
class WatchedRun(LocalRun):
    """Notes what the stage reports, and raises once `stop_at` steps are reported."""

    stop_at: float = math.inf
    kept: int = 0
    said: str = ""

    def progress(self, done: float, total: float, text: str = "") -> None:
        self.said = text
        if done >= self.stop_at:
            raise InterruptedError("cancelled")

    def keep_scratch(self) -> None:
        self.kept += 1


def inputs_of(corpus: Path) -> dict[str, LocalFiles]:
    return {role: LocalFiles(corpus / role) for role in ("tokens", "plan", "tokenizer")}


def train(inputs: dict[str, LocalFiles], params: TrainParams, run: LocalRun) -> dict[str, Any]:
    """The stage's function with its own trainer."""
    found: dict[str, Any] = stage.STAGE.load()(inputs, params, run)
    return found


def model_digest(run: LocalRun) -> str:
    return file_digest(run.out / "model.safetensors")


def log_of(run: LocalRun) -> list[dict[str, Any]]:
    path = run.scratch / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


PARENT = """
import sys
from pathlib import Path
from dataclasses import replace
from tests.training.corpus import TINY, inputs_of, train
from tests.local_files import LocalRun
params = replace(TINY, steps=int(sys.argv[3]), compile=sys.argv[4] == "1")
train(inputs_of(Path(sys.argv[1])), params, LocalRun(Path(sys.argv[2])))
"""


def start_parent(corpus: Path, run: LocalRun, steps: int, compiled: bool) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PARENT, str(corpus), str(run.root), str(steps), str(int(compiled))]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2])


def trainer_pid(run: LocalRun) -> int:
    return int(json.loads((run.scratch / "trainer.pid").read_text())["pid"])


# the same through a store


@dataclass(frozen=True)
class PutParams:
    """The folder whose files become an artifact."""

    folder: str


def put(inputs: dict[str, LocalFiles], params: PutParams, run: LocalRun) -> dict[str, Any]:
    shutil.copytree(params.folder, run.out, dirs_exist_ok=True)
    return {}


PUT = Stage("put", version=1, params=PutParams, function="tests.training.corpus:put")


def recipe_in(store: Store, corpus: Path, params: TrainParams, resumed: CheckpointParams | None = None) -> Recipe:
    """The recipe of a training over artifacts in a store, which are made first; resumed: goes on from a checkpoint."""
    done = {}
    for role in ("tokens", "plan", "tokenizer"):
        done[role] = runner.build(store, resolve(store, Step(role, PUT, PutParams(str(corpus / role))), {}))
    if resumed is not None:
        done["resume"] = runner.build(store, resolve(store, Step("checkpoint", resume.STAGE, resumed), {}))
    return resolve(store, Step("train", stage.STAGE, params, {role: From((role,)) for role in done}), done)
