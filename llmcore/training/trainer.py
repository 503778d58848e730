"""The training loop, a process of its own: `python -m llmcore.training.trainer SPEC.json`, or the same under torchrun.

A run is a function of its spec: step i reads windows fixed by plan and seed, nothing is drawn while training, and every
sum has a fixed order. So a run that is killed and started again ends with the bits of one that was not.

In the spec's scratch folder: `checkpoints/`, `heartbeat.json` (how far, how fast), `log.jsonl` (one line a step) and,
when done, `result/` (the model in Hugging Face form, history.parquet, metrics.json), which appears whole.
"""

from __future__ import annotations

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it once; without it sums have no fixed order

import ctypes
import hashlib
import math
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch import Tensor

from llmcore.artifacts.disk import is_full
from llmcore.artifacts.keys import deciding_fields
from llmcore.errors import LlmcoreError, NoSpaceError, UsageError
from llmcore.model import huggingface
from llmcore.model.device import device_of
from llmcore.model.transformer import ModelConfig, Transformer, document_layout
from llmcore.training import checkpoint as checkpoints
from llmcore.training.checkpoint import Checkpoint, write_atomically
from llmcore.training.exposure import Reading
from llmcore.training.faults import OutOfMemoryError, write_fault
from llmcore.training.heartbeat import Log
from llmcore.training.loader import Windows, even_draw, plan_digest, windows_of_step
from llmcore.training.marker import FOLDER
from llmcore.training.optimizer import Optimizer
from llmcore.training.params import TrainParams
from llmcore.training.spec import READING, STOPPED, Spec

UNWATCHED_SECONDS = 300.0  # without a watching parent for so long, save and leave
SAMPLE_WINDOWS = 64  # whose tokens say whether two trainings read the same data
DOCUMENTS_NAMED = 8  # of a batch with a loss that is not finite
PR_SET_PDEATHSIG = 1


