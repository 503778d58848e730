"""What the report tells of single documents: how long those are that are trained on, and examples of removed ones.

Both are read one shard at a time, and both are the same each time: the examples are the first in the order of their
ids, which are hashes. What was removed before personal data was masked is masked here, with the chain's own parameters,
because a report travels with the model.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import polars as pl

from llmcore.account.funnel import RULE
from llmcore.artifacts.stage import Files
from llmcore.text import pii
from llmcore.text.pii_params import PiiParams

RULES = 30  # those that took most, of which examples are shown
EXAMPLES = 2  # a rule
EXCERPT = 300  # characters
READ = 2000  # characters of a text that are masked before the excerpt is cut, so that no address is cut in two

Manifests = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Removed:
    """A rule and what it took. examples: {source, url, value, text}, `value` being what the stage noted."""

    step: str
    rule: str
    documents: int
    examples: tuple[Mapping[str, Any], ...]


def lengths(manifests: Manifests, history: Files) -> list[tuple[int, int]]:
    """Trained documents by length: (n, how many have n tokens or more and less than 2n), n a power of two, no gaps."""
    gone = [pl.read_parquet(history.path(name), columns=["id"]) for name in _files(manifests, "versions", "dropped")]
    left = pl.concat([pl.DataFrame(schema={"id": pl.String}), *gone]).lazy()
    counts: Counter[int] = Counter()
    power = pl.col("n_tokens").clip(1).cast(pl.Float64).log(2).floor().cast(pl.Int64).alias("power")
    for name in _files(manifests, "tokens", "train"):
        rows = pl.scan_parquet(history.path(name)).select("id", power).join(left, on="id", how="anti")
        counts.update(dict(rows.group_by("power").len().collect().iter_rows()))
    if not counts:
        return []
    return [(1 << power, counts[power]) for power in range(min(counts), max(counts) + 1)]


def masked_entities(manifests: Manifests) -> dict[str, int]:
    """Masks by entity, most frequent first, and "documents_masked"; {} for a chain that masks nothing."""
    found: Counter[str] = Counter()
    for manifest in manifests:
        if manifest["stage"] == pii.STAGE.name:
            found.update({name: int(count) for name, count in manifest["metrics"].items() if _is_entity(name)})
    return dict(found.most_common())


def _is_entity(name: str) -> bool:
    return name.isupper() or name == "documents_masked"


def removed_by_rule(manifests: Manifests, history: Files) -> list[Removed]:
    """The rules that took most, with examples of what they took."""
    taken = [row for manifest in manifests if manifest["role"] != "versions" for row in _taken(manifest, history)]
    taken.sort(key=lambda row: (-row[2], row[0]["step"], row[1]))
    return [
        Removed(manifest["step"], rule, count, tuple(_examples(manifest, chosen, manifests, history)))
        for manifest, rule, count, chosen in taken[:RULES]
    ]


def _taken(
    manifest: Mapping[str, Any], history: Files
) -> list[tuple[Mapping[str, Any], str, int, list[tuple[str, str, str]]]]:
    """Of each rule of a stage how many documents it took, and the first of them: (id, shard, detail)."""
    counts: Counter[str] = Counter()
    chosen: dict[str, list[tuple[str, str, str]]] = {}
    for name, output in sorted(manifest["outputs"].items()):
        if not name.startswith("dropped/") or not output["rows"]:
            continue
        table = pl.read_parquet(history.path(f"{manifest['step']}/{name}")).with_columns(RULE)
        counts.update(dict(table.group_by("rule").len().iter_rows()))
        first = table.sort("id").group_by("rule", maintain_order=True).head(EXAMPLES)
        for rule, id_, detail in first.select("rule", "id", "detail").iter_rows():
            chosen.setdefault(rule, []).append((id_, PurePosixPath(name).name, detail))
    return [(manifest, rule, count, sorted(chosen[rule])[:EXAMPLES]) for rule, count in counts.items()]


def _examples(
    manifest: Mapping[str, Any], chosen: Sequence[tuple[str, str, str]], manifests: Manifests, history: Files
) -> list[dict[str, Any]]:
    origins = [item["step"] for item in manifest["inputs"].get("documents", ())]
    found = []
    for id_, shard, detail in chosen:
        row = _document(id_, shard, origins, manifests, history)
        text = _masked(row["text"], manifest, manifests) if row else ""
        words = " ".join(text.split())
        found.append(
            {
                "source": row["source"] if row else "",
                "url": row["url"] if row else None,
                "value": _value(detail),
                "text": words[:EXCERPT] + ("…" if len(words) > EXCERPT else ""),
            }
        )
    return found


def _document(
    id_: str, shard: str, origins: Sequence[str], manifests: Manifests, history: Files
) -> Mapping[str, Any] | None:
    """A removed document as it came to the stage; None where it came from a file of the outside world."""
    outputs = {manifest["step"]: manifest["outputs"] for manifest in manifests}
    for origin in origins:
        if f"kept/{shard}" not in outputs.get(origin, {}):
            continue
        rows = pl.scan_parquet(history.path(f"{origin}/kept/{shard}")).filter(pl.col("id") == id_)
        start = pl.col("text").str.slice(0, READ)
        for row in rows.select("source", "url", text=start).collect().iter_rows(named=True):
            return dict(row)
    return None


def _masked(text: str, manifest: Mapping[str, Any], manifests: Manifests) -> str:
    """The text without personal data, if the stage stands before the one that masks it."""
    steps = [entry["step"] for entry in manifests]
    masking = [entry for entry in manifests if entry["stage"] == pii.STAGE.name]
    if any(steps.index(entry["step"]) < steps.index(manifest["step"]) for entry in masking):
        return text
    params = PiiParams(**masking[0]["params"]) if masking else PiiParams()
    params = params.model_copy(update={"max_findings": None})
    kept: pl.DataFrame = pii.scrub(pl.DataFrame({"id": [""], "text": [text]}), params).outputs["kept"]  # type: ignore[assignment]
    return str(kept["text"][0])


def _value(detail: str) -> str:
    """What a stage noted beside the rule, in a few words: "value 0.31, threshold 0.2"."""
    try:
        noted = json.loads(detail)
    except ValueError:
        return ""
    parts = [f"{name} {_short(value)}" for name, value in noted.items() if name != "rule" and value is not None]
    return ", ".join(parts)[:EXCERPT]


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else str(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _files(manifests: Manifests, role: str, folder: str) -> list[str]:
    return [
        f"{manifest['step']}/{name}"
        for manifest in manifests
        if manifest["role"] == role
        for name in manifest["outputs"]
        if name.startswith(f"{folder}/") and name.endswith(".parquet")
    ]
