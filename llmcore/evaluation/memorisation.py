"""Verbatim memorisation: how often greedy decoding goes on from a document's first words exactly as the document does.

Method: Carlini et al. 2023, "Quantifying Memorization Across Neural Language Models": prefixes of PREFIX tokens, an
exact match of the next CONTINUATION tokens, on trained and on held-out documents. Trained means predicted: places that
no step reached are none, and those predicted more often are told apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmcore.model.transformer import Transformer

PREFIX = CONTINUATION = 32
SPAN = PREFIX + CONTINUATION
Place = tuple[int, int, int]  # document, token where the prefix begins, how often the least read of its tokens was


def continuation_rate(
    model: Transformer,
    documents: Sequence[NDArray[Any]],
    beginning: int,
    most: int,
    seed: int,
    times: Sequence[NDArray[np.int64]] | None = None,
) -> dict[str, Any]:
    """Over at most `most` places drawn evenly from the documents (integers [n], the last one the end of text): rate of
    exact matches with its 95 % Wilson interval, and the mean number of tokens that agree before the first difference.

    times: how often each token was predicted in training, [n] each; places with a token that never was do not count,
    and `by_times` tells the rate by how often. None: nothing was. Without any place there is neither rate nor interval.
    """
    places = list(_drawn(documents, times, most, seed))
    if not places:
        return {"prompts": 0, "exact": 0}
    prompts, truths = [], []
    for number, at, _ in places:
        tokens = documents[number]
        before = beginning if at == 0 else int(tokens[at - 1])
        prompts.append([before, *tokens[at : at + PREFIX].tolist()])
        truths.append(tokens[at + PREFIX : at + PREFIX + CONTINUATION].tolist())
    written = greedy(model, torch.tensor(prompts, device=model.device), CONTINUATION).cpu()
    same = written == torch.tensor(truths)
    agreeing = float(same.long().cumprod(dim=1).sum(dim=1).double().mean())
    exact = same.all(dim=1).numpy()
    found = _rate(exact) | {"mean_agreeing_tokens": round(agreeing, 4)}
    if times is not None:
        often = np.array([count for _, _, count in places])
        found["mean_times"] = round(float(often.mean()), 4)
        found["by_times"] = {str(count): _rate(exact[often == count]) for count in np.unique(often).tolist()}
    return found


def _rate(exact: NDArray[np.bool_]) -> dict[str, Any]:
    low, high = _wilson(int(exact.sum()), len(exact))
    rate = round(float(exact.mean()), 6)
    return {"prompts": len(exact), "exact": int(exact.sum()), "rate": rate, "low": low, "high": high}


def _drawn(
    documents: Sequence[NDArray[Any]], times: Sequence[NDArray[np.int64]] | None, most: int, seed: int
) -> Iterator[Place]:
    """At most `most` of the places, none twice, in the order of the text."""
    counts = np.array([len(_read(number, documents, times)) for number in range(len(documents))], dtype=np.int64)
    ends = np.cumsum(counts)
    total = int(counts.sum())
    source = np.random.Generator(np.random.Philox(seed))
    for place in np.sort(source.choice(total, min(most, total), replace=False)) if total else ():
        number = int(np.searchsorted(ends, place, side="right"))
        at = int(_read(number, documents, times)[place - (ends[number] - counts[number])])
        yield number, at, 0 if times is None else int(times[number][at : at + SPAN].min())


def _read(
    number: int, documents: Sequence[NDArray[Any]], times: Sequence[NDArray[np.int64]] | None
) -> NDArray[np.int64]:
    """Places of a document from which SPAN tokens (not the end of text) were predicted; without times, all of them."""
    places = np.arange(max(0, len(documents[number]) - SPAN))
    if times is None:
        return places
    unread = np.cumsum(np.r_[0, times[number] == 0])
    return places[unread[places + SPAN] == unread[places]]


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