class Processes:
    """The processes that train together (one, unless torchrun started more), and this one's device."""

    def __init__(self, params: TrainParams) -> None:
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        device = device_of(params.device)
        cuda = device.type == "cuda"
        self.device = torch.device("cuda", local) if cuda else device
        torch.set_num_threads(params.threads)
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs per cents
        if cuda:
            torch.cuda.set_device(self.device)
        if self.world != params.processes:
            raise UsageError(f"train.processes: the recipe says {params.processes}, torchrun started {self.world}")
        if self.world > 1:
            # torchrun gives each process a session of its own: who kills torchrun would leave them at work
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            dist.init_process_group("nccl" if cuda else "gloo")

    def sum(self, tensor: Tensor) -> None:
        """Add up over the processes, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)

    def wait(self) -> None:
        if self.world > 1:
            dist.barrier()

    def close(self) -> None:
        if self.world > 1:
            dist.destroy_process_group()


class Stop:
    """Set by SIGTERM or SIGINT, however often, or when nobody watches any more; the loop reads it between steps.

    Before the first step, which may compile for a minute, there is nothing to save: a signal ends the process at once.
    """

    def __init__(self, watched: Path) -> None:
        self.asked = False
        self.worked = False
        self.watched = watched
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if not self.worked:
            os._exit(STOPPED)

    def due(self) -> bool:
        try:
            return self.asked or time.time() - self.watched.stat().st_mtime > UNWATCHED_SECONDS
        except FileNotFoundError:  # started by hand
            return self.asked


def train(spec: Spec) -> int:
    """Train to the end, or until asked to stop. Returns the exit code: 0, or STOPPED after a checkpoint."""
    params, began = spec.params, time.monotonic()
    stop = Stop(spec.scratch / "watched")
    if (spec.scratch / "result").is_dir():
        return 0
    processes = Processes(params)
    if processes.rank == 0:  # whom a parent that finds us at work has to ask to stop
        write_atomically(spec.scratch / "trainer.pid", {"pid": os.getpid() if processes.world == 1 else os.getppid()})
    # beside scratch, which is copied to remote stores with the checkpoints
    shared = (spec.scratch.parent, processes.rank == 0, processes.wait)
    windows = Windows(spec.plan, spec.tokens, spec.window, spec.end, *shared)
    if not len(windows):
        raise LlmcoreError(f"{spec.plan}: no window to train on; the corpus is empty after filtering")
    held_out, looked_at = None, np.zeros(0, dtype=np.int64)
    if spec.validation_plan is not None:
        held_out = Windows(spec.validation_plan, spec.validation_tokens, spec.window, spec.end, *shared)
        looked_at = even_draw(len(held_out), params.validation_windows, plan_digest(spec.validation_plan))
    recipe = recipe_of(spec, windows)
    model = Transformer(config_of(spec), params.seed).to(processes.device)
    gradient = flat_gradient(model)
    optimizer = Optimizer(model, params)
    loss_of = loss_function(model, params, processes.device)
    digest, steps = plan_digest(spec.plan), params.total_steps(len(windows))

    step, history = 0, list[dict[str, Any]]()
    found = newest_checkpoint(spec, recipe)
    if found is not None:
        step, history = found.step, [dict(row) for row in found.history]
        model.load_state_dict(dict(found.model))
        optimizer.restore(found.optimizer)
    log = Log(spec.scratch, steps, processes.rank == 0)
    log.say(f"{model.config.parameters:,} parameters, {steps} steps, from step {step}, on {processes.device}")

    def save_checkpoint() -> None:
        if processes.rank == 0:
            log.beat()
            state = Checkpoint(step, model.state_dict(), optimizer.tensors(), history)
            try:
                checkpoints.save(spec.scratch / FOLDER, state, recipe)
            except NoSpaceError as error:
                log.say(f"no checkpoint after step {step}, the one before stays: {error}")
            log.beat()
        processes.wait()

    while step < steps:
        numbers = windows_of_step(step, len(windows), params.batch, digest, params.seed)
        valid = int(windows.filled[numbers].sum())
        rate = rate_share(step, steps, params)
        gradient.zero_()
        parts = len(numbers) // params.micro_batch
        share = torch.zeros(2 + parts, dtype=torch.float64, device=processes.device)  # loss, whether to stop, by part
        for number, part in enumerate(_mine(numbers, params.micro_batch, processes)):
            loss = loss_of(windows, part) / valid
            loss.backward()
            share[0] += loss.detach()
            share[2 + processes.rank + number * processes.world] = loss.detach()
            log.beat()
        share[1] = float(stop.due())
        processes.sum(gradient)
        processes.sum(share)
        total, leave, *losses = share.tolist()
        norm = clip(gradient, params.clip)
        if not math.isfinite(total) or not math.isfinite(norm):  # asked before the update, which it would spoil
            raise LlmcoreError(
                f"train.learning_rate: the loss is not finite at step {step + 1}; lower the rate or raise "
                f"train.warm_up; the batch read documents {documents_of(spec.plan, _spoiled(numbers, losses))}"
            )
        optimizer.step(rate)
        step += 1
        stop.worked = True
        row: dict[str, Any] = {
            "step": step,
            "tokens": (history[-1]["tokens"] if history else 0) + valid,
            "loss": total,
            "learning_rate": params.learning_rate * rate,
            "grad_norm": norm,
            "validation_loss": None,
        }
        last = step == steps
        if held_out is not None and (last or (params.validation_every and step % params.validation_every == 0)):
            row["validation_loss"] = validation_loss(held_out, looked_at, loss_of, params, processes, log.beat)
            if row["validation_loss"] is not None and not math.isfinite(row["validation_loss"]):
                raise LlmcoreError(
                    f"train.learning_rate: the validation loss is not finite after step {step}; "
                    "lower the rate or raise train.warm_up"
                )
        history.append(row)
        log.step(row, valid)
        if leave and not last:
            save_checkpoint()
            log.say(f"stopped after step {step}")
            return STOPPED
        if params.checkpoint_every and step % params.checkpoint_every == 0 and not last:
            save_checkpoint()

    if processes.rank == 0:
        reading = Reading(digest, len(windows), params.batch, params.seed, steps)
        write_result(spec, model, history, reading)
    log.say(f"done: {step} steps in {time.monotonic() - began:.1f} s")
    processes.wait()
    processes.close()
    return 0


def newest_checkpoint(spec: Spec, recipe: Mapping[str, Any]) -> Checkpoint | None:
    """The newest of what this training saved and of what it was told to go on from; None: it begins anew."""
    own = checkpoints.latest(spec.scratch / FOLDER, recipe)
    if not spec.resume:
        return own
    given = checkpoints.of_another_run(spec.resume, recipe)
    return own if own is not None and own.step >= given.step else given


def recipe_of(spec: Spec, windows: Windows) -> dict[str, Any]:
    """What is trained, wherever its files lie: parameters, shape, plan, and a sample of the tokens."""
    some = np.unique(np.linspace(0, len(windows) - 1, SAMPLE_WINDOWS).astype(np.int64))
    batch = windows[some]
    sample = hashlib.sha256(batch.tokens.tobytes() + batch.targets.tobytes())
    return {
        "train": deciding_fields(spec.params),
        "model": deciding_fields(config_of(spec)),
        "end": spec.end,
        "plan": plan_digest(spec.plan),
        "tokens": sample.hexdigest(),
    }


def documents_of(plan: Path, numbers: np.ndarray[Any, Any]) -> str:
    """The ids of the documents with tokens in these windows, the first few of them."""
    rows = pq.read_table(plan, columns=["id"], filters=[("window", "in", numbers.tolist())], partitioning=None)
    ids = sorted(set(rows["id"].to_pylist()))
    more = f" and {len(ids) - DOCUMENTS_NAMED} more" if len(ids) > DOCUMENTS_NAMED else ""
    return ", ".join(ids[:DOCUMENTS_NAMED]) + more


def _spoiled(numbers: np.ndarray[Any, Any], losses: Sequence[float]) -> np.ndarray[Any, Any]:
    """The windows of the micro-batches whose loss is not finite; all where only the gradient is not."""
    bad = [part for part, loss in zip(np.split(numbers, len(losses)), losses, strict=True) if not math.isfinite(loss)]
    return np.concatenate(bad) if bad else numbers


def config_of(spec: Spec) -> ModelConfig:
    """The shape of the model that a spec describes."""
    p = spec.params
    return ModelConfig(
        vocab_size=spec.vocab_size,
        width=p.width,
        layers=p.layers,
        heads=p.heads,
        kv_heads=p.kv_heads,
        ffn_width=p.ffn_width,
        window=spec.window,
        rope_theta=p.rope_theta,
        tied=p.tied,
    )


def loss_function(model: Transformer, params: TrainParams, device: torch.device) -> Callable[..., Tensor]:
    """(windows, numbers) -> summed loss of those windows, in the precision asked for, compiled if asked for."""
    if params.precision == "auto":
        raise UsageError("train.precision: auto was not made concrete; say bf16 or fp32")
    if params.compile:
        compiler = os.environ.get("CXX", "g++")
        if device.type == "cpu" and shutil.which(compiler) is None:
            raise UsageError(f"train.compile: no C++ compiler ({compiler}) found; install one or set it to false")
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # its pool of workers takes memory and outlives us
    compute = torch.compile(model.loss, dynamic=False) if params.compile else model.loss

    def loss_of(windows: Windows, numbers: Sequence[int]) -> Tensor:
        batch = windows[numbers]
        tokens, targets, documents = (
            torch.from_numpy(array).to(device, non_blocking=True)
            for array in (batch.tokens, batch.targets, batch.document_ids)
        )
        positions, mask = document_layout(documents)
        with torch.autocast(device.type, torch.bfloat16, enabled=params.precision == "bf16"):
            loss: Tensor = compute(tokens, targets, positions, mask)
        return loss

    return loss_of


def validation_loss(
    windows: Windows,
    numbers: np.ndarray[Any, Any],
    loss_of: Callable[..., Tensor],
    params: TrainParams,
    processes: Processes,
    beat: Callable[[], None] = lambda: None,
) -> float | None:
    """Nats a token over these windows of the validation plan; None where there are none."""
    if not len(numbers):
        return None
    fill = -len(numbers) % (params.micro_batch * processes.world)
    padded = np.concatenate([numbers, np.full(fill, -1)])
    total = torch.zeros(1, dtype=torch.float64, device=processes.device)
    for part in _mine(padded, params.micro_batch, processes):
        # with the graph recorded, so that the compiled step serves here too and nothing is compiled anew
        total += loss_of(windows, part).detach()
        beat()
    processes.sum(total)
    return float(total.item()) / int(windows.filled[numbers].sum())


def rate_share(step: int, steps: int, params: TrainParams) -> float:
    """Learning rate of step 0, 1, … as a share of the peak.

    Linear warm-up, then WSD (Hu et al. 2024: constant, then linear) or cosine.
    """
    warm_up = min(params.warm_up, steps // 2)
    floor = params.final_learning_rate
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    if params.schedule == "cosine":
        fallen = 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))
    else:
        falling = max(1, round(params.decay * steps))
        fallen = min(1.0, (steps - step) / falling)
    return floor + (1 - floor) * fallen


def flat_gradient(model: Transformer) -> Tensor:
    """Give every parameter a view into one zeroed vector as its gradient: summing and clipping are one operation."""
    parameters = list(model.parameters())
    flat = torch.zeros(sum(p.numel() for p in parameters), device=parameters[0].device)
    at = 0
    for parameter in parameters:
        parameter.grad = flat[at : at + parameter.numel()].view_as(parameter)
        at += parameter.numel()
    return flat


def clip(gradient: Tensor, limit: float) -> float:
    """Scale the gradient to a norm of at most `limit`, in place; returns the norm before."""
    norm = float(gradient.norm())
    if norm > limit:
        gradient.mul_(limit / norm)
    return norm


def write_result(spec: Spec, model: Transformer, history: Sequence[Mapping[str, Any]], reading: Reading) -> None:
    """result/ appears whole, under its name, when everything in it is written."""
    aside = spec.scratch / ".result"
    shutil.rmtree(aside, ignore_errors=True)
    huggingface.save(model, aside, bos=spec.end, eos=spec.end, pad=spec.pad)
    checkpoints.write_history(history, aside / "history.parquet")
    write_atomically(aside / READING, reading.plain())
    config, final = model.config, history[-1]
    write_atomically(
        aside / "metrics.json",
        {
            "steps": final["step"],
            "tokens": final["tokens"],
            "loss": final["loss"],
            "validation_loss": final["validation_loss"],
            "parameters": config.parameters,
            "flops": config.flops_per_token() * final["tokens"],
        },
    )
    aside.rename(spec.scratch / "result")


def _mine(numbers: np.ndarray[Any, Any], micro_batch: int, processes: Processes) -> list[np.ndarray[Any, Any]]:
    """This process's share of the micro-batches: every `world`-th."""
    return np.split(numbers, len(numbers) // micro_batch)[processes.rank :: processes.world]


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m llmcore.training.trainer SPEC.json", file=sys.stderr)
        return 2
    scratch = Path(arguments[0]).parent
    try:
        return train(Spec.read(Path(arguments[0])))
    except LlmcoreError as error:
        print(error, file=sys.stderr, flush=True)
        write_fault(scratch, error)
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        write_fault(scratch, _named(error))
        return LlmcoreError.exit_code


def _named(error: Exception) -> Exception:
    """An error of the machine's, as the line that names it."""
    if is_full(error):
        where = getattr(error, "filename", None) or "the training"
        return NoSpaceError(f"train: no space left for {where}; free some and run again")
    # on a processor torch raises a plain RuntimeError
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
        return OutOfMemoryError(error)
    return error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
