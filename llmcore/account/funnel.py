"""What became of the documents: from what was fetched to the tokens the model was trained on, stage by stage.

Counts come from the manifests; reasons, sources and bytes from the tables of the earlier artifacts (role "history",
whose file names carry their step in front). Every count is also told by generation: what the first snapshot brought,
and what each refresh. A document that a later version replaced, or that is gone, leaves at the door of `versions`, and
counts neither as trained nor among the tokens of its split.

Tables are read one shard at a time, and of each the columns that are counted: text where a stage wrote it, to measure
it; of what is trained on, the sizes that `tokenise` wrote down.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import polars as pl

from llmcore.artifacts.shards import generation_name, generation_of, shard_order
from llmcore.artifacts.stage import Files
from llmcore.schema import DROPPED_SCHEMA

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Fetched:
    """What came of the addresses that one crawl asked for: outcome -> number, in all and by generation."""

    step: str
    outcomes: Mapping[str, int]
    forbidden: Mapping[str, int]
    generations: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Share:
    """What one generation of shards brought to a door: documents that came, stayed and left, and reasons by number."""

    generation: str
    read: int
    kept: int
    dropped: int
    reasons: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Passage:
    """One stage's door: documents that came, stayed and left, UTF-8 bytes that stayed, and reasons by number."""

    step: str
    stage: str
    read: int
    kept: int
    dropped: int
    kept_bytes: int | None
    reasons: tuple[tuple[str, int], ...]
    generations: tuple[Share, ...]


@dataclass(frozen=True)
class Funnel:
    """fetched, passages: in chain order. sources: one row for each source and licence. splits: tokens by split.

    sources columns: source, licence, documents, bytes (at ingest), trained_documents, trained_bytes.
    domains columns: domain, documents, bytes: the largest tenth of the web domains in the training split.
    splits columns: split, documents, tokens, bytes. languages: codes of the training split, most frequent first.
    """

    fetched: tuple[Fetched, ...]
    passages: tuple[Passage, ...]
    sources: tuple[dict[str, Any], ...]
    domains: tuple[dict[str, Any], ...]
    splits: tuple[dict[str, Any], ...]
    languages: tuple[str, ...]

    @property
    def dropped(self) -> tuple[tuple[str, str, int], ...]:
        """(step, reason, documents) of everything that was removed, most frequent first."""
        rows = [(door.step, reason, count) for door in self.passages for reason, count in door.reasons]
        return tuple(sorted(rows, key=lambda row: (-row[2], row[0], row[1])))


def funnel(manifests: Sequence[Mapping[str, Any]], history: Files) -> Funnel:
    """Gather it from the manifests in chain order and the tables behind them."""
    names = history.names()
    steps = {manifest["step"]: manifest for manifest in manifests}
    files = {step: [name for name in names if name.startswith(f"{step}/")] for step in steps}
    tokens = {split: _of_role(steps, files, "tokens", split) for split in SPLITS}
    gone = _left(_of_role(steps, files, "versions", "dropped"), history)
    trained = _trained(_of_role(steps, files, "split", "kept"), tokens["train"], history, gone)
    return Funnel(
        fetched=tuple(_fetched(step, files[step], history) for step in steps if _under(files[step], step, "fetches")),
        passages=tuple(_passages(steps, files, history)),
        sources=_sources(_of_role(steps, files, "ingest", "kept"), history, trained),
        domains=_domains(trained),
        splits=_splits(tokens, history, gone),
        languages=_languages(trained),
    )


def _passages(
    steps: Mapping[str, Mapping[str, Any]], files: Mapping[str, list[str]], history: Files
) -> Iterator[Passage]:
    chosen: Counter[str] = Counter()
    for step, manifest in steps.items():
        if manifest["role"] == "split":
            chosen = _rows(manifest, "kept")
        folders = {name.split("/", 1)[0] for name in manifest["outputs"]}
        if {"kept", "dropped"} <= folders or (manifest["role"] == "ingest" and "kept" in folders):
            yield _passage(manifest, _rows(manifest, "kept"), files[step], history)
        elif manifest["role"] == "versions":
            # it writes no document again: what stands is what was chosen, without what left
            yield _passage(manifest, chosen - _rows(manifest, "dropped"), files[step], history)


def _rows(manifest: Mapping[str, Any], folder: str) -> Counter[str]:
    """Rows of an artifact's folder by generation."""
    counts: Counter[str] = Counter()
    for name, output in manifest["outputs"].items():
        if name.startswith(f"{folder}/"):
            counts[_generation(name)] += output["rows"] or 0
    return counts


def _generation(name: str) -> str:
    return generation_name(generation_of(name) or 0)


def _left(names: Sequence[str], history: Files) -> pl.DataFrame:
    """The ids of documents that no longer stand."""
    tables = [pl.read_parquet(history.path(name), columns=["id"]) for name in names]
    return pl.concat([DROPPED_SCHEMA.to_frame().select("id"), *tables])


def _trained(chosen: Sequence[str], tokens: Sequence[str], history: Files, gone: pl.DataFrame) -> pl.DataFrame:
    """Documents that are trained on and bytes of their text, by source, licence, domain and language."""
    by = ("source", "licence", "domain", "lang")
    domain = pl.col("url").str.extract(r"^https?://([^/?#]+)").alias("domain")
    kept = {PurePosixPath(name).name: name for name in chosen}
    parts = [pl.DataFrame(schema={**dict.fromkeys(by, pl.String), "documents": pl.Int64, "bytes": pl.Int64})]
    for name in tokens:
        sizes = _standing(pl.scan_parquet(history.path(name)), gone).select("id", "n_bytes")
        facts = pl.scan_parquet(history.path(kept[PurePosixPath(name).name]))
        rows = facts.select("id", "source", "licence", domain, pl.col("lang")).join(sizes, on="id")
        sums = pl.len().cast(pl.Int64).alias("documents"), pl.col("n_bytes").cast(pl.Int64).sum().alias("bytes")
        parts.append(rows.group_by(by).agg(*sums).collect())
    return _summed(pl.concat(parts, how="vertical_relaxed"), *by)


