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
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field

from llmcore.artifacts.params import Params
from llmcore.artifacts.stage import Files, Run, Stage
from llmcore.errors import LlmcoreError

LN2 = float(np.log(2))
ORDERS = (5, 7)


class EvaluateParams(Params):
    prompts: tuple[str, ...] = Field(
        ("Fellow-citizens of the Senate and House of Representatives:", "The economy of the United States", "We must"),
        description="what the samples start from",
    )
    sample_tokens: int = Field(100, ge=1, le=2000, description="tokens in one sample at most")
    temperature: float = Field(0.8, gt=0, description="of the samples")
    top_k: int = Field(50, ge=1, description="likeliest tokens a sample draws from")
    train_documents: int = Field(12, ge=0, description="trained documents scored, about, for the train/validation gap")
    memorisation_prompts: int = Field(64, ge=1, description="places in trained, and in held-out, text to go on from")
    threads: int = Field(2, ge=1, description="on a processor; their number fixes the order of sums")
    seed: int = Field(1, ge=0, description="of samples, places and bootstrap")


def evaluate(inputs: Mapping[str, Files], params: EvaluateParams, run: Run) -> dict[str, Any]:
    """Score, compare, probe and sample; writes the files that the module names.

    Roles: model, tokenizer, tokens (train/, validation/, test/), documents (kept/ with text and split).
    Raises LlmcoreError if there is neither a test nor a validation document.
    """
    import torch

    from llmcore.evaluation import memorisation, samples
    from llmcore.model.huggingface import load
    from llmcore.tokens.tokenizer import end_of_text, load_tokenizer

    torch.set_num_threads(params.threads)
    model = _load(inputs["model"], load)
    tokenizer = load_tokenizer(inputs["tokenizer"])
    beginning = end_of_text(tokenizer)
    texts = inputs["documents"].table("kept/").select("id", "split", "text")
    by_split = {split: texts.filter(pl.col("split") == split) for split in ("train", "validation", "test")}
    if not (by_split["validation"].height or by_split["test"].height):
        raise LlmcoreError("evaluate: no document is held out; raise split.validation or split.test, or add text")

    scored = []
    for step, split in enumerate(("test", "validation", "train")):
        run.progress(step, 6, f"scoring {split}")
        table = inputs["tokens"].table(f"{split}/")
        if split == "train":  # evenly through all shards, so that every source has its share
            table = table.gather_every(max(1, table.height // max(1, params.train_documents)))
        scored.append(_score(model, table, split, beginning))
    documents = pl.concat(scored)
    documents.write_parquet(run.out / "documents.parquet", compression="zstd")

    run.progress(3, 6, "baselines")
    report = {"splits": _splits(documents, by_split, params.seed), "gap": _gap(documents)}
    _write(run, "evaluation.json", report)
    run.progress(4, 6, "memorisation")
    pieces = {split: inputs["tokens"].table(f"{split}/")["tokens"] for split in ("train", "validation", "test")}
    trained = [np.asarray(t) for t in pieces["train"]]
    held_out = [np.asarray(t) for split in ("validation", "test") for t in pieces[split]]
    rates: dict[str, Any] = {"prefix": memorisation.PREFIX, "continuation": memorisation.CONTINUATION}
    for name, chosen in (("train", trained), ("held_out", held_out)):
        rates[name] = memorisation.continuation_rate(
            model, chosen, beginning, params.memorisation_prompts, params.seed
        )
    _write(run, "memorisation.json", rates)
    run.progress(5, 6, "samples")
    written = samples.write_samples(
        model, tokenizer, params.prompts, beginning, params.sample_tokens, params.temperature, params.top_k, params.seed
    )
    _write(run, "samples.json", written)
    return _headline(report, rates)


def _load(files: Files, load: Any) -> Any:
    import shutil
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory(prefix="llmcore-") as folder:
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(files.path(name), Path(folder) / name)
        return load(Path(folder))


def _score(model: Any, tokens: pl.DataFrame, split: str, beginning: int) -> pl.DataFrame:
    from llmcore.evaluation.bits_per_byte import document_nats

    nats = document_nats(model, [np.asarray(t) for t in tokens["tokens"]], beginning)
    return tokens.select(
        "id", "source", split=pl.lit(split), bytes=pl.col("n_bytes"), tokens=pl.col("n_tokens") - 1,
        nats=pl.Series(nats, dtype=pl.Float64).round(6),
    )  # fmt: skip


def _splits(documents: pl.DataFrame, texts: Mapping[str, pl.DataFrame], seed: int) -> dict[str, Any]:
    from llmcore.evaluation.baselines import NgramModel, xz_bytes
    from llmcore.evaluation.bits_per_byte import perplexity, with_interval

    trained = [text.encode() for text in texts["train"]["text"]]
    ngrams = {f"ngram_{order}": NgramModel(trained, order) for order in ORDERS} | {"unigram": NgramModel(trained, 1)}
    before = b"\n".join(trained)
    alone = xz_bytes(before)
    found = {}
    for split in ("test", "validation"):
        rows = documents.filter(pl.col("split") == split)
        if not rows.height:
            continue
        held_out = [text.encode() for text in texts[split]["text"]]
        size = np.array([len(text) for text in held_out], dtype=np.float64)
        baselines: dict[str, Any] = {"uniform": {"value": 8.0}}
        for name, ngram in ngrams.items():
            baselines[name] = with_interval(np.array([ngram.bits(text) for text in held_out]), size, seed)
        joined = b"\n".join(held_out)
        on_top = xz_bytes(before + b"\n" + joined) - alone
        baselines["xz"] = {"value": round(8 * xz_bytes(joined) / len(joined), 6)}
        baselines["xz_after_train"] = {"value": round(8 * on_top / len(joined), 6)}
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


STAGE = Stage("evaluate", version=1, params=EvaluateParams, function="llmcore.evaluation.stage:evaluate")
