"""How fast a training is on this machine: a few of its steps on tokens that mean nothing, in a process of their own.

`python -m llmcore.training.speed '{"params": {…}, "vocab_size": …, "window": …, "seconds": …}'` prints a `Measured`.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

from llmcore.errors import LlmcoreError
from llmcore.training.params import TrainParams
from llmcore.training.process import KEEP_MEMORY

START_SECONDS = 300.0  # for torch's import, and a compilation, on a busy machine


@dataclass(frozen=True)
class Measured:
    """tokens_per_second: of whole steps; bytes: most memory of the process, or of the GPU; share: of the processor's
    time that it asked for and got, less than 1 on a busy machine.
    """

    tokens_per_second: float
    bytes: int
    share: float = 1.0

    @property
    def when_idle(self) -> float:
        """Tokens/s on this machine with nothing beside, as far as the processor's time tells."""
        return self.tokens_per_second / self.share


def measure(params: TrainParams, vocab_size: int, window: int, seconds: float) -> Measured:
    """Train for so many seconds as the trainer would, beside what starting takes. LlmcoreError if that fails."""
    asked = {"params": asdict(params), "vocab_size": vocab_size, "window": window, "seconds": seconds}
    threads = {"OMP_NUM_THREADS": str(params.threads), "MKL_NUM_THREADS": str(params.threads)}
    surroundings = {"GLIBC_TUNABLES": KEEP_MEMORY, "GOMP_SPINCOUNT": "100000"} | os.environ | threads
    command = [sys.executable, "-m", "llmcore.training.speed", json.dumps(asked)]
    try:
        done = subprocess.run(
            command, env=surroundings, capture_output=True, text=True, timeout=START_SECONDS + seconds
        )
    except subprocess.TimeoutExpired as error:
        raise LlmcoreError(f"no training step ended within {error.timeout:.0f} s; is the machine busy?") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise LlmcoreError(f"a training step cannot be measured here: {said[-1] if said else done.returncode}")
    return Measured(**json.loads(done.stdout.strip().splitlines()[-1]))


def _train(params: TrainParams, vocab_size: int, window: int, seconds: float) -> Measured:
    import torch

    from llmcore.model.device import device_of
    from llmcore.model.transformer import ModelConfig, Transformer, document_layout
    from llmcore.training.optimizer import Optimizer
    from llmcore.training.trainer import clip, flat_gradient

    torch.set_num_threads(params.threads)
    device = device_of(params.device)
    names = ("width", "layers", "heads", "kv_heads", "ffn_width", "rope_theta", "tied")
    shape = ModelConfig(vocab_size=vocab_size, window=window, **{name: getattr(params, name) for name in names})
    model = Transformer(shape, params.seed).to(device)
    gradient, optimizer = flat_gradient(model), Optimizer(model, params)
    compute = torch.compile(model.loss, dynamic=False) if params.compile else model.loss
    tokens = torch.randint(vocab_size, (params.micro_batch, window), device=device)
    positions, mask = document_layout(torch.zeros_like(tokens, dtype=torch.int32))

    def step() -> None:
        gradient.zero_()
        for _ in range(params.batch // params.micro_batch):
            with torch.autocast(device.type, torch.bfloat16, enabled=params.precision == "bf16"):
                loss = compute(tokens, tokens, positions, mask)
            (loss / tokens.numel()).backward()
        clip(gradient, params.clip)  # its norm comes back from the device: the step is over
        optimizer.step(0.01)

    step()  # allocates, and compiles
    began, spent, steps = time.perf_counter(), time.process_time(), 0
    while (passed := time.perf_counter() - began) < seconds or not steps:
        step()
        steps += 1
    if device.type == "cuda":
        torch.cuda.synchronize()
    passed = time.perf_counter() - began
    speed = round(steps * params.batch * window / passed, 1)
    if device.type == "cuda":
        return Measured(speed, torch.cuda.max_memory_allocated())
    share = min(1.0, (time.process_time() - spent) / (passed * params.threads))
    return Measured(speed, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, round(max(share, 0.05), 3))


if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    found = _train(TrainParams(**told["params"]), told["vocab_size"], told["window"], told["seconds"])
    print(json.dumps(asdict(found)))
