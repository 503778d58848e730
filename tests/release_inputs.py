"""A small model trained for a few seconds on real text, and the artifacts of a chain that might have led to it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from llmcore.artifacts.manifest import OLD_ROLES
from llmcore.model import huggingface
from llmcore.model.transformer import ModelConfig, Transformer
from llmcore.release import publish, quantise
from llmcore.schema import DOCUMENT_SCHEMA, document_id, dropped
from tests.local_files import LocalFiles, LocalRun

TEXTS: Sequence[str] = tuple(topics[name] for name in sorted(topics))  # Python's own manual: some 460 kB of English
SPECIAL = ("<|endoftext|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|reserved_0|>")
WINDOW = 128
HOSTILE = '<script>alert("x")</script> | `rm` ](http://evil) &amp; \u202e'


def train_tokenizer(folder: Path, vocabulary: int = 1024) -> Tokenizer:
    """The kind of tokenizer that the chain makes: byte-level BPE with GPT-2's regex."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[0], "pad_token": SPECIAL[1]}
    settings = {
        **special,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": WINDOW,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    return tokenizer


def token_table(tokenizer: Tokenizer, texts: Sequence[str]) -> pl.DataFrame:
    """Rows as the stage tokenise writes them."""
    ids = [[*encoding.ids, 0] for encoding in tokenizer.encode_batch(list(texts))]
    return pl.DataFrame(
        {
            "id": [document_id("manual", text) for text in texts],
            "source": "manual",
            "tokens": pl.Series(ids, dtype=pl.List(pl.UInt16)),
            "n_tokens": [len(row) for row in ids],
            "n_bytes": [len(text.encode()) for text in texts],
        }
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Small products are faster without waiting for a second thread, on a busy machine by far."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train_model(
    folder: Path, tokenizer: Tokenizer, steps: int, width: int = 64, ffn_width: int = 160, tied: bool = True
) -> pl.DataFrame:
    """A model that has seen enough text to be sure of itself; returns the loss by step."""
    torch.manual_seed(0)
    model = Transformer(
        ModelConfig(
            vocab_size=tokenizer.get_vocab_size(),
            width=width,
            layers=2,
            heads=4,
            kv_heads=2,
            ffn_width=ffn_width,
            window=WINDOW,
            tied=tied,
        )
    )
    stream = torch.tensor([number for row in token_table(tokenizer, TEXTS)["tokens"] for number in row])
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    rows = []
    with one_thread():
        for step in range(steps):
            starts = torch.randint(0, len(stream) - WINDOW - 1, (8,))
            batch = torch.stack([stream[start : start + WINDOW + 1] for start in starts])
            logits = model(batch[:, :-1])
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            held_out = loss.item() + 0.1 if step % 10 == 0 else None
            rows.append((step, (step + 1) * 8 * WINDOW, loss.item(), held_out))
    huggingface.save(model, folder)
    return pl.DataFrame(rows, schema=["step", "tokens", "loss", "validation_loss"], orient="row")


class Chain:
    """Artifacts in folders, and their manifests in chain order."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifests: list[dict[str, Any]] = []

    def add(
        self,
        step: str,
        stage: str,
        inputs: Mapping[str, str],
        metrics: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        """Describe what lies in the step's folder."""
        outputs = {}
        for path in sorted(path for path in (self.root / step).rglob("*") if path.is_file()):
            rows = pl.read_parquet(path).height if path.suffix == ".parquet" else None
            blob = hashlib.sha256(path.read_bytes()).hexdigest()
            outputs[str(path.relative_to(self.root / step))] = {
                "blob": blob,
                "bytes": path.stat().st_size,
                "rows": rows,
            }
        by_step = {manifest["step"]: manifest for manifest in self.manifests}
        sources = {
            role: [{field: by_step[name][field] for field in ("step", "stage", "key", "digest")}]
            for role, name in inputs.items()
        }
        digest = hashlib.sha256(json.dumps(outputs, sort_keys=True).encode()).hexdigest()
        self.manifests.append(
            {
                "step": step,
                "stage": stage,
                "role": OLD_ROLES.get(stage, ""),
                "key": hashlib.sha256(f"{step}{digest}".encode()).hexdigest(),
                "digest": digest,
                "version": 1,
                "params": dict(params or {}),
                "inputs": sources,
                "outputs": outputs,
                "metrics": dict(metrics or {}),
            }
        )

    def write(self, step: str, tables: Mapping[str, pl.DataFrame]) -> None:
        for name, table in tables.items():
            path = self.root / step / name
            path.parent.mkdir(parents=True, exist_ok=True)
            table.write_parquet(path)

    def files(self, step: str = "") -> LocalFiles:
        return LocalFiles(self.root / step)


def document_chain(root: Path, tokenizer: Tokenizer) -> Chain:
    """From a crawl and a data set to tokens; one source and one reason hold text that wants to be markup."""
    chain = Chain(root)
    shard = "g000-00-web-00000.parquet"
    urls = [f"https://example.org/{number}" for number in range(40)]
    outcomes = ["fetched"] * 40 + ["forbidden"] * 3
    fetches = pl.DataFrame(
        {
            "url": [*urls, *(f"https://example.org/private/{n}" for n in range(3))],
            "outcome": outcomes,
            "reason": ["new"] * 40 + ["robots.txt"] * 3,
        }
    )
    chain.write("crawl web", {"fetches/g000.parquet": fetches})
    chain.add("crawl web", "crawl", {})

    def documents(source: str, licence: str, texts: Sequence[str], addresses: Sequence[str | None]) -> pl.DataFrame:
        return pl.DataFrame(
            {
                "id": [document_id(source, text) for text in texts],
                "text": list(texts),
                "source": source,
                "url": list(addresses),
                "licence": licence,
                "fetched_at": None,
                "lang": "en",
                "lang_score": 0.99,
                "metadata": "{}",
            }
        ).cast(dict(DOCUMENT_SCHEMA))

    web = documents("web", "Apache-2.0", TEXTS[:40], urls)
    own = documents(HOSTILE, "unknown", TEXTS[40:], [None] * len(TEXTS[40:]))
    chain.write("ingest web", {f"kept/{shard}": web, f"dropped/{shard}": dropped(web.head(0), "ingest", "empty")})
    chain.add("ingest web", "ingest", {"files": "crawl web"})
    own_shard = "g000-01-own-00000.parquet"
    chain.write("ingest own", {f"kept/{own_shard}": own})
    chain.add("ingest own", "ingest", {})
    kept = pl.concat([web, own])
    masks = {"documents_masked": 3, "EMAIL_ADDRESS": 4, "rows_read": 9}
    doors = (("clean", "empty", 0), ("pii", "", 0), ("dedup", "near duplicate", 5), ("quality", HOSTILE, 7))
    for step, reason, count in doors:
        gone, kept = kept.head(count), kept.slice(count)
        chain.write(step, {f"kept/{shard}": kept, f"dropped/{shard}": dropped(gone, step, reason)})
        before = chain.manifests[-1]["step"]
        inputs = {"documents": before}
        if step == "clean":
            inputs["more"] = "ingest web"
        chain.add(step, step, inputs, masks if step == "pii" else {})
    chain.add("benchmarks", "benchmarks", {"documents": "quality"}, {"items": 100, "items_gsm8k-100": 100})
    parts = kept.with_columns(
        split=pl.when(pl.int_range(pl.len()) < 6)
        .then(pl.lit("test"))
        .when(pl.int_range(pl.len()) < 20)
        .then(pl.lit("validation"))
        .otherwise(pl.lit("train"))
    )
    chain.write("split", {f"kept/{shard}": parts})
    chain.add("split", "split", {"documents": "quality", "benchmarks": "benchmarks"})
    own_part = {split: parts.filter(pl.col("split") == split) for split in ("train", "validation", "test")}
    tables = {
        f"{split}/{shard}": token_table(tokenizer, part["text"].to_list()).with_columns(part["id"], part["source"])
        for split, part in own_part.items()
    }
    tokenizer.save(str(root / "tokenizer" / "tokenizer.json"))
    chain.add("tokenizer", "tokenizer", {"documents": "split"})
    chain.write("tokenise", tables)
    chain.add("tokenise", "tokenise", {"documents": "split", "tokenizer": "tokenizer"})
    return chain


def evaluation(folder: Path) -> None:
    """What the stage evaluate leaves, in its shape."""
    folder.mkdir(parents=True, exist_ok=True)

    def score(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.03, "high": value + 0.04}

    baselines = {"uniform": {"value": 8.0}, "xz": {"value": 2.22}, "unigram": score(4.4)}
    baselines |= {"ngram_5": score(1.73), "ngram_7": score(1.58), "xz_after_train": {"value": 2.01}}
    splits = {
        split: {
            "documents": 6,
            "bytes": 3200,
            "tokens": 1160,
            "perplexity": 20.5,
            "model": score(model),
            "baselines": baselines,
            "sources": {"web": score(model), HOSTILE: score(model)},
        }
        for split, model in (("test", 1.55), ("validation", 1.52))
    }
    gap = {"train": 1.41, "validation": 1.52, "difference": score(0.11)}
    reading = {"documents": 60, "read_documents": 53, "tokens": 9000, "read_tokens": 5040, "passes": 0.56}
    (folder / "evaluation.json").write_text(json.dumps({"splits": splits, "gap": gap, "reading": reading}))
    (folder / "samples.json").write_text(json.dumps([{"prompt": "The ", "text": f"state ``` of {HOSTILE}"}]))
    rates = {"prefix": 32, "continuation": 32, "train": {"rate": 0.01}, "held_out": {"rate": 0.002}}
    (folder / "memorisation.json").write_text(json.dumps(rates))


@dataclass(frozen=True)
class Release:
    """A chain up to its published folder, made once for all tests of a process."""

    chain: Chain
    inputs: Mapping[str, LocalFiles]
    quantised_metrics: Mapping[str, Any]
    metrics: Mapping[str, Any]
    folder: Path
    keep: TemporaryDirectory[str]

    def read(self, name: str) -> str:
        return (self.folder / name).read_text(encoding="utf-8")


@cache
def release() -> Release:
    """Train, quantise and publish; the folder goes when the process ends."""
    keep = TemporaryDirectory(prefix="release-")
    root = Path(keep.name)
    tokenizer = train_tokenizer(root / "chain" / "tokenizer")
    history = train_model(root / "chain" / "train", tokenizer, steps=30)
    history.write_parquet(root / "chain" / "train" / "history.parquet")
    chain = document_chain(root / "chain", tokenizer)
    chain.write("pack", {"plan/train.parquet": pl.DataFrame({"window": [0]})})
    chain.add("pack", "pack", {"tokens": "tokenise"})
    read = {"tokens": "tokenise", "plan": "pack", "tokenizer": "tokenizer"}
    chain.add("train", "train", read, params={"learning_rate": 0.005, "optimizer": "adamw"})
    judged = {"model": "train", "tokenizer": "tokenizer", "tokens": "tokenise"}

    run = LocalRun(root / "quantise")
    params = quantise.QuantiseParams(tokens=8_000, threads=1)
    quantised = quantise.STAGE.load()({role: chain.files(step) for role, step in judged.items()}, params, run)
    shutil.copytree(run.out, root / "chain" / "quantise")
    chain.add("quantise", "quantise", judged)
    evaluation(root / "chain" / "evaluate")
    scores = {"test_bits_per_byte": 1.55, "test_ngram_5": 1.73, "test_ngram_7": 1.58, "test_unigram": 4.4}
    chain.add("evaluate", "evaluate", {**judged, "documents": "split"}, scores)

    steps = {"quantised": "quantise", "evaluation": "evaluate", "plan": "pack", "history": "", **judged}
    inputs = {role: chain.files(step) for role, step in steps.items() if role != "tokens"}
    run = LocalRun(root / "publish", manifests=chain.manifests)
    params = publish.PublishParams(name="tiny", description="A model of Python's manual & <b>more</b>.")
    metrics = publish.STAGE.load()(inputs, params, run)
    return Release(chain, inputs, quantised, metrics, run.out, keep)
