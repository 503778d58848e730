"""The training stage: starts the trainer as a process of its own, watches over it, and takes its result.

The trainer runs in its own session, so that a signal to whoever started the pipeline reaches it only through here. It
holds a lock on the scratch folder as long as it lives (inherited, so there is no gap while it starts): a parent that
comes back after a crash finds the lock taken and goes on watching that trainer, and two can never write one scratch.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmcore.artifacts.stage import Files, Run, Stage
from llmcore.errors import LlmcoreError, UsageError
from llmcore.training.params import TrainParams
from llmcore.training.spec import STOPPED, Spec

POLL_SECONDS = 0.1
REPORT_SECONDS = 1.0
WATCH_SECONDS = 5.0
GRACE_SECONDS = 25.0  # for the checkpoint of a trainer told to stop; Prefect kills what takes longer than 30
KEEP_SECONDS = 60.0  # between two copies of the checkpoints to a remote store
# glibc gives large blocks back to the system after each use, and every step pays for fresh pages (measured: 5,170
# tokens/s against 6,080 on 2 threads; huge pages gain nothing beyond that)
KEEP_MEMORY = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776"
RESTARTS = 3  # of a trainer that ended with neither result nor fault: stopped from outside, or lost after adoption
OUTPUTS = ("model.safetensors", "config.json", "generation_config.json", "history.parquet")


def train(inputs: Mapping[str, Files], params: TrainParams, run: Run) -> dict[str, Any]:
    """Train on plan/train.parquet over the tokens; write the model in Hugging Face form and history.parquet.

    inputs: tokens (train/, validation/), plan (plan.json, plan/), tokenizer (tokenizer.json).
    Raises LlmcoreError with the last line of the trainer's log. Whatever is raised here stops the trainer, which saves.
    """
    spec = run.scratch / "spec.json"
    _write_spec(inputs, params, run.scratch, spec)
    try:
        for _ in range(1 + RESTARTS):
            if (run.scratch / "result").is_dir():
                break
            with Trainer(run.scratch, spec, params.processes, params.threads) as trainer:
                keeper, reported = Keeper(run), 0.0
                while trainer.alive():
                    if time.monotonic() - reported >= REPORT_SECONDS:
                        reported = time.monotonic()
                        _report(run)
                        keeper.keep()
                    time.sleep(POLL_SECONDS)
                trainer.raise_fault()
    except BaseException as error:
        # a cancelled flow or a lost lease: what was trained so far must be there for the next one
        try:
            run.keep_scratch()
        except Exception as second:
            error.add_note(f"the checkpoint stayed in {run.scratch}: {second}")
        raise
    result = run.scratch / "result"
    if not result.is_dir():
        raise LlmcoreError(f"train: stopped from outside {1 + RESTARTS} times; run again to go on from the checkpoint")
    for name in OUTPUTS:
        shutil.copyfile(result / name, run.out / name)
    metrics: dict[str, Any] = json.loads((result / "metrics.json").read_text(encoding="utf-8"))
    run.progress(metrics["steps"], metrics["steps"], f"loss {metrics['loss']:.3f}")
    return metrics


class Trainer:
    """The one trainer of a scratch folder: started here, or found at work. Leaving with an error stops it."""

    def __init__(self, scratch: Path, spec: Path, processes: int, threads: int) -> None:
        self.scratch = scratch
        self.log = scratch / "trainer.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.lock: int | None = _try_lock(scratch)
        self._left = threading.Event()
        if self.lock is not None:
            (scratch / "trainer.pid").unlink(missing_ok=True)
            self.process = self._start(spec, processes, threads)

    def _start(self, spec: Path, processes: int, threads: int) -> subprocess.Popen[bytes]:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, *(torchrun if processes > 1 else ()), "-m", "llmcore.training.trainer", str(spec)]
        # threads before torch is loaded: a pool sized otherwise gives sums in another order. Spin briefly: threads that
        # never do lose a third on an idle machine, those that spin for long stand still on a busy one (docs/log.md)
        fixed = {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "OMP_DYNAMIC": "FALSE",
            "MKL_DYNAMIC": "FALSE",
            "GOMP_SPINCOUNT": "100000",
            "PYTHONHASHSEED": "0",
        }
        given = {"GLIBC_TUNABLES": KEEP_MEMORY} | os.environ
        with self.log.open("wb") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**given, **fixed},
                pass_fds=(self.lock,) if self.lock is not None else (),
            )

    def _watch(self) -> None:
        """Show the trainer that somebody is there, also while a slow store takes a checkpoint."""
        while True:
            with suppress(OSError):
                (self.scratch / "watched").touch()
            if self._left.wait(WATCH_SECONDS):
                return

    def __enter__(self) -> Trainer:
        threading.Thread(target=self._watch, daemon=True, name="trainer-watch").start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._left.set()
        if kind is not None and self.alive():
            self.stop()
        if self.lock is not None:
            os.close(self.lock)

    def alive(self) -> bool:
        if self.process is not None:
            return self.process.poll() is None
        found = _try_lock(self.scratch)
        if found is None:
            return True
        os.close(found)
        return False

    def stop(self) -> None:
        """Ask for a checkpoint, wait for it, and end what is still there after GRACE_SECONDS."""
        deadline = time.monotonic() + GRACE_SECONDS
        asked = False
        while self.alive():
            asked = asked or self._signal(signal.SIGTERM)
            if time.monotonic() > deadline:
                self._signal(signal.SIGKILL)
                break
            time.sleep(POLL_SECONDS)
        if self.process is not None:
            self.process.wait()

    def raise_fault(self) -> None:
        """Turn the trainer's failure into one line; a stop from outside is none."""
        code = self.process.returncode if self.process is not None else STOPPED
        if code in (0, STOPPED, -signal.SIGTERM):
            return
        if code == -signal.SIGKILL:
            raise LlmcoreError("train: the trainer was killed (out of memory?); lower train.micro_batch and run again")
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {code}")
        kind = UsageError if code == UsageError.exit_code else LlmcoreError
        raise kind(last if last.startswith("train.") else f"train: {last}")

    def _signal(self, number: int) -> bool:
        pid = self.process.pid if self.process is not None else _read_pid(self.scratch)
        if pid is None:  # found at work, and still starting
            return False
        # the session holds nothing but the trainer and what it started; torchrun passes SIGTERM on by itself
        with suppress(ProcessLookupError):
            (os.killpg if number == signal.SIGKILL else os.kill)(pid, number)
        return True


