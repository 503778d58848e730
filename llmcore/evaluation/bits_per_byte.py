"""Bits per byte of a model on documents: the measure that survives a change of tokenizer.

Each document is scored alone, fed <|endoftext|> first, in windows that overlap by half, so that every token but a
document's first ones has at least half a window of context. The <|endoftext|> that ends a document is not counted: it
is no byte of the text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmcore.model.transformer import Transformer

BATCH_TOKENS = 8192


def document_nats(model: Transformer, documents: Sequence[NDArray[Any]], beginning: int) -> NDArray[np.float64]:
    """Nats of each document's tokens (integers [n]; the last one, the end of text, is not scored)."""
    return np.array([nats.sum(dtype=np.float64) for nats in token_nats(model, documents, beginning)], dtype=np.float64)


@torch.inference_mode()
def token_nats(model: Transformer, documents: Sequence[NDArray[Any]], beginning: int) -> list[NDArray[np.float32]]:
    """Nats of each token of each document (integers [n]) but its last, the end of text: [n - 1] each."""
    window = model.config.window
    jobs: list[tuple[int, int, int]] = []  # document, where the window starts, first target that counts
    for number, tokens in enumerate(documents):
        length, start, done = len(tokens) - 1, 0, 0
        while done < length:
            jobs.append((number, start, done))
            done = min(length, start + window)
            start = max(0, done - window // 2)
    nats = [np.zeros(max(0, len(tokens) - 1), dtype=np.float32) for tokens in documents]
    size = max(1, BATCH_TOKENS // window)
    for at in range(0, len(jobs), size):
        batch = jobs[at : at + size]
        inputs = torch.full((len(batch), window), beginning, dtype=torch.int64)
        targets = torch.full((len(batch), window), -100, dtype=torch.int64)
        for line, (number, start, done) in enumerate(batch):
            tokens = documents[number]
            end = min(len(tokens) - 1, start + window)
            piece = torch.from_numpy(tokens[start:end].astype(np.int64))
            inputs[line, 1 : end - start] = piece[:-1]
            if start:
                inputs[line, 0] = int(tokens[start - 1])
            targets[line, done - start : end - start] = piece[done - start :]
        logits = model(inputs.to(model.device)).float()
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten().to(model.device), ignore_index=-100, reduction="none"
        ).view(len(batch), window)
        for (number, start, done), found in zip(batch, losses.cpu().numpy(), strict=True):
            end = min(len(documents[number]) - 1, start + window)
            nats[number][done:end] = found[done - start : end - start]
    return nats


def perplexity(nats: float, tokens: int) -> float:
    """Per token."""
    return round(math.exp(min(700.0, nats / max(tokens, 1))), 4)
