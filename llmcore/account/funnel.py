"""What became of the documents: from what was fetched to the tokens the model was trained on, stage by stage.

Counts come from the manifests; reasons, sources and bytes from the tables of the earlier artifacts (role "history",
whose file names carry their step in front).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from llmcore.artifacts.stage import Files

SCAN_LIMIT = (
    4 << 30
)  # bytes of compressed text that are read again to count bytes per stage; beyond it they are unknown
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Fetched:
    """What came of the addresses that one crawl asked for: outcome -> number."""

    step: str
    outcomes: Mapping[str, int]
    forbidden: Mapping[str, int]


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
    return Funnel(
        fetched=tuple(_fetched(step, files[step], history) for step in steps if _under(files[step], step, "fetches")),
        passages=tuple(
            _passage(manifest, files[step], history) for step, manifest in steps.items() if _is_door(manifest)
        ),
        sources=_sources(steps, files, history),
        domains=_domains(_of_stage(steps, files, "split", "kept"), history),
        splits=_splits(steps, files, history),
        languages=_languages(_of_stage(steps, files, "split", "kept"), history),
    )


def _is_door(manifest: Mapping[str, Any]) -> bool:
    folders = {name.split("/", 1)[0] for name in manifest["outputs"]}
    return {"kept", "dropped"} <= folders or (manifest["stage"] == "ingest" and "kept" in folders)


def _under(names: Sequence[str], step: str, folder: str) -> list[str]:
    return [name for name in names if name.startswith(f"{step}/{folder}/") and name.endswith(".parquet")]


def _of_stage(
    steps: Mapping[str, Mapping[str, Any]], files: Mapping[str, list[str]], stage: str, folder: str
) -> list[str]:
    return [
        name
        for step, manifest in steps.items()
        if manifest["stage"] == stage
        for name in _under(files[step], step, folder)
    ]


def _fetched(step: str, names: Sequence[str], history: Files) -> Fetched:
    table = pl.concat([pl.read_parquet(history.path(name)) for name in _under(names, step, "fetches")], how="diagonal")
    outcomes = table.group_by("outcome").len().sort("len", "outcome", descending=[True, False])
    forbidden = (
        table.filter(pl.col("outcome") == "forbidden")
        .group_by(pl.col("reason").fill_null("robots.txt"))
        .len()
        .sort("len", "reason", descending=[True, False])
    )
    return Fetched(step, dict(outcomes.iter_rows()), dict(forbidden.iter_rows()))


def _passage(manifest: Mapping[str, Any], names: Sequence[str], history: Files) -> Passage:
    step = manifest["step"]
    rows = {
        folder: sum(out["rows"] or 0 for name, out in manifest["outputs"].items() if name.startswith(f"{folder}/"))
        for folder in ("kept", "dropped")
    }
    reasons = [
        pl.scan_parquet(history.path(name)).group_by("reason").len().collect()
        for name in _under(names, step, "dropped")
    ]
    counted = (
        pl.concat(reasons).group_by("reason").agg(pl.col("len").sum()).sort("len", "reason", descending=[True, False])
        if reasons
        else pl.DataFrame(schema={"reason": pl.String, "len": pl.UInt32})
    )
    size = sum(out["bytes"] for name, out in manifest["outputs"].items() if name.startswith("kept/"))
    return Passage(
        step=step,
        stage=manifest["stage"],
        read=rows["kept"] + rows["dropped"],
        kept=rows["kept"],
        dropped=rows["dropped"],
        kept_bytes=_text_bytes(_under(names, step, "kept"), history) if size <= SCAN_LIMIT else None,
        reasons=tuple((str(reason), int(count)) for reason, count in counted.iter_rows()),
    )


def _text_bytes(names: Sequence[str], history: Files) -> int | None:
    if not names:
        return None
    size = pl.col("text").str.len_bytes().cast(pl.Int64).sum()
    return sum(pl.scan_parquet(history.path(name)).select(size).collect().item() for name in names)


def _by_licence(names: Sequence[str], history: Files, training_only: bool) -> pl.DataFrame:
    parts = []
    for name in names:
        rows = pl.scan_parquet(history.path(name))
        rows = rows.filter(pl.col("split") == "train") if training_only else rows
        sums = pl.len().alias("documents"), pl.col("text").str.len_bytes().cast(pl.Int64).sum().alias("bytes")
        parts.append(rows.group_by("source", "licence").agg(*sums).collect())
    empty = {"source": pl.String, "licence": pl.String, "documents": pl.UInt32, "bytes": pl.Int64}
    table = pl.concat([pl.DataFrame(schema=empty), *parts], how="vertical_relaxed")
    return table.group_by("source", "licence").agg(pl.col("documents", "bytes").sum())


def _sources(
    steps: Mapping[str, Mapping[str, Any]], files: Mapping[str, list[str]], history: Files
) -> tuple[dict[str, Any], ...]:
    ingested = _by_licence(_of_stage(steps, files, "ingest", "kept"), history, training_only=False)
    trained = _by_licence(_of_stage(steps, files, "split", "kept"), history, training_only=True)
    table = ingested.join(
        trained.rename({"documents": "trained_documents", "bytes": "trained_bytes"}),
        on=["source", "licence"],
        how="left",
    )
    return tuple(
        table.with_columns(pl.col("trained_documents", "trained_bytes").fill_null(0))
        .sort("bytes", "source", "licence", descending=[True, False, False])
        .to_dicts()
    )


def _domains(names: Sequence[str], history: Files) -> tuple[dict[str, Any], ...]:
    domain = pl.col("url").str.extract(r"^https?://([^/?#]+)").alias("domain")
    parts = [
        pl.scan_parquet(history.path(name))
        .filter(pl.col("split") == "train")
        .select(domain, pl.col("text").str.len_bytes().cast(pl.Int64).alias("bytes"))
        .drop_nulls("domain")
        .group_by("domain")
        .agg(pl.len().cast(pl.Int64).alias("documents"), pl.col("bytes").sum())
        .collect()
        for name in names
    ]
    if not parts:
        return ()
    table = pl.concat(parts).group_by("domain").agg(pl.col("documents", "bytes").sum())
    largest = table.sort("bytes", "domain", descending=[True, False]).head(max(1, -(-table.height // 10)))
    return tuple(largest.to_dicts())


def _languages(names: Sequence[str], history: Files) -> tuple[str, ...]:
    parts = [
        pl.scan_parquet(history.path(name)).filter(pl.col("split") == "train").group_by("lang").len().collect()
        for name in names
    ]
    if not parts:
        return ()
    table = pl.concat(parts).drop_nulls("lang").group_by("lang").agg(pl.col("len").sum())
    return tuple(table.sort("len", "lang", descending=[True, False])["lang"])


def _splits(
    steps: Mapping[str, Mapping[str, Any]], files: Mapping[str, list[str]], history: Files
) -> tuple[dict[str, Any], ...]:
    rows = []
    for split in SPLITS:
        sums = pl.len().cast(pl.Int64), *(pl.col(name).cast(pl.Int64).sum() for name in ("n_tokens", "n_bytes"))
        parts = [
            pl.scan_parquet(history.path(name)).select(sums).collect().row(0)
            for name in _of_stage(steps, files, "tokenise", split)
        ]
        documents, tokens, size = (sum(column) for column in zip(*parts, strict=True)) if parts else (0, 0, 0)
        rows.append({"split": split, "documents": documents, "tokens": tokens, "bytes": size})
    return tuple(rows)
