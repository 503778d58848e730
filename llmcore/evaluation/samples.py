"""Text that the model writes: seeded, so that the same model writes the same samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer

from llmcore.model.transformer import Transformer


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
    """One sample a prompt of at most `count` tokens: [{prompt, text}]; ends early at the end of text."""
    source = torch.Generator().manual_seed(seed)
    samples = []
    for prompt in prompts:
        tokens = [beginning, *tokenizer.encode(prompt, add_special_tokens=False).ids]
        first = len(tokens)
        for _ in range(count):
            seen = torch.tensor([tokens[-model.config.window :]], device=model.device)
            logits = model(seen)[0, -1].float().cpu() / temperature
            best, ids = logits.topk(min(top_k, logits.numel()))
            chosen = int(ids[torch.multinomial(best.softmax(dim=-1), 1, generator=source)])
            if chosen == beginning:
                break
            tokens.append(chosen)
        samples.append({"prompt": prompt, "text": tokenizer.decode(tokens[first:], skip_special_tokens=True)})
    return samples
