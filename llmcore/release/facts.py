"""Everything that the model card and the report tell, gathered once from the artifacts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from safetensors import safe_open

from llmcore.account.funnel import Funnel, FunnelRow, funnel, most_first
from llmcore.artifacts.stage import Files
from llmcore.evaluation.verdict import verdict
from llmcore.release.licences import UNKNOWN
from llmcore.release.lineage import graph
from llmcore.release.texts import Removed, lengths, masked_entities, removed_by_rule

# Models that the evaluation may hold, best known first, in the words of the card.
CONTENDERS = {
    "model": "this model",
    "ngram_7": "byte 7-gram, interpolated",
    "ngram_5": "byte 5-gram, interpolated",
    "xz": "xz -9",
    "xz_after_train": "xz -9, having read the training split",
    "unigram": "byte unigram",
    "uniform": "uniform over bytes",
}


@dataclass(frozen=True)
class Facts:
    """Plain data.

    scores: {key, name, splits: {split: {value, low, high}}}, the model first, then the baselines.
    by_source: {name, splits} of the model alone. gap: its bits per byte on trained and on validation documents.
    benchmarks: {name, count} of those whose text is kept out. reading: what the training read of its split.
    verdict: what the scores mean, in a sentence or two. training: the parameters of the training.
    lengths: trained documents by length, see `texts.lengths`. masked: masks by entity.
    """

    name: str
    licence: str
    description: str
    config: Mapping[str, Any]
    parameters: int
    history: pl.DataFrame
    scores: Sequence[Mapping[str, Any]]
    by_source: Sequence[Mapping[str, Any]]
    gap: Mapping[str, Any]
    benchmarks: Sequence[Mapping[str, Any]]
    reading: Mapping[str, Any]
    verdict: str
    training: Mapping[str, Any]
    samples: Sequence[Mapping[str, str]]
    memorisation: Mapping[str, Any]
    quantisation: Mapping[str, Any]
    funnel: Funnel
    removed: Sequence[Removed]
    lengths: Sequence[tuple[int, int]]
    masked: Mapping[str, int]
    nodes: Sequence[Mapping[str, Any]]
    edges: Sequence[Mapping[str, str]]
    gate: Mapping[str, Any]

    @property
    def unlicensed(self) -> list[str]:
        """Sources whose licence nobody said."""
        return sorted({str(row["source"]) for row in self.funnel.sources if row["licence"] in (None, "", UNKNOWN)})

    @property
    def prompt(self) -> str:
        """Words of the corpus to begin with, on one line."""
        given = (" ".join(sample["prompt"].split()) for sample in self.samples)
        return next(filter(None, given), "The")

    def score(self, name: str, split: str = "test") -> Mapping[str, float] | None:
        """Bits per byte of the model or a baseline on a split, with its interval."""
        for row in self.scores:
            if row["key"] == name:
                found: Mapping[str, float] | None = row["splits"].get(split)
                return found
        return None


def parameters(model: Path) -> int:
    """Number of weights in a model folder."""
    with safe_open(model / "model.safetensors", framework="np") as weights:
        total = 0
        for name in weights.keys():  # noqa: SIM118 - a handle is no mapping
            size = 1
            for length in weights.get_slice(name).get_shape():
                size *= length
            total += size
    return total


def read_json(files: Files, name: str) -> Any:
    """A JSON file of an artifact, or {} where it has none."""
    return json.loads(files.path(name).read_text(encoding="utf-8")) if name in set(files.names()) else {}


def read_history(model: Files) -> pl.DataFrame:
    """The loss by step that training left beside the model; an empty table where it left none."""
    schema = {"step": pl.Int64, "tokens": pl.Int64, "loss": pl.Float64, "validation_loss": pl.Float64}
    if "history.parquet" not in set(model.names()):
        return pl.DataFrame(schema=schema)
    return pl.read_parquet(model.path("history.parquet")).select(
        pl.col(name).cast(kind) for name, kind in schema.items()
    )


def gather_facts(
    inputs: Mapping[str, Files],
    name: str,
    licence: str,
    description: str,
    folder: Path,
    manifests: Sequence[Mapping[str, Any]],
    steps: Mapping[str, str],
    gate: Mapping[str, Any],
) -> Facts:
    """Read it all. folder: the exported model. steps: role -> step it was made from. gate: what the gate saw."""
    nodes, edges = graph(manifests, steps)
    documents = funnel(manifests, inputs["history"])
    evaluation = read_json(inputs["evaluation"], "evaluation.json")
    return Facts(
        name=name,
        licence=licence,
        description=description,
        config=json.loads((folder / "config.json").read_text()),
        parameters=parameters(folder),
        history=read_history(inputs["model"]),
        scores=read_scores(evaluation),
        by_source=read_by_source(evaluation),
        gap=evaluation.get("gap", {}),
        benchmarks=read_benchmarks(manifests),
        reading=evaluation.get("reading", {}),
        verdict=verdict(_last(manifests, "evaluation", "metrics")),
        training=_last(manifests, "model", "params"),
        samples=read_samples(read_json(inputs["evaluation"], "samples.json")),
        memorisation=read_memorisation(read_json(inputs["evaluation"], "memorisation.json")),
        quantisation=read_json(inputs["quantised"], "quantisation.json"),
        funnel=documents,
        removed=removed_by_rule(manifests, inputs["history"], documents.rows),
        lengths=lengths(manifests, inputs["history"]),
        masked=masked_entities(manifests),
        nodes=nodes,
        edges=edges,
        gate=gate,
    )


def _last(manifests: Sequence[Mapping[str, Any]], role: str, field: str) -> Mapping[str, Any]:
    """A part of the record of the last artifact with this role; {} where there is none."""
    found: Mapping[str, Any] = next((entry[field] for entry in reversed(manifests) if entry["role"] == role), {})
    return found


def over_generations(rows: Iterable[FunnelRow]) -> list[FunnelRow]:
    """The rows of all generations of a stage and source added up, in their order."""
    parts: dict[tuple[str, str], list[FunnelRow]] = {}
    for row in rows:
        parts.setdefault((row.stage, row.source), []).append(row)
    return [_together(part) for part in parts.values()]


def _together(rows: Sequence[FunnelRow]) -> FunnelRow:
    reasons: Counter[str] = sum((Counter(row.reasons) for row in rows), Counter())
    read, kept = [row.bytes_read for row in rows], [row.bytes_kept for row in rows]
    return FunnelRow(
        stage=rows[0].stage,
        source=rows[0].source,
        generation="all",
        read=sum(row.read for row in rows),
        kept=sum(row.kept for row in rows),
        dropped=sum(row.dropped for row in rows),
        bytes_read=None if None in read else sum(filter(None, read)),
        bytes_kept=None if None in kept else sum(filter(None, kept)),
        reasons=dict(most_first(reasons)),
    )


def read_scores(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The model and its baselines in the order of the card: {key, name, splits: {split: {value, low, high}}}."""
    found: dict[str, dict[str, Any]] = {}
    for split, entry in evaluation.get("splits", {}).items():
        scores = {"model": entry["model"], **entry.get("baselines", {})}
        for key, score in scores.items():
            found.setdefault(key, {})[split] = {end: score.get(end) for end in ("value", "low", "high")}
    order = list(CONTENDERS)
    keys = sorted(found, key=lambda key: (order.index(key) if key in order else len(order), key))
    return [{"key": key, "name": CONTENDERS.get(key, key), "splits": found[key]} for key in keys]


