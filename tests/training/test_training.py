"""Training is a function of its recipe: killed, stopped or shared out, it ends with the bits of a run left alone."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from llmcore.artifacts.keys import file_digest
from llmcore.errors import LlmcoreError, UsageError
from llmcore.training.loader import IGNORED, Windows, order_of_epoch, plan_digest, steps_of_windows, windows_of_step
from llmcore.training.params import TrainParams
from llmcore.training.stage import STAGE, train
from tests.local_files import LocalFiles, LocalRun
from tests.prefect_server import wait_for

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


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    write_corpus(root)
    return root


def inputs_of(corpus: Path) -> dict[str, LocalFiles]:
    return {role: LocalFiles(corpus / role) for role in ("tokens", "plan", "tokenizer")}


def windows_of(corpus: Path) -> Windows:
    shards = {path.name: path for path in (corpus / "tokens/train").iterdir()}
    return Windows(corpus / "plan/plan/train.parquet", shards, WINDOW, END)


@pytest.fixture(scope="module")
def uninterrupted(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> LocalRun:
    run = LocalRun(tmp_path_factory.mktemp("alone"))
    metrics = train(inputs_of(corpus), TINY, run)
    assert metrics["steps"] == TINY.steps
    return run


def model_digest(run: LocalRun) -> str:
    return file_digest(run.out / "model.safetensors")


# loader


def test_every_planned_token_is_predicted_once_from_the_one_before_it(tmp_path: Path) -> None:
    documents = write_corpus(tmp_path)
    windows = windows_of(tmp_path)
    batch = windows[np.arange(len(windows))]
    there = batch.targets != IGNORED
    predicted = sorted(zip(batch.tokens[there].tolist(), batch.targets[there].tolist(), strict=True))
    expected = sorted((int(a), int(b)) for d in documents for a, b in zip([END, *d[:-1]], d, strict=True))
    assert predicted == expected
    assert windows.tokens == sum(map(len, documents)) == windows.filled.sum()


@settings(max_examples=50, deadline=None)
@given(windows=st.integers(1, 50), batch=st.integers(1, 20), epochs=st.integers(1, 4), seed=st.integers(0, 9))
def test_each_epoch_reads_each_window_once_in_its_own_order(windows: int, batch: int, epochs: int, seed: int) -> None:
    steps = -(-windows * epochs // batch)
    read = np.concatenate([windows_of_step(i, windows, batch, "d", seed) for i in range(steps)])
    for epoch in range(epochs):
        part = read[epoch * windows : (epoch + 1) * windows]
        assert sorted(part) == list(range(windows))
        assert part.tolist() == order_of_epoch(windows, "d", seed, epoch).tolist()


def test_the_order_hangs_on_plan_seed_and_epoch() -> None:
    orders = [order_of_epoch(40, *key).tolist() for key in (("a", 1, 0), ("b", 1, 0), ("a", 2, 0), ("a", 1, 1))]
    assert len({tuple(order) for order in orders}) == 4


def test_the_steps_that_read_a_window_are_a_look_up(corpus: Path) -> None:
    plan = corpus / "plan/plan/train.parquet"
    count = len(windows_of(corpus))
    params = {"batch": 8, "steps": 0, "epochs": 2.5, "seed": 3}
    total = TrainParams(batch=8, micro_batch=8, epochs=2.5).total_steps(count)
    read = [windows_of_step(step, count, 8, plan_digest(plan), 3) for step in range(total)]
    expected = [number + 1 for number, windows in enumerate(read) if {0, 5} & set(windows.tolist())]
    assert steps_of_windows(params, LocalFiles(corpus / "plan"), [0, 5]) == expected


def test_a_plan_that_does_not_fit_its_tokens_is_an_error(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(LlmcoreError, match=r"train.parquet: names shard .*run the pack stage again"):
        Windows(corpus / "plan/plan/train.parquet", {}, WINDOW)
    (tmp_path / "plan.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(LlmcoreError, match=r"plan\.parquet: not a readable Parquet file"):
        Windows(tmp_path / "plan.parquet", {}, WINDOW)


# parameters


def test_pydantic_reads_bounds_and_descriptions_and_plain_use_gets_the_same_checks() -> None:
    adapter = TypeAdapter(TrainParams)
    described = adapter.json_schema()["properties"]
    assert all(field.get("description") for field in described.values())
    with pytest.raises(ValidationError, match="batch"):
        adapter.validate_python({"batch": 0, "micro_batch": 1})
    with pytest.raises(UsageError, match=r"train\.batch: 0 must be at least 1"):
        TrainParams(batch=0, micro_batch=1)
    with pytest.raises(UsageError, match=r"train\.schedule: 'wds' is none of wsd, cosine"):
        TrainParams(schedule="wds")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"train\.micro_batch: 3 does not divide"):
        TrainParams(micro_batch=3)


# the stage


def test_training_learns_and_leaves_a_model_and_its_history(corpus: Path, uninterrupted: LocalRun) -> None:
    history = pq.read_table(uninterrupted.out / "history.parquet").to_pylist()
    assert [row["step"] for row in history] == list(range(1, TINY.steps + 1))
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    assert [row["step"] for row in history if row["validation_loss"] is not None] == [10, 20, 30, 40]
    assert {path.name for path in uninterrupted.out.iterdir()} == {
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "history.parquet",
    }


def test_cancelled_training_leaves_a_checkpoint_and_goes_on_to_the_same_bits(
    corpus: Path, uninterrupted: LocalRun, tmp_path: Path
) -> None:
    slow = replace(TINY, steps=150)
    run = WatchedRun(tmp_path, stop_at=2)
    with pytest.raises(InterruptedError):
        train(inputs_of(corpus), slow, run)
    assert run.kept >= 1
    markers = sorted((run.scratch / "checkpoints").glob("step-*.json"))
    assert markers and "stopped after step" in (run.scratch / "trainer.log").read_text()
    run.stop_at = math.inf
    train(inputs_of(corpus), slow, run)
    assert "from step 0" not in (run.scratch / "trainer.log").read_text()
    alone = LocalRun(tmp_path / "alone")
    train(inputs_of(corpus), slow, alone)
    assert model_digest(run) == model_digest(alone)
    assert file_digest(run.out / "history.parquet") == file_digest(alone.out / "history.parquet")


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    corpus: Path, uninterrupted: LocalRun, tmp_path: Path
) -> None:
    run = LocalRun(tmp_path)
    shutil.copytree(uninterrupted.scratch / "checkpoints", run.scratch / "checkpoints")
    markers = sorted((run.scratch / "checkpoints").glob("step-*.json"))
    assert [marker.stem for marker in markers] == ["step-00000028", "step-00000035"]
    weights = run.scratch / "checkpoints/step-00000035/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    train(inputs_of(corpus), TINY, run)
    said = (run.scratch / "trainer.log").read_text()
    assert "step-00000035.json: damaged checkpoint passed over" in said and "from step 28" in said
    assert model_digest(run) == model_digest(uninterrupted)


def test_scratch_of_another_training_is_refused(corpus: Path, uninterrupted: LocalRun, tmp_path: Path) -> None:
    run = LocalRun(tmp_path)
    shutil.copytree(uninterrupted.scratch / "checkpoints", run.scratch / "checkpoints")
    with pytest.raises(UsageError, match="holds checkpoints of another training"):
        train(inputs_of(corpus), replace(TINY, seed=2), run)


def test_a_failing_trainer_is_one_line(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(LlmcoreError, match=r"^train\.learning_rate: the loss is not finite at step"):
        train(inputs_of(corpus), replace(TINY, learning_rate=1e30, warm_up=0), LocalRun(tmp_path))


def test_a_missing_compiler_is_named(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match=r"^train\.compile: no C\+\+ compiler"):
        train(inputs_of(corpus), replace(TINY, compile=True), LocalRun(tmp_path))


def test_looking_at_the_stage_loads_no_torch() -> None:
    code = "import sys, llmcore.training.stage, llmcore.training.loader; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert STAGE.kind == "global" and STAGE.load() is train


# real accidents

PARENT = """
import sys
from pathlib import Path
from tests.training.test_training import TINY, inputs_of, replace, train
from tests.local_files import LocalRun
params = replace(TINY, steps=int(sys.argv[3]), compile=sys.argv[4] == "1")
train(inputs_of(Path(sys.argv[1])), params, LocalRun(Path(sys.argv[2])))
"""


def start_parent(corpus: Path, run: LocalRun, steps: int, compiled: bool) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PARENT, str(corpus), str(run.root), str(steps), str(int(compiled))]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2])


def trainer_pid(run: LocalRun) -> int:
    return int(json.loads((run.scratch / "trainer.pid").read_text())["pid"])


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_killed_at_any_moment_it_ends_with_the_bits_of_a_run_left_alone(
    corpus: Path, tmp_path: Path, compiled: bool
) -> None:
    params = replace(TINY, steps=400, compile=compiled)
    alone = LocalRun(tmp_path / "alone")
    train(inputs_of(corpus), params, alone)
    run = LocalRun(tmp_path / "killed")
    for kill in range(3):
        parent = start_parent(corpus, run, 400, compiled)
        before = len(log_of(run))
        wait_for(lambda before=before: len(log_of(run)) > before + 15, "fifteen more steps", 240)  # type: ignore[misc]
        os.kill(trainer_pid(run), signal.SIGKILL)
        assert parent.wait() != 0
        assert sorted((run.scratch / "checkpoints").glob("step-*.json")), kill
    train(inputs_of(corpus), params, run)
    assert model_digest(run) == model_digest(alone)
    assert file_digest(run.out / "history.parquet") == file_digest(alone.out / "history.parquet")


@pytest.mark.slow
def test_a_trainer_whose_parent_died_is_found_and_watched_on(corpus: Path, tmp_path: Path) -> None:
    run = LocalRun(tmp_path / "orphaned")
    parent = start_parent(corpus, run, 1000, compiled=False)
    wait_for(lambda: len(log_of(run)) > 5, "sixth step", 240)
    pid = trainer_pid(run)
    parent.kill()
    parent.wait()
    train(inputs_of(corpus), replace(TINY, steps=1000), run)
    assert trainer_pid(run) == pid
    steps = [row["step"] for row in log_of(run)]
    assert steps == list(range(1, 1001))  # one trainer, which never began again


@pytest.mark.slow
def test_two_processes_train_on_the_same_data_in_the_same_order(
    corpus: Path, uninterrupted: LocalRun, tmp_path: Path
) -> None:
    run = LocalRun(tmp_path)
    train(inputs_of(corpus), replace(TINY, processes=2), run)
    # two micro-batches a step: a + b is b + a, so even the bits agree
    assert model_digest(run) == model_digest(uninterrupted)


def log_of(run: LocalRun) -> list[dict[str, Any]]:
    path = run.scratch / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]
