"""How far a quantised model strays from the full one, on held-out text.

Per format: bits per byte and their difference, mean and 99.9-percentile Kullback-Leibler divergence of the next-token
distribution KL(full || quantised) in nats, and the share of places where both would pick the same token.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch

from llmcore.artifacts.stage import Files
from llmcore.errors import LlmcoreError
from llmcore.model import huggingface

PIECE = 512  # tokens read in one go
BATCH_TOKENS = 2_048  # tokens whose logits are in memory at once
DECIMALS = 5  # that are written: more would be noise of the machine's arithmetic


@dataclass(frozen=True)
class Losses:
    """What was measured: `formats` holds for each format a row of plain numbers."""

    tokens: int
    bytes: int
    bits_per_byte: float
    formats: Mapping[str, dict[str, float]]


def held_out_split(tokens: Files) -> str:
    """The split to measure on: validation, or test where validation is empty. LlmcoreError if both are."""
    for split in ("validation", "test"):
        if any((table["n_tokens"] > 1).any() for _, table in tokens.tables(f"{split}/")):
            return split
    raise LlmcoreError("validation/: no held-out tokens to measure on; enlarge split.validation or add documents")


def sample(tokens: Files, budget: int, window: int, split: str) -> list[np.ndarray]:
    """About `budget` held-out tokens as pieces of documents, the first piece of every document before any second one.

    A piece starts with the token that comes before it and is not itself counted: <|endoftext|> (with which a document's
    own tokens end) before a document's first, as in training. window: the longest context of the model, which bounds a
    piece too. Documents come in the order of their ids, which are hashes: a fair draw that is the same in each run.
    """
    longest = min(PIECE, window)
    length = pl.col("n_tokens").cast(pl.Int64) - 1  # without the end of text, which stands for no bytes
    documents = [table.select("id", "n_tokens", "tokens") for _, table in tokens.tables(f"{split}/")]
    row, start, size = pl.col("tokens"), pl.col("start"), pl.col("size")
    pieces = (
        pl.concat(documents)
        .filter(length > 0)
        .with_columns(pl.int_ranges(0, length, longest).alias("start"))
        .explode("start")
        .sort("start", "id")
        .with_columns(pl.min_horizontal(length - start, longest).alias("size"))
        .filter(size.cum_sum() - size < budget)
        .select(
            pl.when(start == 0)
            .then(pl.concat_list(row.list.last(), row.list.head(size)))
            .otherwise(row.list.slice(pl.max_horizontal(start - 1, 0), size + 1))
        )
    )
    return [piece.to_numpy().astype(np.int64) for piece in pieces.to_series()]


def measure(
    full: Path,
    quantised: Mapping[str, Path],
    pieces: Sequence[np.ndarray],
    tokenizer: Path,
    threads: int,
    report: Callable[[int, int], None],
) -> Losses:
    """Compare model folders with the full one, batch by batch, so that no logits are kept.

    full, quantised: folders in Hugging Face form. pieces: token ids, one-dimensional, the first only context.
    tokenizer: tokenizer.json.
    """
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reference = huggingface.load(full).to(device).float().eval()
    models = {name: huggingface.load(folder).to(device).float().eval() for name, folder in quantised.items()}
    lengths = torch.from_numpy(_bytes_per_token(tokenizer))
    names = list(models)
    nats = dict.fromkeys(["full", *names], 0.0)
    agreed = dict.fromkeys(names, 0)
    divergences: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    tokens, size = 0, 0
    batches = _batches(pieces)
    with torch.inference_mode():
        for number, batch in enumerate(batches):
            report(number, len(batches))
            batch = batch.to(device)
            targets = batch[:, 1:]
            counted = targets >= 0
            inputs = batch[:, :-1].clamp(min=0)
            expected = reference(inputs)[counted]
            targets = targets[counted]
            tokens += len(targets)
            size += int(lengths[targets.cpu()].sum())
            best, normaliser = expected.argmax(-1), expected.logsumexp(-1)
            nats["full"] += _nats(expected, normaliser, targets)
            probability = (expected - normaliser[:, None]).exp_()
            negentropy = _dot(probability, expected) - normaliser
            for name, model in models.items():
                actual = model(inputs)[counted]
                normaliser = actual.logsumexp(-1)
                nats[name] += _nats(actual, normaliser, targets)
                agreed[name] += int((actual.argmax(-1) == best).sum())
                cross_entropy = normaliser - _dot(probability, actual)
                divergences[name].append((negentropy + cross_entropy).clamp(min=0).cpu())
    to_bits = 1 / math.log(2) / max(size, 1)
    formats = {}
    for name in names:
        divergence = torch.cat(divergences[name]).double()
        formats[name] = {
            "bits_per_byte": round(nats[name] * to_bits, DECIMALS),
            "bits_per_byte_difference": round((nats[name] - nats["full"]) * to_bits, DECIMALS),
            "mean_kl": round(float(divergence.mean()), DECIMALS),
            "kl_p999": round(float(torch.quantile(divergence[:16_000_000], 0.999)), DECIMALS),
            "top1_agreement": round(agreed[name] / tokens, DECIMALS),
        }
    return Losses(tokens, size, round(nats["full"] * to_bits, DECIMALS), formats)


def _batches(pieces: Sequence[np.ndarray]) -> list[torch.Tensor]:
    """Pieces of like length stacked, int64 [pieces, length], -1 where a piece has ended."""
    ordered = sorted(pieces, key=len, reverse=True)
    batches, start = [], 0
    while start < len(ordered):
        longest = len(ordered[start])
        rows = ordered[start : start + max(1, BATCH_TOKENS // longest)]
        batch = np.full((len(rows), longest), -1, dtype=np.int64)
        for number, row in enumerate(rows):
            batch[number, : len(row)] = row
        batches.append(torch.from_numpy(batch))
        start += len(rows)
    return batches


def _nats(logits: torch.Tensor, normaliser: torch.Tensor, targets: torch.Tensor) -> float:
    """Sum of -log p(target)."""
    return float((normaliser - logits.gather(-1, targets[:, None])[:, 0]).double().sum())


def _dot(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Row by row, without a table in between."""
    return torch.einsum("nv,nv->n", left, right)


def _bytes_per_token(tokenizer: Path) -> np.ndarray:
    """UTF-8 bytes that each token stands for: one per character of its byte-level name, none for special tokens."""
    spec = json.loads(tokenizer.read_text(encoding="utf-8"))
    special = {token["id"] for token in spec.get("added_tokens", ()) if token.get("special")}
    ids = spec["model"]["vocab"]
    sizes = np.zeros(max([*ids.values(), *special]) + 1, dtype=np.int64)
    for token, number in ids.items():
        sizes[number] = 0 if number in special else len(token)
    return sizes
