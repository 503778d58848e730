"""The training stage: starts the trainer as a process of its own, watches over it, and takes its result."""

from __future__ import annotations

import filecmp
import json
import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmcore.artifacts.stage import Files, Run, Stage
from llmcore.errors import LlmcoreError
from llmcore.training.faults import fault_of
from llmcore.training.heartbeat import Pulse
from llmcore.training.keeper import Keeper
from llmcore.training.params import TrainParams
from llmcore.training.process import POLL_SECONDS, Trainer
from llmcore.training.spec import READING, Spec

REPORT_SECONDS = 1.0
STILL_SECONDS = 30.0  # without a sign of life: worth a word
ABORT_SECONDS = 60.0  # for the copy of the last checkpoint where the training broke off
STORE_SECONDS = 1800.0  # for a store that is away when the training is done, and has to take the model
RESTARTS = 3  # of a trainer that ended with neither result nor fault: hung, stopped from outside, lost after adoption
OUTPUTS = ("model.safetensors", "config.json", "generation_config.json", "history.parquet", READING)

log = logging.getLogger(__name__)


def train(inputs: Mapping[str, Files], params: TrainParams, run: Run, trainer: str) -> dict[str, Any]:
    """Train on plan/train.parquet over the tokens; write the model in Hugging Face form, history.parquet, and
    reading.json, which says which windows were read, and how often (exposure.py).

    inputs: tokens (train/, validation/), plan (plan.json, plan/), tokenizer (tokenizer.json); and, where the training
    is to go on from another's checkpoint, resume (of the stage `checkpoint`).
    trainer: the module that is run, with a spec as its argument.
    Raises LlmcoreError in one line. Whatever is raised here stops the trainer, which saves.
    """
    spec = run.scratch / "spec.json"
    _write_spec(inputs, params, run.scratch, spec)
    keeper = Keeper(run)
    try:
        _run_trainer(run, params, spec, trainer, keeper)
    except BaseException as error:
        # a cancelled flow or a lost lease: what was trained so far must be there for the next one
        keeper.finish(ABORT_SECONDS, newest=True)
        if keeper.trouble:
            error.add_note(f"the last checkpoint was not copied to the store: {keeper.trouble}")
        raise
    keeper.finish(STORE_SECONDS, newest=False, tell=lambda: run.progress(1, 1, f"trained  {keeper.trouble}".strip()))
    result = run.scratch / "result"
    for name in OUTPUTS:
        shutil.copyfile(result / name, run.out / name)
        if not filecmp.cmp(result / name, run.out / name, shallow=False):
            raise LlmcoreError(f"train: the copy of {name} in {run.out} reads back otherwise; is the disk full?")
    metrics: dict[str, Any] = json.loads((result / "metrics.json").read_text(encoding="utf-8"))
    run.progress(metrics["steps"], metrics["steps"], f"loss {metrics['loss']:.3f}")
    return metrics


def _run_trainer(run: Run, params: TrainParams, spec: Path, module: str, keeper: Keeper) -> None:
    """Until there is a result, start a trainer, or watch the one that is at work."""
    ends: list[str] = []
    while not (run.scratch / "result").is_dir():
        if len(ends) > RESTARTS:
            raise LlmcoreError(f"train: {ends[-1]}, {len(ends)} starts in all; run again to go on from the checkpoint")
        with Trainer(run.scratch, spec, params, module) as trainer:
            pulse = Pulse(run.scratch, params.hang_seconds)
            ended = _watch(run, trainer, pulse, keeper)
            if ended:
                log.warning("train: %s; it is ended, and started again from its checkpoint", ended)
            else:
                fault = fault_of(run.scratch, trainer.exit_code, params, run.key)
                if fault is not None:
                    raise fault
            ends.append(ended or "the trainer was stopped from outside")


def _watch(run: Run, trainer: Trainer, pulse: Pulse, keeper: Keeper) -> str:
    """Report until the trainer ends, or hangs and is ended; returns that it hung, or ""."""
    reported, told = 0.0, False
    while trainer.alive():
        if time.monotonic() - reported >= REPORT_SECONDS:
            reported = time.monotonic()
            pulse.look()
            if pulse.hangs:
                trainer.kill()
                return f"the trainer gave no sign of life for {pulse.still:.0f} s (train.hang_seconds)"
            slow = pulse.beat is not None and pulse.still > max(STILL_SECONDS, 2 * pulse.longest)
            if slow and not told:
                log.warning("train: no step for %.0f s", pulse.still)
            told = slow
            run.progress(*_progress(pulse, slow, keeper.trouble))
        time.sleep(POLL_SECONDS)
    return ""


def _progress(pulse: Pulse, slow: bool, trouble: str) -> tuple[float, float, str]:
    if pulse.beat is None:
        return 0, 1, "  ".join(filter(None, ("starting the trainer", trouble)))
    speed = f"no step for {pulse.still:.0f} s" if slow else f"{pulse.beat['tokens_per_second']:,.0f} tokens/s"
    text = "  ".join(filter(None, (f"loss {pulse.beat['loss']:.3f}", speed, trouble)))
    return pulse.beat["step"], pulse.beat["steps"], text


def _write_spec(inputs: Mapping[str, Files], params: TrainParams, scratch: Path, path: Path) -> None:
    tokens, plan, resume = inputs["tokens"], inputs["plan"], inputs.get("resume")
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
        resume={name: resume.path(name) for name in resume.names()} if resume is not None else {},
    ).write(path)


def _shards(tokens: Files, folder: str) -> dict[str, Path]:
    return {name.removeprefix(folder): tokens.path(name) for name in tokens.names(folder)}


STAGE = Stage(
    "train",
    version=2,
    role="model",
    params=TrainParams,
    function="llmcore.training.stage:train",
    constants={"trainer": "llmcore.training.trainer"},
)
