"""Text that the model writes: seeded, so that the same model writes the same samples; and what it starts from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:  # what only chooses prompts needs no torch
    from tokenizers import Tokenizer

    from llmcore.model.transformer import Transformer

PROMPT_WORDS = 6
PROMPT_LETTERS = 60  # of scripts that put no blanks between words
PROSE_LETTERS = 60  # of a line at least, or it is taken for a title, a menu or a signature
ALIKE = 2  # words: a manual begins many a page with "This module"
LOOKED_AT = 20  # documents of a source, for a line to start from


def write_samples(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    beginning: int,
    count: int,
    temperature: float,
    top_k: int,
    seed: int,
) -> list[dict[str, str]]:
    """One sample a prompt of at most `count` tokens: [{prompt, text}]; ends early at the end of text, but not before
    there is any: a model of web pages may end a text at once."""
    import torch

    source = torch.Generator().manual_seed(seed)
    samples = []
    with torch.inference_mode():
        for prompt in prompts:
            tokens = [beginning, *tokenizer.encode(prompt, add_special_tokens=False).ids]
            first, blank = len(tokens), True
            for _ in range(count):
                seen = torch.tensor([tokens[-model.config.window :]], device=model.device)
                logits = model(seen)[0, -1].float().cpu() / temperature
                blank = blank and not tokenizer.decode(tokens[first:], skip_special_tokens=True).strip()
                if blank:
                    logits[beginning] = -torch.inf
                best, ids = logits.topk(min(top_k, logits.numel()))
                chosen = int(ids[torch.multinomial(best.softmax(dim=-1), 1, generator=source)])
                if chosen == beginning:
                    break
                tokens.append(chosen)
            samples.append({"prompt": prompt, "text": tokenizer.decode(tokens[first:], skip_special_tokens=True)})
    return samples


def beginnings(documents: pl.DataFrame, count: int = 3) -> list[str]:
    """Prompts: the first words of a line of prose, from different sources, by name, as far as there are.

    documents: columns source and text. A line that several of the documents have (the head of a site's pages) is none
    to start from, nor is a short one; of a document without any other its first words are taken. No two begin alike.
    """
    parts = documents.partition_by("source", as_dict=True, maintain_order=True)
    by_source = [list(_openings(part["text"].head(LOOKED_AT).to_list())) for _, part in sorted(parts.items())]
    found: dict[str, str] = {}
    for turn in zip_longest(*by_source):
        for prompt in turn:
            if prompt:
                found.setdefault(" ".join(prompt.casefold().split()[:ALIKE]), prompt)
    return list(found.values())[:count]


def _openings(texts: Sequence[str]) -> Iterator[str]:
    """Of each text the first words of the line to start from."""
    seen = Counter(line.strip() for text in texts for line in set(text.split("\n")))
    for text in texts:
        lines = (line.strip() for line in text.split("\n"))
        prose = (line for line in lines if len(line) >= PROSE_LETTERS and seen[line] == 1)
        words = next(prose, text).split(maxsplit=PROMPT_WORDS)[:PROMPT_WORDS]
        yield " ".join(words)[:PROMPT_LETTERS].rstrip()
