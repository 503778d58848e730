"""What became of the documents: from what was fetched to the tokens the model was trained on, stage by stage.

`FunnelRow` is the one count there is, by stage, source and generation; console, commands, Prefect's tables and the
report add it up as they need it. How many documents came and stayed is in the manifests; why others left, in
`dropped/`. A document that a later version replaced, or that is gone, leaves at the door of `versions`, and counts
neither as trained nor among the tokens of its split.

Tables are read one shard at a time, and of each the columns that are counted: text where a stage wrote it, and only if
somebody wants it measured; of what is trained on, the sizes that `tokenise` wrote down.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

import polars as pl

from llmcore.artifacts.lineage import manifests_behind
from llmcore.artifacts.manifest import Manifest
from llmcore.artifacts.recipe import StoreFiles
from llmcore.artifacts.shards import generation_name, generation_of, source_of
from llmcore.artifacts.stage import Files
from llmcore.artifacts.store import Store
from llmcore.schema import DROPPED_SCHEMA

SPLITS = ("train", "validation", "test")
Door = tuple[str, str]  # source, generation
RULE = pl.coalesce(pl.col("detail").str.json_path_match("$.rule"), "reason").alias("rule")


@dataclass(frozen=True)
class Fetched:
    """What came of the addresses that one crawl asked for: outcome -> number, in all and by generation."""

    step: str
    outcomes: Mapping[str, int]
    forbidden: Mapping[str, int]
    generations: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class FunnelRow:
    """What came of the documents of one source and generation at one stage.

    stage:      the step's name ("ingest manual", "clean").
    source:     as the configuration names it. generation: "g000" for the first snapshot.
    read:       documents that came; kept + dropped of them.
    bytes_read: UTF-8 bytes of their texts; None where nobody measured them, and at ingest, which reads files.
    bytes_kept: of the texts that stayed; None where nobody measured them, and at `versions`, which writes no text.
    reasons:    rule (the reason, where a stage names no rule) -> documents that left by it, most frequent first.
    """

    stage: str
    source: str
    generation: str
    read: int
    kept: int
    dropped: int
    bytes_read: int | None
    bytes_kept: int | None
    reasons: Mapping[str, int]

    def plain(self) -> dict[str, Any]:
        """As JSON has it; keys are the fields."""
        return asdict(self)


@dataclass(frozen=True)
class Passage:
    """One stage's rows together. kept_bytes: None where nobody measured them."""

    step: str
    read: int
    kept: int
    dropped: int
    kept_bytes: int | None
    reasons: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Funnel:
    """fetched, rows: in chain order. sources: one row for each source and licence. splits: tokens by split.

    sources columns: source, licence, documents, bytes (at ingest), trained_documents, trained_bytes.
    domains columns: domain, documents, bytes: the largest tenth of the web domains in the training split.
    splits columns: split, documents, tokens, bytes. languages: codes of the training split, most frequent first.
    """

    fetched: tuple[Fetched, ...]
    rows: tuple[FunnelRow, ...]
    sources: tuple[dict[str, Any], ...]
    domains: tuple[dict[str, Any], ...]
    splits: tuple[dict[str, Any], ...]
    languages: tuple[str, ...]

    @property
    def passages(self) -> tuple[Passage, ...]:
        """The rows added up stage by stage."""
        return passages(self.rows)

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
        rows=tuple(funnel_rows(manifests, history)),
        sources=_sources(_of_role(steps, files, "ingest", "kept"), history, trained),
        domains=_domains(trained),
        splits=_splits(tokens, history, gone),
        languages=_languages(trained),
    )


def rows_behind(store: Store, tops: Iterable[Manifest], only: str = "", sizes: bool = False) -> list[FunnelRow]:
    """The rows of every stage behind some artifacts, or of one step alone; see `funnel_rows`."""
    steps = {manifest.step: manifest for manifest in manifests_behind(store, tops)}
    files = {f"{step}/{name}": output for step, made in steps.items() for name, output in made.outputs.items()}
    return funnel_rows([made.public() for made in steps.values()], StoreFiles(store, files), only, sizes)


def funnel_rows(
    manifests: Sequence[Mapping[str, Any]], history: Files, only: str = "", sizes: bool = True
) -> list[FunnelRow]:
    """What came of the documents, in chain order.

    manifests: public records in chain order; of several of one step the last counts.
    history:   their files with their step in front ("clean/dropped/g000-notes-00000.parquet").
    only:      the step whose rows are wanted; "" for all.
    sizes:     measure texts too, which reads all of them.
    """
    rows: list[FunnelRow] = []
    texts: dict[str, Counter[Door]] = {}
    split: Mapping[str, Any] = {"step": "", "outputs": {}}
    for manifest in {record["step"]: record for record in manifests}.values():
        folders = {name.split("/", 1)[0] for name in manifest["outputs"]}
        if manifest["role"] == "split":
            split = manifest
        if manifest["role"] == "versions":
            # it writes no document again: what stands is what was chosen, without what left
            left = _gone_from(manifest, split, history) if only in ("", manifest["step"]) else {}
            read = _documents(split, "kept")
            kept = Counter({door: count - left.get(door, Counter()).total() for door, count in read.items()})
        elif "kept" in folders and ("dropped" in folders or manifest["role"] == "ingest"):
            left = _dropped_by_rule(manifest, history) if only in ("", manifest["step"]) else {}
            kept = _documents(manifest, "kept")
            texts[manifest["step"]] = _text_bytes(manifest, history) if sizes else Counter()
        else:
            continue
        if only in ("", manifest["step"]):
            rows += _rows(manifest, kept, left, texts, sizes)
    return rows


