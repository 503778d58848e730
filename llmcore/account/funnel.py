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
from pathlib import Path, PurePosixPath
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
SHARDS_LOOKED_AT = 64  # for the rule that took most
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
        fetched=tuple(
            _fetched(step, files[step], history) for step in steps if files_under(files[step], step, "fetches")
        ),
        rows=tuple(funnel_rows(manifests, history)),
        sources=_sources(_of_role(steps, files, "ingest", "kept"), history, trained),
        domains=_domains(trained),
        splits=_splits(tokens, history, gone),
        languages=_languages(trained),
    )


def funnel_rows(manifests: Sequence[Mapping[str, Any]], history: Files, sizes: bool = True) -> list[FunnelRow]:
    """What came of the documents, in chain order.

    manifests: public records in chain order; of several of one step the last counts.
    history:   their files with their step in front ("clean/dropped/g000-notes-00000.parquet").
    sizes:     measure texts too, which reads all of them.
    """
    return list(_all_rows([made_of(record) for record in manifests], history, sizes))


def rows_behind(store: Store, top: Manifest, sizes: bool = False) -> list[FunnelRow]:
    """The rows of every stage behind an artifact, its own among them."""
    found = {manifest.step: manifest for manifest in manifests_behind(store, [top])}
    return list(_all_rows([made_of(manifest) for manifest in found.values()], labelled(store, found.values()), sizes))


def counts_of(store: Store, made: Manifest, before: Iterable[Manifest]) -> list[FunnelRow]:
    """The rows of one artifact without sizes and reasons: from manifests alone, however many shards there are.

    before: the artifacts whose documents it read.
    """
    mine, origins = made_of(made), list(before)
    if not mine.is_door:
        return []
    split = next((made_of(origin) for origin in origins if origin.role == "split"), NO_SPLIT)
    opened = labelled(store, [made, *origins] if made.role == "versions" else [])  # of the others no file is opened
    left = _left_by_door(mine, split, opened, reasons=False)
    return list(_rows(mine, _kept(mine, split, left), left))


