"""Decontamination: drop documents that hold the text of a benchmark item, by a named definition of overlap.

Two stages. `benchmarks` (global) indexes the word n-grams of the items' questions, options and answers; `decontaminate`
(per shard) looks them up. Options count piece by piece, so another layout of them changes nothing. Short texts are no
evidence by themselves: a field of fewer than n words counts only together with the rest of its item.

Every run also looks for canaries, one item of each benchmark word for word, and fails if one is not caught: a wrong
setting must not look like a clean corpus.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import Field, field_validator

from llmcore import quickstart
from llmcore.artifacts.digests import file_digests, forget
from llmcore.artifacts.params import Params
from llmcore.artifacts.stage import Files, Run, ShardResult, Stage
from llmcore.errors import LlmcoreError, UsageError
from llmcore.schema import detail_json, dropped

# name -> bundled file: a hundred items of each, which the name says; the whole sets have 1,319, 10,042 and 817
SAMPLES = {"gsm8k-100": "gsm8k.jsonl", "hellaswag-100": "hellaswag.jsonl", "truthfulqa_mc1-100": "truthfulqa_mc1.jsonl"}
BUNDLED = tuple(SAMPLES)
REPORTED = 0.2  # overlaps from this share on are listed in the report, dropped or not
COMMON_DOCUMENTS = 20  # an n-gram in no more documents than this is never called common
CALCULATOR = re.compile(r"<<[^>]*>>")  # GSM8K's annotations, which no page that quotes it shows

# Passages and contexts are left out: they are quoted from the open web, and no evidence of the question.
QUESTION = ("question", "prompt", "ctx", "query", "problem", "text")
OPTIONS = ("choices", "endings", "options")
ANSWER = ("upstream_answer", "answer", "solution", "canonical_solution", "target", "expected")


@dataclass(frozen=True)
class Definition:
    """n: words in an n-gram; shortest: texts of fewer words are ignored; measure: what the threshold is a share of."""

    n: int
    shortest: int
    measure: Literal["words", "ngrams", "any"]
    threshold: float


DEFINITIONS = {
    "tulu3": Definition(8, 5, "words", 0.5),  # arXiv 2411.15124: half of an item's words under shared 8-grams
    "palm": Definition(8, 8, "ngrams", 0.7),  # arXiv 2204.02311: 70 % of the 8-grams
    "gpt3": Definition(13, 8, "any", 0.0),  # arXiv 2005.14165: any 13-gram, shorter items whole from 8 words on
    "datatrove": Definition(12, 12, "any", 0.0),  # its default: any 12-gram
}
DefinitionName = Literal["tulu3", "palm", "gpt3", "datatrove"]


class BenchmarkParams(Params):
    """What the index holds. Files of the user's enter by name and digest; where they lie is run.outside["paths"]."""

    bundled: tuple[str, ...] = BUNDLED
    files: dict[str, str] = Field(default_factory=dict, description="name -> SHA-256 of a JSONL file")
    definition: DefinitionName = "tulu3"
    common_items: int = Field(
        default=10, ge=1, description="an n-gram in more items than this is a template, and ignored"
    )
    common_share: float = Field(
        default=0.01, gt=0, le=1, description="and so is one in a larger share of the documents"
    )


class OverlapParams(Params):
    threshold: float | None = Field(
        default=None, ge=0, le=1, description="share that drops a document; null: the definition's"
    )


