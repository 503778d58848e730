"""Tokens a second of a training step (forward, backward, clip, optimiser), ours beside Hugging Face's Llama.

    python benchmarks/train_step.py [--compile] [--precision bf16] [--batch 16] [--window 512] …

Prints one JSON line. Both sides have one shape and take turns in one process, so that a busy machine is busy for both;
the figure is of the median step. The Hugging Face side has no document mask. Its optimiser is AdamW; with
`--optimizer adamw` ours is too. Utilisation is against the best product of 2048 x 2048 matrices in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch

from llmcore.model.huggingface import llama_config
from llmcore.model.transformer import ModelConfig, Transformer, document_layout
from llmcore.training.optimizer import Optimizer
from llmcore.training.params import TrainParams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("layers", "width", "heads", "kv_heads", "ffn_width", "batch", "threads"):
        default = next(field.default for field in fields(TrainParams) if field.name == name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--compile", action="store_true")
    print(json.dumps(measure(parser.parse_args())))


def measure(given: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(given.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = ModelConfig(
        given.vocab_size, given.width, given.layers, given.heads, given.kv_heads, given.ffn_width, given.window
    )
    tokens = torch.randint(config.vocab_size, (given.batch, given.window), device=device)
    documents = torch.zeros(tokens.shape, dtype=torch.int32, device=device)
    documents[:, given.window // 3 :] = 1
    ours, theirs = our_step(config, given, tokens, documents), their_step(config, given, tokens)
    first = {"first_step_seconds": seconds(ours, device), "huggingface_first_step_seconds": seconds(theirs, device)}
    times = [(seconds(ours, device), seconds(theirs, device)) for _ in range(given.steps)]
    our_time, their_time = (statistics.median(column) for column in zip(*times, strict=True))
    peak = peak_flops(device, torch.bfloat16 if given.precision == "bf16" else torch.float32)
    return {
        "benchmark": "train_step",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"{given.threads} threads",
        "parameters": config.parameters,
        "tokens_per_second": round(tokens.numel() / our_time),
        "huggingface_tokens_per_second": round(tokens.numel() / their_time),
        "ratio": round(their_time / our_time, 3),
        "model_flops_utilisation": round(config.flops_per_token() * tokens.numel() / our_time / peak, 3),
        "matrix_product_gflops": round(peak / 1e9),
        **{name: round(value, 2) for name, value in first.items()},
        **{name: getattr(given, name) for name in ("precision", "compile", "optimizer", "batch", "window")},
    }


def our_step(
    config: ModelConfig, given: argparse.Namespace, tokens: torch.Tensor, documents: torch.Tensor
) -> Callable[[], None]:
    model = Transformer(config).to(tokens.device)
    optimizer = Optimizer(model, TrainParams(optimizer=given.optimizer))
    loss_of = torch.compile(model.loss, dynamic=False) if given.compile else model.loss

    def step() -> None:
        positions, mask = document_layout(documents)
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=given.precision == "bf16"):
            loss = loss_of(tokens, tokens, positions, mask) / tokens.numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(1e-3)
        model.zero_grad(set_to_none=False)

    return step


def their_step(config: ModelConfig, given: argparse.Namespace, tokens: torch.Tensor) -> Callable[[], None]:
    from transformers import LlamaConfig, LlamaForCausalLM

    twice = ("dtype", "torch_dtype", "rope_theta")
    plain = {name: value for name, value in llama_config(config).items() if name not in twice}
    model: Any = LlamaForCausalLM(LlamaConfig(**plain))  # attention by SDPA is its default
    model.to(tokens.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    forward = torch.compile(model, dynamic=False) if given.compile else model

    def step() -> None:
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=given.precision == "bf16"):
            loss = forward(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    return step


def seconds(step: Callable[[], object], device: torch.device) -> float:
    """Wall time of one step, with whatever it queued on the device."""
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def peak_flops(device: torch.device, kind: torch.dtype, size: int = 2048) -> float:
    """Operations a second of the best of some square products."""
    left, right = torch.randn(2, size, size, device=device).to(kind)
    best = min(seconds(lambda: torch.mm(left, right), device) for _ in range(6))
    return 2 * size**3 / best


if __name__ == "__main__":
    main()
