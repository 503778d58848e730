"""Text that the model writes: seeded, so that the same model writes the same samples. What it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import polars as pl
import torch
from tokenizers import Tokenizer

from llmcore.model.transformer import Transformer

PROMPTS = 3
PROMPT_WORDS = 6
PROSE_WORDS = 2 * PROMPT_WORDS  # a line of fewer is taken for a heading


def beginnings(documents: pl.DataFrame) -> list[str]:
    """What samples start from: first words of prose in documents of different sources, and no words twice.

    documents: source, text, in the order of a draw. Of each source in turn; at most PROMPTS.
    """
    by_source = [part["text"] for _, part in sorted(documents.partition_by("source", as_dict=True).items())]
    found: dict[str, None] = {}
    for text in (text for turn in zip_longest(*by_source) for text in turn if text is not None):
        if len(found) == PROMPTS:
            break
        lines = [line.split() for line in text.splitlines()]
        words = next((line for line in lines if len(line) >= PROSE_WORDS), text.split())
        if words:
            found.setdefault(" ".join(words[:PROMPT_WORDS]))
    return list(found)


@torch.inference_mode()
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
    there is any."""
    source = torch.Generator().manual_seed(seed)
    samples = []
    for prompt in prompts:
        tokens = [beginning, *tokenizer.encode(prompt, add_special_tokens=False).ids]
        first = len(tokens)
        for _ in range(count):
            seen = torch.tensor([tokens[-model.config.window :]], device=model.device)
            logits = model(seen)[0, -1].float().cpu() / temperature
            if not tokenizer.decode(tokens[first:], skip_special_tokens=True).strip():
                logits[beginning] = -torch.inf
            best, ids = logits.topk(min(top_k, logits.numel()))
            chosen = int(ids[torch.multinomial(best.softmax(dim=-1), 1, generator=source)])
            if chosen == beginning:
                break
            tokens.append(chosen)
        samples.append({"prompt": prompt, "text": tokenizer.decode(tokens[first:], skip_special_tokens=True)})
    return samples
