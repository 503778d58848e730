"""The model as a folder that `transformers`, vLLM and llama.cpp's converter read, and back.

`config.json` says some things twice, because readers differ: `dtype` and `rope_parameters` are transformers 5's names,
`torch_dtype` and `rope_theta` those of transformers 4, SGLang and llama.cpp. `lm_head.weight` is left out when tied.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from llmcore.errors import LlmcoreError
from llmcore.model.tensors import save_tensors
from llmcore.model.transformer import ModelConfig, Transformer

WEIGHTS, CONFIG, GENERATION = "model.safetensors", "config.json", "generation_config.json"


def save(model: Transformer, folder: Path, bos: int = 0, eos: int = 0, pad: int = 1) -> None:
    """Write model.safetensors (fp32), config.json and generation_config.json. bos, eos, pad: token ids.

    Raises NoSpaceError where the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.float() for name, tensor in model.state_dict().items()}
    save_tensors(weights, folder / WEIGHTS, {"format": "pt"})
    _write(folder / CONFIG, llama_config(model.config, bos, eos, pad))
    _write(folder / GENERATION, {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad})


def load(folder: Path) -> Transformer:
    """Read a folder in Llama form into fp32 weights on the processor.

    Raises LlmcoreError, naming the file, where it is missing, damaged, or not of this architecture.
    """
    path = folder / CONFIG
    try:
        model = Transformer(model_config(json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LlmcoreError(f"{path}: not a Llama configuration: {error!r}; export the model again") from error
    path = folder / WEIGHTS
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise LlmcoreError(f"{path}: not readable: {error}; export the model again") from error
    expected = model.state_dict()
    if model.config.tied:
        weights.pop("lm_head.weight", None)
    wrong = sorted(expected.keys() ^ weights.keys()) or sorted(
        name for name, tensor in expected.items() if tensor.shape != weights[name].shape
    )
    if wrong:
        raise LlmcoreError(f"{path}: {wrong[0]} is missing, unknown or of another shape than config.json says")
    model.load_state_dict({name: tensor.to(torch.float32) for name, tensor in weights.items()})
    return model.eval()


def llama_config(config: ModelConfig, bos: int = 0, eos: int = 0, pad: int = 1) -> dict[str, Any]:
    """config.json of LlamaForCausalLM."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.ffn_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "hidden_act": "silu",
        "max_position_embeddings": config.window,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tied,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "use_cache": True,
        "dtype": "float32",
        "torch_dtype": "float32",
    }


def model_config(config: dict[str, Any]) -> ModelConfig:
    """The shape a Llama config.json describes. KeyError for a missing field, ValueError for what we cannot compute."""
    if config["model_type"] != "llama" or config.get("attention_bias") or config.get("mlp_bias"):
        raise ValueError("only Llama without biases is known here")
    rope = config.get("rope_parameters") or {"rope_type": "default", "rope_theta": config.get("rope_theta", 10_000.0)}
    if rope.get("rope_type", "default") != "default" or config.get("rope_scaling"):
        raise ValueError("scaled rotary positions are not known here")
    heads = config["num_attention_heads"]
    if config.get("head_dim") not in (None, config["hidden_size"] // heads):
        raise ValueError("head_dim must be hidden_size / num_attention_heads")
    return ModelConfig(
        vocab_size=config["vocab_size"],
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        ffn_width=config["intermediate_size"],
        window=config["max_position_embeddings"],
        rope_theta=float(rope["rope_theta"]),
        norm_eps=config["rms_norm_eps"],
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
