"""What the report tells of single documents: how long those are that are trained on, and examples of removed ones.

Both are read one shard at a time, and both are the same each time: the examples are the first in the order of their
ids, which are hashes. What was removed before personal data was masked is masked here, with the chain's own parameters,
because a report travels with the model.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from llmcore.account.dropped import Dropped, dropped
from llmcore.account.funnel import FunnelRow
from llmcore.artifacts.stage import Files
from llmcore.schema import DOCUMENT_SCHEMA
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


def removed_by_rule(manifests: Manifests, history: Files, rows: Iterable[FunnelRow]) -> list[Removed]:
    """The rules that took most, with examples of what they took. rows: of the funnel."""
    counts: Counter[tuple[str, str]] = Counter()
    for row in rows:
        counts.update({(row.stage, rule): count for rule, count in row.reasons.items()})
    shown = sorted(counts, key=lambda place: (-counts[place], place))[:RULES]
    found: dict[tuple[str, str], list[Dropped]] = {place: [] for place in shown}
    for example in dropped(manifests, history, n=RULES * EXAMPLES):
        if len(found.get((example.stage, example.rule), ())) < EXAMPLES and (example.stage, example.rule) in found:
            found[example.stage, example.rule].append(example)
    texts = _masked([example for part in found.values() for example in part], manifests)
    return [
        Removed(step, rule, counts[step, rule], tuple(_told(example, texts[example.id]) for example in part))
        for (step, rule), part in found.items()
    ]


def _told(example: Dropped, text: str) -> dict[str, Any]:
    words = " ".join(text.split())
    return {
        "source": example.source,
        "url": example.url,
        "value": _value(example.detail),
        "text": words[:EXCERPT] + ("…" if len(words) > EXCERPT else ""),
    }


def _masked(examples: Sequence[Dropped], manifests: Manifests) -> dict[str, str]:
    """The beginnings of their texts by id, without personal data where a stage came before the one that masks it."""
    steps = [manifest["step"] for manifest in manifests]
    masking = [manifest for manifest in manifests if manifest["stage"] == pii.STAGE.name]
    place = steps.index(masking[0]["step"]) if masking else len(steps)
    texts = {example.id: (example.text or "")[:READ] for example in examples}
    early = [example for example in examples if steps.index(example.stage) <= place and texts[example.id]]
    if not early:
        return texts
    params = PiiParams(**masking[0]["params"]) if masking else PiiParams()
    blank = dict.fromkeys(DOCUMENT_SCHEMA)
    rows = [blank | {"id": each.id, "source": each.source, "text": texts[each.id]} for each in early]
    documents = pl.DataFrame(rows, schema=dict(DOCUMENT_SCHEMA))
    scrubbed = pii.scrub(documents, params.model_copy(update={"max_findings": None})).outputs["kept"]
    assert isinstance(scrubbed, pl.DataFrame)
    return texts | dict(scrubbed.select("id", "text").iter_rows())


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
