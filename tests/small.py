"""A small real corpus and configuration, for tests that run the whole chain in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import yaml

from llmcore.quickstart import bundled

ADDRESSES = 40
BYTES_EACH = 3000
TINY_TRAINING: dict[str, Any] = {
    "layers": 2,
    "width": 64,
    "heads": 2,
    "kv_heads": 1,
    "ffn_width": 128,
    "steps": 60,
    "batch": 8,
    "micro_batch": 8,
    "warm_up": 10,
    "precision": "fp32",
    "compile": False,
    "validation_every": 20,
    "checkpoint_every": 5,
    "threads": 1,
}


def small_config(folder: Path, name: str = "small", **changes: Any) -> Path:
    """Write forty pieces of real addresses as text files, and a configuration for them; returns the latter's path."""
    texts = folder / "texts"
    texts.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(pl.read_parquet(bundled("sotu.parquet"))["text"].head(ADDRESSES)):
        (texts / f"{number:03d}.txt").write_text(text[:BYTES_EACH])
    settings: dict[str, Any] = {
        "name": name,
        "store": f"file://{folder}/store",
        "sources": [{"kind": "text", "name": "notes", "path": "texts", "licence": "CC0-1.0", "shard_bytes": 40_000}],
        "language": {"languages": ["en"]},
        "split": {"validation": 0.1, "test": 0.1},
        "tokenizer": {"vocab_size": 600},
        "pack": {"window": 64},
        "train": TINY_TRAINING,
        "evaluate": {"threads": 1},
        "quantise": {"tokens": 1000, "threads": 1},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings | changes))
    return path