class DecontaminateParams(Params):
    """The `decontaminate` section of a configuration."""

    benchmarks: tuple[str, ...] = Field(
        default=BUNDLED, description="bundled samples of 100 items, or paths of JSONL files"
    )
    definition: DefinitionName = Field(default="tulu3", description="what counts as overlap")
    threshold: float | None = Field(
        default=None, ge=0, le=1, description="share that drops a document; null: the definition's"
    )

    @field_validator("benchmarks")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ValueError(f"name at least one benchmark, of {', '.join(BUNDLED)} or a path of a JSONL file")
        for name in names:
            if name not in BUNDLED and not name.endswith((".jsonl", ".json")):
                raise ValueError(f"no benchmark {name!r}; there are {', '.join(BUNDLED)}, and paths of JSONL files")
        same = [os.path.normpath(name) for name in names]
        for name, path in zip(names, same, strict=True):
            if same.count(path) > 1:
                raise ValueError(f"{name!r} is named twice; name it once")
        return names

    def paths(self) -> dict[str, str]:
        """Name -> path of the user's own benchmarks; what run.outside["paths"] must hold.

        The name is the file's without suffix; where another benchmark has that one too, with the first digits of its
        digest behind it. Where a file lies is no part of its name. Raises UsageError if a file is missing.
        """
        return {name: str(path) for name, (path, _) in self._files().items()}

    def benchmark_params(self) -> BenchmarkParams:
        """The index stage's parameters. Raises UsageError if a file is missing."""
        bundled = tuple(name for name in self.benchmarks if name in BUNDLED)
        files = {name: digest for name, (_, digest) in self._files().items()}
        return BenchmarkParams(bundled=bundled, files=files, definition=self.definition)

    def _files(self) -> dict[str, tuple[Path, str]]:
        own = [Path(name).expanduser() for name in self.benchmarks if name not in BUNDLED]
        missing = next((path for path in own if not path.is_file()), None)
        if missing is not None:
            raise UsageError(f"decontaminate.benchmarks: {missing}: no such file")
        try:
            digests = file_digests(own)
        except OSError as error:
            raise UsageError(
                f"decontaminate.benchmarks: {error.filename}: cannot be read ({error.strerror})"
            ) from error
        taken = [path.stem for path in own] + [name for name in self.benchmarks if name in BUNDLED]
        return {
            path.stem if taken.count(path.stem) == 1 else f"{path.stem}-{digest[:8]}": (path, digest)
            for path, digest in digests.items()
        }

    def overlap_params(self) -> OverlapParams:
        """The per-shard stage's parameters."""
        return OverlapParams(threshold=self.threshold)


def data(params: BenchmarkParams) -> dict[str, Path]:
    """The bundled benchmarks' files."""
    return {SAMPLES[name]: _bundled(name) for name in params.bundled if name in SAMPLES}


def _bundled(name: str) -> Path:
    return quickstart.bundled(f"benchmarks/{SAMPLES[name]}")


BENCHMARKS = Stage(
    "benchmarks",
    version=2,
    role="benchmarks",
    params=BenchmarkParams,
    function="llmcore.selection.decontaminate:benchmarks",
    data="llmcore.selection.decontaminate:data",
)
STAGE = Stage(
    "decontaminate",
    version=1,
    params=OverlapParams,
    function="llmcore.selection.decontaminate:decontaminate",
    kind="per_shard",
    broadcast=("benchmarks",),
)


def benchmarks(inputs: Mapping[str, Files], params: BenchmarkParams, run: Run) -> dict[str, Any]:
    """Write items.parquet (one row a field of an item), ngrams.parquet (hash, row, start, length), definition.json.

    With an input `documents`, n-grams found in more than `common_share` of its documents are left out as boilerplate.
    Raises UsageError for a benchmark without an item that can be scored.
    """
    from llmcore.selection.overlap import ngrams

    definition = DEFINITIONS[params.definition]
    pieces = pl.DataFrame(
        [piece for name in (*params.bundled, *sorted(params.files)) for piece in _pieces(name, params, run)],
        schema={"benchmark": pl.String, "item": pl.String, "field": pl.String, "text": pl.String},
        orient="row",
    )
    key = ["benchmark", "item", "field"]
    grams = ngrams(pieces["text"], definition.n, definition.shortest)
    grams = pieces.drop("text")[grams["piece"]].hstack(grams)
    # A field's pieces lie one behind the other; the place of a word in its field says which words are covered.
    room = grams.group_by("piece").agg((pl.col("start") + pl.col("length")).max().alias("room"))
    room = room.join(grams.select("piece", *key).unique(), on="piece").sort("piece")
    room = room.with_columns((pl.col("room").cum_sum() - pl.col("room")).over(key).alias("offset"))
    grams = grams.join(room.select("piece", "offset"), on="piece").with_columns(pl.col("start") + pl.col("offset"))
    template = grams.group_by("hash").agg(pl.struct("benchmark", "item").n_unique().alias("items"))
    grams = grams.join(template.filter(pl.col("items") <= params.common_items), on="hash", how="semi")
    common = _common(grams, inputs.get("documents"), params.common_share)
    grams = grams.filter(~pl.col("hash").is_in(common.implode()))

    words = _covered(grams, definition.measure, key).rename({"covered": "total"})
    fields = (
        pieces.group_by(key, maintain_order=True)
        .agg(pl.col("text"))
        .join(words, on=key, how="left", maintain_order="left")
        .with_columns(pl.col("total").fill_null(0))
        .with_row_index("row")
    )
    scored = fields.group_by("benchmark", "item").agg(pl.col("total").sum())
    names = (*params.bundled, *sorted(params.files))
    for name in names:
        if not scored.filter((pl.col("benchmark") == name) & (pl.col("total") > 0)).height:
            raise UsageError(
                f"benchmark {name!r} would match nothing: no item has a text of {definition.shortest} words; "
                f"its lines need one of the keys {', '.join(QUESTION)}"
            )
    grams = grams.join(fields.select("row", *key), on=key).select("hash", "row", "start", "length")
    fields.write_parquet(run.out / "items.parquet", compression="zstd")
    grams.sort("hash", "row", "start").write_parquet(run.out / "ngrams.parquet", compression="zstd")
    (run.out / "definition.json").write_text(json.dumps({"definition": params.definition}) + "\n")
    return {
        "benchmarks": len(params.bundled) + len(params.files),
        "items": scored.height,
        **{f"items_{name}": int((scored["benchmark"] == name).sum()) for name in names},
        "items_too_short": scored.filter(pl.col("total") == 0).height,
        "ngrams": grams["hash"].n_unique(),
        "common_ngrams": len(common) + template.filter(pl.col("items") > params.common_items).height,
    }