def worst_rule(store: Store, made: Manifest, source: str, generation: str) -> str:
    """The rule that took most of a source's generation, judged by some shards if there are many; "" if none did."""
    shards = [
        name
        for name in files_under(made.outputs, "", "dropped")
        if source_of(name) in (source, "") and generation_of_file(name) == generation
    ]
    some = [name for name in shards if made.outputs[name].rows]
    some = some[:: max(1, len(some) // SHARDS_LOOKED_AT)]
    counts = sum((_by_rule(StoreFiles(store, made.outputs).path(name)) for name in some), Counter[str]())
    return next((rule for rule, _ in most_first(counts)), "")


def labelled(store: Store, made: Iterable[Manifest]) -> StoreFiles:
    """The files of some artifacts, with their step in front."""
    return StoreFiles(store, {f"{each.step}/{name}": output for each in made for name, output in each.outputs.items()})


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


@dataclass(frozen=True)
class Made:
    """What of a manifest is counted. origins: the steps whose documents it read. rows: of each file."""

    step: str
    role: str
    origins: tuple[str, ...]
    rows: Mapping[str, int | None]

    def documents(self, folder: str) -> Counter[Door]:
        """Rows of a folder by source and generation."""
        counts: Counter[Door] = Counter()
        for name, rows in self.rows.items():
            if name.startswith(f"{folder}/"):
                counts[_door(name)] += rows or 0
        return counts

    @property
    def is_door(self) -> bool:
        """Whether documents stay or leave here."""
        folders = {name.split("/", 1)[0] for name in self.rows}
        return self.role == "versions" or ("kept" in folders and ("dropped" in folders or self.role == "ingest"))


NO_SPLIT = Made("", "", (), {})


def made_of(manifest: Mapping[str, Any] | Manifest) -> Made:
    """Of a manifest, or of its public record."""
    if isinstance(manifest, Manifest):
        origins, rows = manifest.inputs.get("documents", ()), {name: out.rows for name, out in manifest.outputs.items()}
        return Made(manifest.step, manifest.role, tuple(origin["step"] for origin in origins), rows)
    origins, rows = manifest["inputs"].get("documents", ()), {n: out["rows"] for n, out in manifest["outputs"].items()}
    return Made(manifest["step"], manifest["role"], tuple(origin["step"] for origin in origins), rows)


def _all_rows(manifests: Iterable[Made], history: Files, sizes: bool) -> Iterator[FunnelRow]:
    texts: dict[str, Counter[Door]] = {}
    split = NO_SPLIT
    for made in {each.step: each for each in manifests}.values():
        if made.role == "split":
            split = made
        if not made.is_door:
            continue
        left = _left_by_door(made, split, history, reasons=True)
        if sizes and made.role != "versions":
            texts[made.step] = _text_bytes(made, history)
        yield from _rows(made, _kept(made, split, left), left, texts)


def _kept(made: Made, split: Made, left: Mapping[Door, Counter[str]]) -> Counter[Door]:
    if made.role != "versions":
        return made.documents("kept")
    # it writes no document again: what stands is what was chosen, without what left
    return Counter({door: n - left.get(door, Counter[str]()).total() for door, n in split.documents("kept").items()})


def _rows(
    made: Made,
    kept: Counter[Door],
    left: Mapping[Door, Counter[str]],
    texts: Mapping[str, Counter[Door]] | None = None,
) -> Iterator[FunnelRow]:
    texts = texts or {}
    measured = bool(made.origins) and all(origin in texts for origin in made.origins)
    came = sum((texts[origin] for origin in made.origins if measured), Counter[Door]())
    for door in sorted({*kept, *left}, key=lambda door: (door[0], generation_of(door[1]) or 0)):
        reasons = left.get(door, Counter[str]())
        yield FunnelRow(
            stage=made.step,
            source=door[0],
            generation=door[1],
            read=kept[door] + reasons.total(),
            kept=kept[door],
            dropped=reasons.total(),
            bytes_read=came[door] if measured else None,
            bytes_kept=texts[made.step][door] if made.step in texts else None,
            reasons={rule: count for rule, count in most_first(reasons) if rule},
        )


def _door(name: str) -> Door:
    return source_of(name), generation_of_file(name)


def generation_of_file(name: str) -> str:
    return generation_name(generation_of(name) or 0)


def _left_by_door(made: Made, split: Made, history: Files, reasons: bool) -> dict[Door, Counter[str]]:
    """How many documents of each source and generation left by which rule ("" for all where no reasons are wanted)."""
    found: dict[Door, Counter[str]] = {}
    for name in files_under(made.rows, "", "dropped"):
        if made.role == "versions":
            for door, counts in _gone_from(made, name, split, history) if made.rows[name] else ():
                found.setdefault(door, Counter()).update(counts)
        elif reasons and made.rows[name]:
            found.setdefault(_door(name), Counter()).update(_by_rule(history.path(f"{made.step}/{name}")))
        else:
            found.setdefault(_door(name), Counter()).update({"": made.rows[name] or 0})
    return found


def _by_rule(path: Path) -> Counter[str]:
    return Counter(dict(pl.scan_parquet(path).group_by(RULE).len().collect().iter_rows()))


def _gone_from(made: Made, name: str, split: Made, history: Files) -> Iterator[tuple[Door, Counter[str]]]:
    """The same of a table of `versions`, which holds the documents of a generation, whatever their source."""
    gone = pl.read_parquet(history.path(f"{made.step}/{name}"), columns=["id", "reason", "detail"]).select("id", RULE)
    for shard in files_under(split.rows, "", "kept"):
        if generation_of(shard) == generation_of(name):
            ids = pl.scan_parquet(history.path(f"{split.step}/{shard}")).select("id")
            table = gone.lazy().join(ids, on="id", how="semi").group_by("rule").len().collect()
            yield _door(shard), Counter(dict(table.iter_rows()))


def _text_bytes(made: Made, history: Files) -> Counter[Door]:
    """UTF-8 bytes of the texts that an artifact keeps."""
    size = pl.col("text").str.len_bytes().cast(pl.Int64).sum()
    found: Counter[Door] = Counter()
    for name in files_under(made.rows, "", "kept"):
        found[_door(name)] += pl.scan_parquet(history.path(f"{made.step}/{name}")).select(size).collect().item()
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


def files_under(names: Iterable[str], step: str, folder: str) -> list[str]:
    prefix = f"{step}/{folder}/" if step else f"{folder}/"
    return [name for name in names if name.startswith(prefix) and name.endswith(".parquet")]


def _of_role(
    steps: Mapping[str, Mapping[str, Any]], files: Mapping[str, list[str]], role: str, folder: str
) -> list[str]:
    return [
        name
        for step, manifest in steps.items()
        if manifest["role"] == role
        for name in files_under(files[step], step, folder)
    ]


def _fetched(step: str, names: Sequence[str], history: Files) -> Fetched:
    tables = {
        generation_of_file(name): pl.read_parquet(history.path(name)) for name in files_under(names, step, "fetches")
    }
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
