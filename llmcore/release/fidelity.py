"""How far a quantised model strays from the full one, on held-out text.

Per format: bits per byte and their difference, mean and 99.9-percentile Kullback-Leibler divergence of the next-token
distribution KL(full || quantised) in nats, and the share of places where both would pick the same token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import torch

from llmcore.artifacts.stage import Files
from llmcore.errors import LlmcoreError
from llmcore.model import huggingface
from llmcore.model.device import device_of
from llmcore.tokens.draw import first_within
from llmcore.tokens.tokenizer import bytes_per_token

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

    def __or__(self, other: Losses) -> Losses:
        """With further formats, measured on the same text."""
        return replace(other, formats={**self.formats, **other.formats})


NOTHING = Losses(0, 0, 0.0, {})


def held_out_split(tokens: Files, gone: pl.DataFrame | None = None) -> str:
    """The split to measure on: validation, or test where validation is empty. LlmcoreError if both are.

    gone: ids of documents that no longer stand.
    """
    for split in ("validation", "test"):
        if any((_lengths(tokens, name, gone)["n_tokens"] > 1).any() for name in tokens.names(f"{split}/")):
            return split
    raise LlmcoreError("validation/: no held-out tokens to measure on; enlarge split.validation or add documents")


def sample(tokens: Files, budget: int, window: int, split: str, gone: pl.DataFrame | None = None) -> list[np.ndarray]:
    """About `budget` held-out tokens as pieces of documents, the first piece of every document before any second one.

    A piece starts with the token that comes before it and is not itself counted: <|endoftext|> (with which a document's
    own tokens end) before a document's first, as in training. window: the longest context of the model, which bounds a
    piece too. Documents come in the order of their ids, which are hashes: a fair draw that is the same in each run.
    gone: ids of documents that no longer stand.
    """
    longest = min(PIECE, window)
    names = tokens.names(f"{split}/")
    pieces = (_pieces(_lengths(tokens, name, gone), longest, number, budget) for number, name in enumerate(names))
    chosen = first_within(pieces, ("start", "id"), "size", budget)
    read: list[tuple[int, str, np.ndarray]] = []
    for (number,), rows in chosen.partition_by("shard", as_dict=True).items():
        table = pl.scan_parquet(tokens.path(names[int(number)])).select("id", "tokens")
        held = table.join(rows.select("id").unique().lazy(), on="id", how="semi").collect()
        by_id = dict(zip(held["id"], held["tokens"], strict=True))
        for start, document, size in rows.select("start", "id", "size").iter_rows():
            row = by_id[document].to_numpy()
            before = row[-1:] if start == 0 else row[start - 1 : start]
            read.append((start, document, np.r_[before, row[start : start + size]].astype(np.int64)))
    return [piece for _, _, piece in sorted(read, key=lambda found: found[:2])]


def _lengths(tokens: Files, name: str, gone: pl.DataFrame | None) -> pl.DataFrame:
    found = pl.read_parquet(tokens.path(name), columns=["id", "n_tokens"])
    return found if gone is None else found.join(gone, on="id", how="anti", maintain_order="left")


def _pieces(documents: pl.DataFrame, longest: int, shard: int, budget: int) -> pl.DataFrame:
    """shard, id, start, size of the pieces of documents; of one document no more than the budget could take."""
    length = pl.col("n_tokens").cast(pl.Int64) - 1  # without the end of text, which stands for no bytes
    return (
        documents.filter(length > 0)
        .select("id", length=length, start=pl.int_ranges(0, pl.min_horizontal(length, budget + longest), longest))
        .explode("start")
        .select(
            pl.lit(shard, pl.UInt32).alias("shard"),
            "id",
            "start",
            size=pl.min_horizontal(pl.col("length") - pl.col("start"), longest),
        )
    )


def measure(
    full: Path,
    quantised: Mapping[str, Path],
    pieces: Sequence[np.ndarray],
    tokenizer: Path,
    threads: int,
    device: str,
    report: Callable[[int, int], None],
) -> Losses:
    """Compare model folders with the full one, batch by batch, so that no logits are kept.

    full, quantised: folders in Hugging Face form. pieces: token ids, one-dimensional, the first only context.
    tokenizer: tokenizer.json. device: "cpu" or "cuda".
    """
    torch.set_num_threads(threads)
    place = device_of(device)
    reference = huggingface.load(full).to(place).float().eval()
    models = {name: huggingface.load(folder).to(place).float().eval() for name, folder in quantised.items()}
    lengths = torch.from_numpy(bytes_per_token(tokenizer))
    names = list(models)
    nats = dict.fromkeys(["full", *names], 0.0)
    agreed = dict.fromkeys(names, 0)
    divergences: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    tokens, size = 0, 0
    batches = _batches(pieces)
    with torch.inference_mode():
        for number, batch in enumerate(batches):
            report(number, len(batches))
            batch = batch.to(place)
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
