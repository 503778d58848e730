"""Memory, arithmetic, time and money of a configuration's training, before anything is spent."""

from __future__ import annotations

from typing import Any

from llmcore.artifacts import roots
from llmcore.artifacts.manifest import read_manifest
from llmcore.artifacts.store import Store
from llmcore.model.config import ModelConfig
from llmcore.planning.config import PipelineConfig
from llmcore.training.params import TrainParams

# bf16 matrix work of one device, FLOP/s, and the share of it that a well-kept trainer reaches at 100M to 1B parameters
DEVICES = {"A100": 312e12, "H100": 989e12, "L4": 121e12}
UTILISATION = 0.35
DOLLARS_PER_HOUR = {"A100": 1.8, "H100": 3.0, "L4": 0.8}
# AdamW: weights, gradients and two moments in fp32
BYTES_PER_PARAMETER = 16


def model_config(params: TrainParams, vocab_size: int, window: int) -> ModelConfig:
    """The model that a training with these parameters makes."""
    return ModelConfig(
        vocab_size=vocab_size,
        width=params.width,
        layers=params.layers,
        heads=params.heads,
        kv_heads=params.kv_heads,
        ffn_width=params.ffn_width,
        window=window,
        rope_theta=params.rope_theta,
        tied=params.tied,
    )


def training_cost(store: Store, config: PipelineConfig) -> dict[str, Any]:
    """Parameters, bytes of optimiser state, FLOPs, and hours and dollars on common devices (an estimate, at 35 % of
    their peak). Tokens are known once a dataset of this name was packed, or when train.steps is set."""
    train, window = config.train, config.pack.window
    model = model_config(train, config.tokenizer.vocab_size, window)
    flops_per_token = model.flops_per_token(window)
    cost: dict[str, Any] = {
        "parameters": model.parameters,
        "state_gigabytes": round(model.parameters * BYTES_PER_PARAMETER / 1e9, 3),
        "flops_per_token": flops_per_token,
    }
    windows = _packed_windows(store, config)
    if not windows and not train.steps:
        return cost | {"tokens": None}
    tokens = train.total_steps(windows) * train.batch * window
    cost |= {"tokens": tokens, "tokens_per_parameter": round(tokens / model.parameters, 2)}
    cost["exaflops"] = round(tokens * flops_per_token / 1e18, 6)
    for device, peak in DEVICES.items():
        hours = tokens * flops_per_token / (peak * UTILISATION) / 3600
        cost[f"{device}_hours"] = round(hours, 4)
        cost[f"{device}_dollars"] = round(hours * DOLLARS_PER_HOUR[device], 2)
    return cost


def _packed_windows(store: Store, config: PipelineConfig) -> int:
    head = roots.ref(store, f"datasets/{config.name}")
    found = read_manifest(store, head.record["stage"], head.record["key"]) if head else None
    return int(found.metrics["train_windows"]) if found else 0
