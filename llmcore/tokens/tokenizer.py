"""Train the tokenizer: byte-level BPE whose pre-tokenizer is exactly GPT-2's, a type that llama.cpp knows.

Method: Sennrich et al. 2016 on bytes (Radford et al. 2019). It is learned from the train split of the first snapshot
(g000) alone: refreshes append shards and keep it, because another vocabulary would retokenise everything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from llmcore.artifacts.disk import check_written
from llmcore.artifacts.params import Params
from llmcore.artifacts.stage import Files, Run, Stage
from llmcore.errors import LlmcoreError
from llmcore.tokens.draw import first_within

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"
SPECIAL_TOKENS = (
    END_OF_TEXT,
    "<|pad|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|end|>",
    *(f"<|reserved_{number}|>" for number in range(10)),
)


class TokenizerParams(Params):
    vocab_size: int = Field(4096, ge=512, le=1 << 20, description="tokens, the special ones and 256 bytes included")
    min_frequency: int = Field(2, ge=1, description="a pair seen less often is not merged")
    sample_bytes: int = Field(
        1 << 29,
        ge=1 << 16,
        description="text that is learned from, bytes; a larger split is sampled; takes three times that in memory",
    )


def train_tokenizer(inputs: Mapping[str, Files], params: TokenizerParams, run: Run) -> dict[str, Any]:
    """Learn the merges; writes tokenizer.json, tokenizer_config.json and special_tokens_map.json.

    Raises LlmcoreError if there is no training text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=params.vocab_size,
        min_frequency=params.min_frequency,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    counts = {"documents": 0, "bytes": 0}
    tokenizer.train_from_iterator(_texts(inputs["documents"], params.sample_bytes, counts), trainer)
    if not counts["documents"]:
        raise LlmcoreError("tokenizer: no document is in the train split; add text or lower split.validation and test")
    # documents are trained behind <|endoftext|>, so prompts start with it too
    end = (END_OF_TEXT, tokenizer.token_to_id(END_OF_TEXT))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{END_OF_TEXT} $A", special_tokens=[end])
    tokenizer.save(str(run.out / "tokenizer.json"))
    check_written(
        run.out / "tokenizer.json", lambda path: Tokenizer.from_file(str(path)).to_str() == tokenizer.to_str()
    )
    _write_config(run.out)
    return {"vocab_size": tokenizer.get_vocab_size(), **counts}


def load_tokenizer(files: Files) -> Tokenizer:
    """The tokenizer of an artifact, in which no text is taken for a special token."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(files.path("tokenizer.json")))
    tokenizer.encode_special_tokens = True  # text that spells "<|endoftext|>" is text
    return tokenizer


def end_of_text(tokenizer: Tokenizer) -> int:
    """The id that ends every document and stands before every prompt. LlmcoreError if the tokenizer has none."""
    found = tokenizer.token_to_id(END_OF_TEXT)
    if found is None:
        raise LlmcoreError(f"tokenizer.json has no {END_OF_TEXT}; run the tokenizer stage again")
    return int(found)


def bytes_per_token(path: Path) -> NDArray[np.int64]:
    """UTF-8 bytes that each token of a tokenizer.json stands for: one per character of its byte-level name, none for
    special tokens; [vocabulary]."""
    spec = json.loads(path.read_text(encoding="utf-8"))
    special = {token["id"] for token in spec.get("added_tokens", ()) if token.get("special")}
    ids = spec["model"]["vocab"]
    sizes = np.zeros(max([*ids.values(), *special]) + 1, dtype=np.int64)
    for token, number in ids.items():
        sizes[number] = 0 if number in special else len(token)
    return sizes


def _texts(documents: Files, most: int, counts: dict[str, int]) -> Iterator[str]:
    """The train split; of a larger one a fair draw: what comes first in the order of ids, which are hashes."""
    paths = [documents.path(name) for name in documents.names("kept/")]
    trained = pl.col("split") == "train"
    size = pl.col("text").str.len_bytes().cast(pl.Int64)
    sizes = (pl.scan_parquet(path).filter(trained).select("id", size=size).collect() for path in paths)
    chosen = first_within(sizes, ("id",), "size", most) if paths else pl.DataFrame({"id": []})
    if not chosen.height:
        return
    last = chosen["id"][-1]
    del chosen
    for path in paths:
        drawn = pl.scan_parquet(path).filter(trained, pl.col("id") <= last).select("text").collect()
        for text in drawn["text"]:
            counts["documents"] += 1
            counts["bytes"] += len(text.encode())
            yield text


def _write_config(folder: Path) -> None:
    """Without a chat template, which a base model has no use for; the window is set where the model is published."""
    named = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT, "pad_token": "<|pad|>"}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        **named,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(named, indent=2, sort_keys=True) + "\n")


STAGE = Stage(
    "tokenizer",
    version=2,
    role="tokenizer",
    params=TokenizerParams,
    function="llmcore.tokens.tokenizer:train_tokenizer",
)