def _standing(rows: pl.LazyFrame, gone: pl.DataFrame) -> pl.LazyFrame:
    return rows.join(gone.lazy(), on="id", how="anti") if gone.height else rows


def _summed(table: pl.DataFrame, *by: str) -> pl.DataFrame:
    return table.group_by(by).agg(pl.col("documents", "bytes").sum())


def _under(names: Sequence[str], step: str, folder: str) -> list[str]:
    return [name for name in names if name.startswith(f"{step}/{folder}/") and name.endswith(".parquet")]


def _of_role(
    steps: Mapping[str, Mapping[str, Any]], files: Mapping[str, list[str]], role: str, folder: str
) -> list[str]:
    return [
        name
        for step, manifest in steps.items()
        if manifest["role"] == role
        for name in _under(files[step], step, folder)
    ]


def _fetched(step: str, names: Sequence[str], history: Files) -> Fetched:
    tables = {_generation(name): pl.read_parquet(history.path(name)) for name in _under(names, step, "fetches")}
    table = pl.concat(tables.values(), how="diagonal")
    forbidden = table.filter(pl.col("outcome") == "forbidden").with_columns(pl.col("reason").fill_null("robots.txt"))
    return Fetched(
        step,
        dict(_counted(table, "outcome")),
        dict(_counted(forbidden, "reason")),
        {generation: dict(_counted(part, "outcome")) for generation, part in tables.items()},
    )


def _counted(table: pl.DataFrame, column: str) -> tuple[tuple[str, int], ...]:
    """Values of a column and how often each stands there, most frequent first."""
    counts = table.group_by(pl.col(column).cast(pl.String)).len().sort("len", column, descending=[True, False])
    return tuple(counts.iter_rows())


def _passage(manifest: Mapping[str, Any], kept: Counter[str], names: Sequence[str], history: Files) -> Passage:
    step, dropped = manifest["step"], _rows(manifest, "dropped")
    left = pl.DataFrame(schema={"reason": pl.String, "generation": pl.String})
    parts = [
        pl.read_parquet(history.path(name), columns=["reason"]).with_columns(generation=pl.lit(_generation(name)))
        for name in _under(names, step, "dropped")
    ]
    left = pl.concat([left, *parts])
    return Passage(
        step=step,
        stage=manifest["stage"],
        read=kept.total() + dropped.total(),
        kept=kept.total(),
        dropped=dropped.total(),
        kept_bytes=_text_bytes(_under(names, step, "kept"), history),
        reasons=_counted(left, "reason"),
        generations=tuple(
            Share(
                generation,
                kept[generation] + dropped[generation],
                kept[generation],
                dropped[generation],
                _counted(left.filter(pl.col("generation") == generation), "reason"),
            )
            for generation in sorted({*kept, *dropped}, key=shard_order)
        ),
    )


def _text_bytes(names: Sequence[str], history: Files) -> int | None:
    if not names:
        return None
    size = pl.col("text").str.len_bytes().cast(pl.Int64).sum()
    return sum(pl.scan_parquet(history.path(name)).select(size).collect().item() for name in names)


def _sources(ingested: Sequence[str], history: Files, trained: pl.DataFrame) -> tuple[dict[str, Any], ...]:
    by = ("source", "licence")
    size = pl.col("text").str.len_bytes().cast(pl.Int64).sum().alias("bytes")
    sums = pl.len().cast(pl.Int64).alias("documents"), size
    shards = [pl.scan_parquet(history.path(name)).group_by(by).agg(*sums).collect() for name in ingested]
    parts = [trained.select(*by, "documents", "bytes").clear(), *shards]
    of_model = _summed(trained, *by).rename({"documents": "trained_documents", "bytes": "trained_bytes"})
    return tuple(
        _summed(pl.concat(parts, how="vertical_relaxed"), *by)
        .join(of_model, on=by, how="left", nulls_equal=True)
        .with_columns(pl.col("trained_documents", "trained_bytes").fill_null(0))
        .sort("bytes", "source", "licence", descending=[True, False, False])
        .to_dicts()
    )


def _domains(trained: pl.DataFrame) -> tuple[dict[str, Any], ...]:
    table = _summed(trained.drop_nulls("domain"), "domain").sort("bytes", "domain", descending=[True, False])
    return tuple(table.head(-(-table.height // 10)).to_dicts())


def _languages(trained: pl.DataFrame) -> tuple[str, ...]:
    table = _summed(trained.drop_nulls("lang"), "lang")
    return tuple(table.sort("documents", "lang", descending=[True, False])["lang"])


def _splits(names: Mapping[str, Sequence[str]], history: Files, gone: pl.DataFrame) -> tuple[dict[str, Any], ...]:
    sums = pl.len().cast(pl.Int64), *(pl.col(name).cast(pl.Int64).sum() for name in ("n_tokens", "n_bytes"))
    rows = []
    for split, shards in names.items():
        scans = (pl.scan_parquet(history.path(name)) for name in shards)
        parts = [_standing(scan, gone).select(sums).collect().row(0) for scan in scans]
        documents, tokens, size = (sum(column) for column in zip(*parts, strict=True)) if parts else (0, 0, 0)
        rows.append({"split": split, "documents": documents, "tokens": tokens, "bytes": size})
    return tuple(rows)