class Keeper:
    """Copies scratch to the store now and then while it grows, so that a lost machine costs minutes, not the run."""

    def __init__(self, run: Run) -> None:
        self.run, self.seen, self.last = run, "", time.monotonic()

    def keep(self) -> None:
        newest = max((path.name for path in (self.run.scratch / "checkpoints").glob("step-*.json")), default="")
        if newest == self.seen or time.monotonic() - self.last < KEEP_SECONDS:
            return
        with suppress(FileNotFoundError):  # the trainer dropped an old checkpoint under our hands; next time
            self.run.keep_scratch()
            self.seen = newest
        self.last = time.monotonic()


def _report(run: Run) -> None:
    try:
        beat = json.loads((run.scratch / "heartbeat.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        run.progress(0, 1, "starting the trainer")
        return
    run.progress(beat["step"], beat["steps"], f"loss {beat['loss']:.3f}  {beat['tokens_per_second']:,.0f} tokens/s")


def _write_spec(inputs: Mapping[str, Files], params: TrainParams, scratch: Path, path: Path) -> None:
    tokens, plan = inputs["tokens"], inputs["plan"]
    vocabulary = json.loads(inputs["tokenizer"].path("tokenizer.json").read_text(encoding="utf-8"))
    ids = {**vocabulary["model"]["vocab"], **{item["content"]: item["id"] for item in vocabulary["added_tokens"]}}
    if "<|endoftext|>" not in ids:
        raise LlmcoreError("train: tokenizer.json has no <|endoftext|>; train the tokenizer with the tokenizer stage")
    held_out = "plan/validation.parquet" in set(plan.names("plan/"))
    Spec(
        params=params,
        vocab_size=max(ids.values()) + 1,
        window=int(json.loads(plan.path("plan.json").read_text(encoding="utf-8"))["window"]),
        end=ids["<|endoftext|>"],
        pad=ids.get("<|pad|>", ids["<|endoftext|>"]),
        plan=plan.path("plan/train.parquet"),
        tokens=_shards(tokens, "train/"),
        validation_plan=plan.path("plan/validation.parquet") if held_out else None,
        validation_tokens=_shards(tokens, "validation/"),
        scratch=scratch,
    ).write(path)


def _shards(tokens: Files, folder: str) -> dict[str, Path]:
    return {name.removeprefix(folder): tokens.path(name) for name in tokens.names(folder)}


def _try_lock(scratch: Path) -> int | None:
    """The lock's descriptor, or None while a trainer holds it."""
    descriptor = os.open(scratch / "trainer.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _read_pid(scratch: Path) -> int | None:
    try:
        return int(json.loads((scratch / "trainer.pid").read_text())["pid"])
    except (OSError, ValueError, KeyError):
        return None


STAGE = Stage("train", version=1, role="model", params=TrainParams, function="llmcore.training.stage:train")