def decontaminate(documents: pl.DataFrame, params: OverlapParams, benchmarks: Files) -> ShardResult:
    """Drop documents whose overlap with an item reaches the threshold; list all overlaps of note in `overlaps`."""
    definition = DEFINITIONS[json.loads(benchmarks.path("definition.json").read_text())["definition"]]
    threshold = definition.threshold if params.threshold is None else params.threshold
    items = pl.read_parquet(benchmarks.path("items.parquet"))
    grams = pl.read_parquet(benchmarks.path("ngrams.parquet"))

    canaries = _canaries(items)
    texts = pl.concat([documents["text"], canaries["text"]])
    overlaps = _overlaps(texts, items, grams, definition)
    hits = overlaps.filter(pl.col("overlap") >= threshold)
    for row, name in enumerate(canaries["benchmark"], documents.height):
        if not hits.filter((pl.col("document") == row) & (pl.col("benchmark") == name)).height:
            raise LlmcoreError(
                f"decontaminate: an item of {name!r} quoted word for word was not caught; "
                f"lower decontaminate.threshold ({threshold:g})"
            )

    worst = (
        hits.filter(pl.col("document") < documents.height)
        .sort("overlap", "benchmark", "item", descending=[True, False, False])
        .unique("document", keep="first", maintain_order=True)
        .with_columns(pl.col("document").cast(pl.UInt32))
    )
    numbered = documents.with_row_index("document").join(worst, on="document", how="left", maintain_order="left")
    lost = numbered.filter(pl.col("overlap").is_not_null())
    kept = numbered.filter(pl.col("overlap").is_null()).select(documents.columns)
    detail = detail_json(
        benchmark=pl.col("benchmark"),
        item=pl.col("item"),
        overlap=pl.col("overlap").round(4),
        threshold=float(threshold),
    )
    report = overlaps.filter((pl.col("document") < documents.height) & (pl.col("overlap") >= min(REPORTED, threshold)))
    report = report.with_columns(documents["id"].gather(report["document"]).alias("id"))
    report = report.select("id", "benchmark", "item", "overlap", (pl.col("overlap") >= threshold).alias("dropped"))
    by_benchmark = {f"dropped_{name}": int((lost["benchmark"] == name).sum()) for name in canaries["benchmark"]}
    return ShardResult(
        {"kept": kept, "dropped": dropped(lost, "decontaminate", "benchmark_overlap", detail), "overlaps": report},
        {"documents": documents.height, "kept": kept.height, **by_benchmark},
    )


