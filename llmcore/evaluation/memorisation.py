"""Verbatim memorisation: how often greedy decoding goes on from a document's first words exactly as the document does.

Method: Carlini et al. 2023, "Quantifying Memorization Across Neural Language Models": prefixes of PREFIX tokens, an
exact match of the next CONTINUATION tokens, on trained and on held-out documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmcore.model.transformer import Transformer

PREFIX = CONTINUATION = 32


def continuation_rate(
    model: Transformer, documents: Sequence[NDArray[Any]], beginning: int, most: int, seed: int
) -> dict[str, float | int]:
    """Over at most `most` places drawn from the documents: rate of exact matches with its 95 % Wilson interval, and the
    mean number of tokens that agree before the first difference."""
    rng = np.random.Generator(np.random.Philox(seed))
    long_enough = [tokens for tokens in documents if len(tokens) > PREFIX + CONTINUATION]
    if not long_enough:
        return {"prompts": 0, "exact": 0, "rate": 0.0, "low": 0.0, "high": 1.0, "mean_agreeing_tokens": 0.0}
    prompts, truths = [], []
    for _ in range(most):
        tokens = long_enough[int(rng.integers(len(long_enough)))]
        at = int(rng.integers(len(tokens) - PREFIX - CONTINUATION))
        before = beginning if at == 0 else int(tokens[at - 1])
        prompts.append([before, *tokens[at : at + PREFIX].tolist()])
        truths.append(tokens[at + PREFIX : at + PREFIX + CONTINUATION].tolist())
    written = greedy(model, torch.tensor(prompts, device=model.device), CONTINUATION).cpu()
    same = written == torch.tensor(truths)
    exact = int(same.all(dim=1).sum())
    agreeing = float(same.long().cumprod(dim=1).sum(dim=1).double().mean())
    low, high = _wilson(exact, most)
    return {
        "prompts": most,
        "exact": exact,
        "rate": round(exact / most, 6),
        "low": low,
        "high": high,
        "mean_agreeing_tokens": round(agreeing, 4),
    }


@torch.inference_mode()
def greedy(model: Transformer, prompts: torch.Tensor, count: int) -> torch.Tensor:
    """int64 [B, P] -> the `count` likeliest next tokens, one after another, int64 [B, count]."""
    tokens = prompts
    for _ in range(count):
        logits = model(tokens[:, -model.config.window :])
        tokens = torch.cat([tokens, logits[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
    return tokens[:, prompts.shape[1] :]


def _wilson(hits: int, tries: int, z: float = 1.96) -> tuple[float, float]:
    share = hits / tries
    middle = (share + z * z / (2 * tries)) / (1 + z * z / tries)
    half = z * np.sqrt(share * (1 - share) / tries + z * z / (4 * tries * tries)) / (1 + z * z / tries)
    return round(float(max(0.0, middle - half)), 6), round(float(min(1.0, middle + half)), 6)
