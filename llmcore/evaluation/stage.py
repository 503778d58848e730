"""Evaluate: is it better than what costs nothing, does it generalise, does it repeat what it read, what does it write?

evaluation.json: {"splits": {"test" | "validation": {"documents", "bytes", "tokens", "perplexity",
    "model": {value, low, high}, "baselines": {"uniform" | "unigram" | "ngram_5" | "ngram_7" | "xz" | "xz_after_train":
    {value, low, high, "difference": {value, low, high}}}, "sources": {source: {value, low, high, documents}}}},
    "gap": {"train", "validation", "documents": {split: number}, "difference": {value, low, high}},
    "reading": {"documents", "read_documents", "tokens", "read_tokens", "passes"}}; values in bits per byte.
    "difference" is the model minus the baseline, paired by document; of the gap, validation minus train. low and high
    are missing where too few documents tell how they differ; xz and uniform have none.
documents.parquet: id, source, split, bytes, tokens, nats, times; of trained documents the tokens that were predicted.
samples.json: [{prompt, text}].
memorisation.json: {"prefix", "continuation", "train", "held_out": {prompts, exact, rate, low, high,
    mean_agreeing_tokens}}; "train" also has mean_times and by_times: {how often predicted: {prompts, exact, rate, …}}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import chain
from typing import Any, Literal

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
BASELINES_TOLD = ("ngram_5", "ngram_7")  # whose distance from the model is among the metrics


class EvaluateParams(Params):
    prompts: tuple[str, ...] = Field(
        (), description="what the samples start from; none: first words of held-out documents of different sources"
    )
    sample_tokens: int = Field(100, ge=1, le=2000, description="tokens in one sample at most")
    temperature: float = Field(0.8, gt=0, description="of the samples")
    top_k: int = Field(50, ge=1, description="likeliest tokens a sample draws from")
    split_bytes: int = Field(
        16 << 20, ge=1 << 16, description="most text of a split that is scored, or that baselines learn from"
    )
    train_documents: int = Field(
        12, ge=0, description="trained documents scored for the train/validation gap, of each what was read"
    )
    memorisation_prompts: int = Field(
        64, ge=1, description="places in text that was read in training, and in held-out text, to go on from"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="that scores and writes; auto: what execution.device says; the key holds cpu or cuda"
    )
    threads: int = Field(2, ge=1, description="on a processor; their number fixes the order of sums")
    seed: int = Field(1, ge=0, description="of samples, places and bootstrap")


def evaluate(inputs: Mapping[str, Files], params: EvaluateParams, run: Run) -> dict[str, Any]:
    """Score, compare, probe and sample; writes the files that the module names.

    Roles: model, tokenizer, plan (that the model was trained on), tokens (train/, validation/, test/), documents (kept/
    with text and split), and versions (dropped/, the documents that no longer stand; none without it).
    Raises LlmcoreError if there is neither a test nor a validation document, or the plan is another than the model's.
    """
    import torch

    from llmcore.evaluation import memorisation, samples, scores
    from llmcore.evaluation.trained import Trained
    from llmcore.model.device import device_of
    from llmcore.model.huggingface import load
    from llmcore.tokens.tokenizer import bytes_per_token, end_of_text, load_tokenizer

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

    trained = Trained(inputs["model"], inputs["plan"])
    times = trained.times(drawn["train"]["id"].to_list(), drawn["train"]["n_tokens"].to_list())
    scored = []
    for step, split in enumerate(HELD_OUT):
        run.progress(step, 6, f"scoring {split}")
        scored.append(scores.score_held_out(model, drawn[split], split, beginning))
    run.progress(2, 6, "scoring train")
    read = [number for number, often in enumerate(times) if often[:-1].any()][: params.train_documents]
    sizes = bytes_per_token(inputs["tokenizer"].path("tokenizer.json"))
    mine = [times[number] for number in read]
    scored.append(scores.score_trained(model, drawn["train"][read], mine, sizes, beginning))
    documents = pl.concat(scored)
    documents.write_parquet(run.out / "documents.parquet", compression="zstd")
    check_written(run.out / "documents.parquet", lambda path: pl.read_parquet(path).equals(documents))

    run.progress(3, 6, "baselines")
    held_out = {split: drawn[split]["text"].to_list() for split in HELD_OUT}
    report = {
        "splits": scores.compare(documents, drawn["train"]["text"].to_list(), held_out, params.seed),
        "gap": scores.gap(documents, params.seed),
        "reading": trained.summary(),
    }
    _write(run, "evaluation.json", report)
    run.progress(4, 6, "memorisation")
    rates: dict[str, Any] = {"prefix": memorisation.PREFIX, "continuation": memorisation.CONTINUATION}
    for name, splits, often in (("train", ("train",), times), ("held_out", ("validation", "test"), None)):
        pieces = [tokens.to_numpy() for split in splits for tokens in drawn[split]["tokens"]]
        rates[name] = memorisation.continuation_rate(
            model, pieces, beginning, params.memorisation_prompts, params.seed, often
        )
    _write(run, "memorisation.json", rates)
    run.progress(5, 6, "samples")
    prompts = params.prompts or samples.beginnings(pl.concat([drawn[split] for split in HELD_OUT]))
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


def _headline(report: Mapping[str, Any], rates: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that `verdict` speaks of, and a table shows."""
    numbers: dict[str, Any] = {}
    for split, facts in report["splits"].items():
        numbers[f"{split}_bits_per_byte"] = facts["model"]["value"]
        numbers[f"{split}_perplexity"] = facts["perplexity"]
        numbers[f"{split}_documents"] = facts["documents"]
        for name, score in facts["baselines"].items():
            numbers[f"{split}_{name}"] = score["value"]
        for name in BASELINES_TOLD:
            numbers |= _flat(f"{split}_minus_{name}", facts["baselines"][name]["difference"])
    numbers |= _flat("gap", report["gap"].get("difference", {}))
    numbers["passes"] = report["reading"]["passes"]
    numbers["unread_documents"] = report["reading"]["documents"] - report["reading"]["read_documents"]
    return numbers | {
        f"memorised_{name}": rates[name]["rate"] for name in ("train", "held_out") if "rate" in rates[name]
    }


def _flat(name: str, score: Mapping[str, float]) -> dict[str, float]:
    """{name: value, name_low, name_high}, as far as they are there."""
    return {name if end == "value" else f"{name}_{end}": number for end, number in score.items()}


def _write(run: Run, name: str, data: Any) -> None:
    (run.out / name).write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


STAGE = Stage(
    "evaluate", version=3, role="evaluation", params=EvaluateParams, function="llmcore.evaluation.stage:evaluate"
)