def read_by_source(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The model on each source: {name, splits: {split: {value, low, high}}}; [] where there is but one."""
    found: dict[str, dict[str, Any]] = {}
    for split, entry in evaluation.get("splits", {}).items():
        for source, score in entry.get("sources", {}).items():
            found.setdefault(source, {})[split] = {end: score.get(end) for end in ("value", "low", "high")}
    return [{"name": name, "splits": found[name]} for name in sorted(found)] if len(found) > 1 else []


def read_benchmarks(manifests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The benchmarks whose text is kept out of training, and how many items of each: {name, count}."""
    return [
        {"name": metric.removeprefix("items_"), "count": count}
        for manifest in manifests
        if manifest["role"] == "benchmarks"
        for metric, count in sorted(manifest["metrics"].items())
        if metric.startswith("items_") and metric != "items_too_short"
    ]


def read_samples(samples: Any) -> list[dict[str, str]]:
    """[{prompt, text}]"""
    return [{"prompt": row["prompt"], "text": row["text"]} for row in samples or []]


def read_memorisation(memorisation: Mapping[str, Any]) -> dict[str, Any]:
    """{prefix, continuation, train, held_out}, the last two as rates; {} where it was not measured."""
    if not memorisation or any("rate" not in memorisation[split] for split in ("train", "held_out")):
        return {}
    rates = {split: memorisation[split]["rate"] for split in ("train", "held_out")}
    return {"prefix": memorisation["prefix"], "continuation": memorisation["continuation"], **rates}