def passages(rows: Iterable[FunnelRow]) -> tuple[Passage, ...]:
    """Rows added up stage by stage, in their order."""
    of: dict[str, list[FunnelRow]] = {}
    for row in rows:
        of.setdefault(row.stage, []).append(row)
    return tuple(
        Passage(
            step=stage,
            read=sum(row.read for row in part),
            kept=sum(row.kept for row in part),
            dropped=sum(row.dropped for row in part),
            kept_bytes=None
            if any(row.bytes_kept is None for row in part)
            else sum(row.bytes_kept or 0 for row in part),
            reasons=most_first(sum((Counter(row.reasons) for row in part), Counter[str]())),
        )
        for stage, part in of.items()
    )


def most_first(counts: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """What is counted and how often, most frequent first."""
    return tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _rows(
    manifest: Mapping[str, Any],
    kept: Counter[Door],
    left: Mapping[Door, Counter[str]],
    texts: Mapping[str, Counter[Door]],
    sizes: bool,
) -> Iterator[FunnelRow]:
    step = manifest["step"]
    origins = [item["step"] for item in manifest["inputs"].get("documents", ())]
    came = sum((texts[origin] for origin in origins if origin in texts), Counter[Door]())
    for source, generation in sorted({*kept, *left}, key=lambda door: (door[0], generation_of(door[1]) or 0)):
        door = source, generation
        reasons = left.get(door, Counter())
        yield FunnelRow(
            stage=step,
            source=source,
            generation=generation,
            read=kept[door] + reasons.total(),
            kept=kept[door],
            dropped=reasons.total(),
            bytes_read=came[door] if sizes and origins else None,
            bytes_kept=texts[step][door] if sizes and step in texts else None,
            reasons=dict(most_first(reasons)),
        )


def _documents(manifest: Mapping[str, Any], folder: str) -> Counter[Door]:
    """Rows of an artifact's folder by source and generation."""
    counts: Counter[Door] = Counter()
    for name, output in manifest["outputs"].items():
        if name.startswith(f"{folder}/"):
            counts[_door(name)] += output["rows"] or 0
    return counts


def _door(name: str) -> Door:
    return source_of(name), _generation(name)


def _generation(name: str) -> str:
    return generation_name(generation_of(name) or 0)


def _dropped_by_rule(manifest: Mapping[str, Any], history: Files) -> dict[Door, Counter[str]]:
    """How many documents of each source and generation left by which rule."""
    found: dict[Door, Counter[str]] = {}
    for name in _under(manifest["outputs"], "", "dropped"):
        counts = found.setdefault(_door(name), Counter())
        if manifest["outputs"][name]["rows"]:
            table = pl.scan_parquet(history.path(f"{manifest['step']}/{name}")).group_by(RULE).len().collect()
            counts.update(dict(table.iter_rows()))
    return found


def _gone_from(manifest: Mapping[str, Any], split: Mapping[str, Any], history: Files) -> dict[Door, Counter[str]]:
    """The same of `versions`, whose tables hold the documents of a generation, whatever their source."""
    found: dict[Door, Counter[str]] = {}
    for name in _under(manifest["outputs"], "", "dropped"):
        if not manifest["outputs"][name]["rows"]:
            continue
        gone = pl.read_parquet(history.path(f"{manifest['step']}/{name}")).select("id", RULE)
        for shard in _under(split["outputs"], "", "kept"):
            if generation_of(shard) == generation_of(name):
                ids = pl.scan_parquet(history.path(f"{split['step']}/{shard}")).select("id")
                table = gone.lazy().join(ids, on="id", how="semi").group_by("rule").len().collect()
                if table.height:
                    found.setdefault(_door(shard), Counter()).update(dict(table.iter_rows()))
    return found


def _text_bytes(manifest: Mapping[str, Any], history: Files) -> Counter[Door]:
    """UTF-8 bytes of the texts that an artifact keeps."""
    size = pl.col("text").str.len_bytes().cast(pl.Int64).sum()
    found: Counter[Door] = Counter()
    for name in _under(manifest["outputs"], "", "kept"):
        found[_door(name)] += pl.scan_parquet(history.path(f"{manifest['step']}/{name}")).select(size).collect().item()
    return found


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


def _under(names: Iterable[str], step: str, folder: str) -> list[str]:
    prefix = f"{step}/{folder}/" if step else f"{folder}/"
    return [name for name in names if name.startswith(prefix) and name.endswith(".parquet")]


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
