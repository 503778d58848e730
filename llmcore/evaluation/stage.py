"""Evaluate: is it better than what costs nothing, does it generalise, does it repeat what it read, what does it write?

evaluation.json: {"splits": {"test" | "validation": {"documents", "bytes", "tokens", "perplexity",
    "model": {value, low, high}, "baselines": {"uniform" | "unigram" | "ngram_5" | "ngram_7" | "xz" | "xz_after_train":
    {value}}, "sources": {source: {value, low, high}}}}, "gap": {"train", "validation"}}; all values bits per byte.
documents.parquet: id, source, split, bytes, tokens, nats. samples.json: [{prompt, text}].
memorisation.json: {"prefix", "continuation", "train", "held_out": {prompts, exact, rate, low, high, …}}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import chain
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import Field

from llmcore.artifacts.disk import check_written
from llmcore.artifacts.export import gather
from llmcore.artifacts.params import Params
from llmcore.artifacts.stage import Files, Run, Stage
from llmcore.artifacts.working import working_folder
from llmcore.errors import LlmcoreError
from llmcore.selection.versions import left
from llmcore.tokens.draw import first_within

LN2 = float(np.log(2))
ORDERS = {"unigram": 1, "ngram_5": 5, "ngram_7": 7}
HELD_OUT = ("test", "validation")
SPLITS = (*HELD_OUT, "train")
DRAWN = pl.Schema(
    {
        "id": pl.String(),
        "source": pl.String(),
        "tokens": pl.List(pl.UInt32()),
        "n_tokens": pl.Int64(),
        "n_bytes": pl.Int64(),
        "text": pl.String(),
    }
)
XZ_TOGETHER = 8 << 20  # bytes of text up to which two compressions run side by side; one takes up to 700 MB


class EvaluateParams(Params):
    prompts: tuple[str, ...] = Field(
        (), description="what the samples start from; none: the first words of three held-out documents"
    )
    sample_tokens: int = Field(100, ge=1, le=2000, description="tokens in one sample at most")
    temperature: float = Field(0.8, gt=0, description="of the samples")
    top_k: int = Field(50, ge=1, description="likeliest tokens a sample draws from")
    split_bytes: int = Field(
        32 << 20, ge=1 << 16, description="most text of a split that is scored, or that baselines learn from"
    )
    train_documents: int = Field(12, ge=0, description="trained documents scored for the train/validation gap")
    memorisation_prompts: int = Field(64, ge=1, description="places in trained, and in held-out, text to go on from")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="that scores and writes; auto: what execution.device says; the key holds cpu or cuda"
    )
    threads: int = Field(2, ge=1, description="on a processor; their number fixes the order of sums")
    seed: int = Field(1, ge=0, description="of samples, places and bootstrap")


def evaluate(inputs: Mapping[str, Files], params: EvaluateParams, run: Run) -> dict[str, Any]:
    """Score, compare, probe and sample; writes the files that the module names.

    Roles: model, tokenizer, tokens (train/, validation/, test/), documents (kept/ with text and split), and versions
    (dropped/, the documents that no longer stand; none without it).
    Raises LlmcoreError if there is neither a test nor a validation document.
    """
    import torch

    from llmcore.evaluation import memorisation, samples
    from llmcore.model.device import device_of
    from llmcore.model.huggingface import load
    from llmcore.tokens.tokenizer import end_of_text, load_tokenizer

    torch.set_num_threads(params.threads)
    with working_folder() as folder:
        gather(inputs["model"], ("config.json", "model.safetensors"), folder)
        model = load(folder).to(device_of(params.device))
    tokenizer = load_tokenizer(inputs["tokenizer"])
    beginning = end_of_text(tokenizer)
    gone = left(inputs.get("versions"))
    drawn = {split: _draw(inputs["documents"], inputs["tokens"], split, params.split_bytes, gone) for split in SPLITS}
    if not (drawn["validation"].height or drawn["test"].height):
        raise LlmcoreError("evaluate: no document is held out; raise split.validation or split.test, or add text")

    scored = []
    for step, split in enumerate(SPLITS):
        run.progress(step, 6, f"scoring {split}")
        table = drawn[split].head(params.train_documents if split == "train" else drawn[split].height)
        scored.append(_score(model, table, split, beginning))
    documents = pl.concat(scored)
    documents.write_parquet(run.out / "documents.parquet", compression="zstd")
    check_written(run.out / "documents.parquet", lambda path: pl.read_parquet(path).equals(documents))

    run.progress(3, 6, "baselines")
    report = {"splits": _splits(documents, drawn, params.seed), "gap": _gap(documents)}
    _write(run, "evaluation.json", report)
    run.progress(4, 6, "memorisation")
    rates: dict[str, Any] = {"prefix": memorisation.PREFIX, "continuation": memorisation.CONTINUATION}
    for name, splits in (("train", ("train",)), ("held_out", ("validation", "test"))):
        pieces = [tokens.to_numpy() for split in splits for tokens in drawn[split]["tokens"]]
        rates[name] = memorisation.continuation_rate(model, pieces, beginning, params.memorisation_prompts, params.seed)
    _write(run, "memorisation.json", rates)
    run.progress(5, 6, "samples")
    prompts = params.prompts or samples.beginnings(pl.concat(drawn[split] for split in HELD_OUT))
    written = samples.write_samples(
        model, tokenizer, prompts, beginning, params.sample_tokens, params.temperature, params.top_k, params.seed
    )
    _write(run, "samples.json", written)
    return _headline(report, rates)


def _draw(documents: Files, tokens: Files, split: str, most: int, gone: pl.DataFrame) -> pl.DataFrame:
    """A split's documents (id, source, tokens, n_tokens, n_bytes, text), as many as `most` bytes of text hold and at
    least one, in the order of their ids, which are hashes: a fair draw, the same in each run. One shard at a time.

    gone: ids of documents that no longer stand."""
    names = tokens.names(f"{split}/")
    empty = pl.DataFrame(schema={"id": pl.String, "n_bytes": pl.Int64, "shard": pl.UInt32})
    sizes = (
        pl.read_parquet(tokens.path(name), columns=["id", "n_bytes"])
        .join(gone, on="id", how="anti", maintain_order="left")
        .with_columns(shard=pl.lit(number, pl.UInt32))
        for number, name in enumerate(names)
    )
    chosen = first_within(chain([empty], sizes), ("id",), "n_bytes", most)
    parts = [pl.DataFrame(schema=DRAWN)]
    for (number,), rows in sorted(chosen.partition_by("shard", as_dict=True).items()):
        name = names[int(number)]
        ids = rows.select("id").lazy()
        texts = pl.scan_parquet(documents.path(name.replace(f"{split}/", "kept/", 1))).select("id", "text")
        pieces = pl.scan_parquet(tokens.path(name)).select(list(DRAWN)[:-1]).cast({"tokens": DRAWN["tokens"]})
        parts.append(
            pieces.join(ids, on="id", how="semi").join(texts.join(ids, on="id", how="semi"), on="id").collect()
        )
    return pl.concat(parts).sort("id")


def _score(model: Any, tokens: pl.DataFrame, split: str, beginning: int) -> pl.DataFrame:
    from llmcore.evaluation.bits_per_byte import document_nats

    nats = document_nats(model, [piece.to_numpy() for piece in tokens["tokens"]], beginning)
    return tokens.select(
        "id",
        "source",
        split=pl.lit(split),
        bytes=pl.col("n_bytes"),
        tokens=pl.col("n_tokens") - 1,
        nats=pl.Series(nats, dtype=pl.Float64).round(6),
    )


def _splits(documents: pl.DataFrame, texts: Mapping[str, pl.DataFrame], seed: int) -> dict[str, Any]:
    from llmcore.evaluation.baselines import ngram_bits, xz_sizes
    from llmcore.evaluation.bits_per_byte import perplexity, with_interval

    held_out = {split: [text.encode() for text in texts[split]["text"]] for split in HELD_OUT if texts[split].height}
    trained = [text.encode() for text in texts["train"]["text"]]
    sizes = xz_sizes(trained, held_out, 2 if sum(map(len, trained)) <= XZ_TOGETHER else 1)
    every = [text for held in held_out.values() for text in held]
    rows_of = np.split(ngram_bits(trained, every, max(ORDERS.values())), np.cumsum([*map(len, held_out.values())])[:-1])
    bits = dict(zip(held_out, rows_of, strict=True))
    found = {}
    for split, held in held_out.items():
        rows = documents.filter(pl.col("split") == split)
        size = np.array([len(text) for text in held], dtype=np.float64)
        baselines: dict[str, Any] = {"uniform": {"value": 8.0}}
        for name, order in ORDERS.items():
            baselines[name] = with_interval(bits[split][:, order - 1], size, seed)
        length = sum(map(len, held)) + len(held) - 1
        alone, on_top = sizes[split]
        baselines["xz"] = {"value": round(8 * alone / length, 6)}
        baselines["xz_after_train"] = {"value": round(8 * on_top / length, 6)}
        found[split] = {
            "documents": rows.height,
            "bytes": int(rows["bytes"].sum()),
            "tokens": int(rows["tokens"].sum()),
            "perplexity": perplexity(float(rows["nats"].sum()), int(rows["tokens"].sum())),
            "model": with_interval(rows["nats"].to_numpy() / LN2, rows["bytes"].to_numpy().astype(np.float64), seed),
            "baselines": baselines,
            "sources": {
                source: with_interval(part["nats"].to_numpy() / LN2, part["bytes"].to_numpy().astype(np.float64), seed)
                for (source,), part in sorted(rows.partition_by("source", as_dict=True).items())
            },
        }
    return found


def _gap(documents: pl.DataFrame) -> dict[str, float]:
    """Bits per byte on trained and on validation documents; far apart, the model has overfitted."""
    return {
        split: round(float(part["nats"].sum()) / LN2 / int(part["bytes"].sum()), 6)
        for split in ("train", "validation")
        if (part := documents.filter(pl.col("split") == split)).height
    }


def _headline(report: Mapping[str, Any], rates: Mapping[str, Any]) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for split, facts in report["splits"].items():
        numbers[f"{split}_bits_per_byte"] = facts["model"]["value"]
        numbers[f"{split}_perplexity"] = facts["perplexity"]
        for name, score in facts["baselines"].items():
            numbers[f"{split}_{name}"] = score["value"]
    return numbers | {
        "memorised_train": rates["train"]["rate"],
        "memorised_held_out": rates["held_out"]["rate"],
    }


def _write(run: Run, name: str, data: Any) -> None:
    (run.out / name).write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


STAGE = Stage(
    "evaluate", version=3, role="evaluation", params=EvaluateParams, function="llmcore.evaluation.stage:evaluate"
)