def _overlaps(texts: pl.Series, items: pl.DataFrame, grams: pl.DataFrame, definition: Definition) -> pl.DataFrame:
    """document, benchmark, item, overlap: the larger of the whole item's share and of a field long enough alone."""
    from llmcore.selection.overlap import find

    keys = grams["hash"].unique().sort()
    found = find(texts, keys.to_numpy(), sorted(grams["length"].unique()))
    matched = found.join(
        grams.with_columns(keys.search_sorted(grams["hash"]).cast(pl.Int64).alias("key")), on="key"
    ).drop("hash")
    covered = _covered(matched, definition.measure, ["document", "row"])
    fields = covered.join(items.select("row", "benchmark", "item", "field", "total"), on="row")
    # Options alone are no evidence (they are often stock phrases), and neither is a field shorter than an n-gram.
    alone = pl.col("field").ne("options") & (pl.col("total") >= (definition.n if definition.measure == "words" else 1))
    item = ["benchmark", "item"]
    pooled = items.group_by(item).agg(pl.col("total").sum().alias("item_total"))
    return (
        fields.group_by("document", *item)
        .agg(
            pl.col("covered").sum(),
            pl.when(alone).then(pl.col("covered") / pl.col("total")).max().alias("field_overlap"),
        )
        .join(pooled, on=item)
        .select(
            "document",
            *item,
            pl.max_horizontal("field_overlap", pl.col("covered") / pl.col("item_total")).alias("overlap"),
        )
        .sort("document", *item)
    )


def _covered(grams: pl.DataFrame, measure: str, key: list[str]) -> pl.DataFrame:
    """For each `key`: how many words of the field lie under these n-grams (or how many n-grams there are)."""
    width = pl.col("length") if measure == "words" else pl.lit(1, pl.Int64)
    places = grams.select(*key, pl.int_ranges(pl.col("start"), pl.col("start") + width).alias("place"))
    places = places.explode("place", empty_as_null=False)
    return places.unique().group_by(key).agg(pl.len().cast(pl.Int64).alias("covered")).sort(key)


def _canaries(items: pl.DataFrame) -> pl.DataFrame:
    """benchmark, text: the first item of each benchmark that can be scored, with all its texts."""
    whole = items.group_by("benchmark", "item", maintain_order=True).agg(
        pl.col("text").list.explode(keep_nulls=False, empty_as_null=False).str.join("\n"), pl.col("total").sum()
    )
    return whole.filter(pl.col("total") > 0).unique("benchmark", keep="first", maintain_order=True)


def _common(grams: pl.DataFrame, documents: Files | None, share: float) -> pl.Series:
    """Hashes of n-grams that more than a share of the documents hold: licences, navigation, stock phrases."""
    from llmcore.selection.overlap import find

    keys = grams["hash"].unique().sort()
    if documents is None:
        return keys.clear()
    lengths = sorted(grams["length"].unique())
    counts = pl.DataFrame({"key": pl.Series([], dtype=pl.Int64), "len": pl.Series([], dtype=pl.UInt32)})
    total = 0
    for name in documents.names():
        text = pl.read_parquet(documents.path(name), columns=["text"])["text"]
        total += len(text)
        counts = pl.concat([counts, find(text, keys.to_numpy(), lengths).group_by("key").len()])
        counts = counts.group_by("key").agg(pl.col("len").sum())
    often = counts.filter(pl.col("len") > max(COMMON_DOCUMENTS, share * total))
    return keys.gather(often["key"].sort())


def _pieces(name: str, params: BenchmarkParams, run: Run) -> Iterator[tuple[str, str, str, str]]:
    """(benchmark, item, field, text) of every text in a benchmark's JSONL file."""
    if name in params.files:
        path = Path(run.outside["paths"][name])
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != params.files[name]:
            forget(str(path))
            raise LlmcoreError(f"{path}: changed since the run was planned; run again")
    else:
        if name not in BUNDLED:
            raise UsageError(f"no bundled benchmark {name!r}; there are {', '.join(BUNDLED)}")
        content = _bundled(name).read_bytes()
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"benchmark {name!r}: not UTF-8: {error.reason} at byte {error.start}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"benchmark {name!r}, line {number}: not JSON: {error.msg}") from None
        if not isinstance(row, dict):
            raise UsageError(f"benchmark {name!r}, line {number}: not a JSON object")
        item = str(row.get("id") or row.get("task_id") or f"line {number}")
        for field, names in (("question", QUESTION), ("options", OPTIONS), ("answer", ANSWER)):
            for text in (text for key in names if key in row for text in _texts(row[key])):
                yield name, item, field, CALCULATOR.sub("", text)


def _texts(value: Any) -> Iterator[str]:
    """The strings in a value: itself, or those of a list or of ARC's {"text": […], "label": […]}."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, dict):
        yield from _texts(value.get("text"))
