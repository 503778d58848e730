"""Samples: what they start from says something of each source, and no page of them is blank."""

from __future__ import annotations

import polars as pl
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from llmcore.evaluation.samples import beginnings, write_samples
from llmcore.model.transformer import ModelConfig, Transformer
from llmcore.quickstart import bundled

HEAD = "Apache HTTP Server Version 2.4\n\nThis page was made for those who look after a server of their own.\n\n"


def page(title: str, prose: str) -> dict[str, str]:
    return {"source": "httpd", "text": f"{HEAD}{title}\n\n{prose}"}


def test_prompts_are_prose_of_different_sources() -> None:
    texts = pl.read_parquet(bundled("sotu.parquet"))["text"]
    pages = [
        page("Caching Guide", "This document supplements the references of the modules with a guide to caching."),
        page("Log Files", "In order to manage a web server, it is necessary to get feedback about its activity."),
        page("Content Negotiation", "The server can choose the best representation of a resource by preferences."),
        page("Virtual Hosts", "The term refers to the practice of running more than one site on one machine."),
    ]
    documents = pl.DataFrame([*pages, *({"source": "sotu", "text": text} for text in texts.head(2))])
    found = beginnings(documents)
    assert len(set(found)) == 3
    assert found[0] == "This document supplements the references of"
    assert found[2] == "In order to manage a web"
    assert found[1] in texts[0].replace("\n", " ")
    assert not any(prompt in HEAD for prompt in found)


def test_documents_without_prose_or_blanks_still_give_prompts() -> None:
    menu = {"source": "a", "text": "Home\nNews\nAbout"}
    japanese = {"source": "b", "text": "吾輩は猫である。名前はまだ無い。" * 20}
    assert beginnings(pl.DataFrame([menu, japanese])) == ["Home News About", japanese["text"][:60]]
    assert beginnings(pl.DataFrame(schema={"source": pl.String, "text": pl.String})) == []


@pytest.fixture(scope="module")
def undecided() -> tuple[Transformer, Tokenizer]:
    """A model to which all tokens are alike; of its two likeliest one ends the text."""
    shape = ModelConfig(vocab_size=4, width=32, layers=1, heads=2, kv_heads=1, ffn_width=64, window=32)
    model = Transformer(shape, seed=0).eval()
    for parameter in model.parameters():
        parameter.data.zero_()
    tokenizer = Tokenizer(models.BPE({"<|endoftext|>": 0, "A": 1, "B": 2, "C": 3}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return model, tokenizer


def test_no_sample_is_blank_and_seeds_repeat(undecided: tuple[Transformer, Tokenizer]) -> None:
    def write(seed: int) -> list[str]:
        return [row["text"] for row in write_samples(*undecided, ["A"] * 12, 0, 40, 1.0, 2, seed)]

    texts = write(1)
    assert all(texts) and len(set(texts)) > 1, "one in two would end at once"
    assert write(1) == texts and write(2) != texts
