"""The size of a model, by its text and by what this machine can do in the time that is given: rules with their sources.

Shape and epochs: of a ladder of shapes the one whose loss is least by the law of Muennighoff et al. 2023 ("Scaling
Data-Constrained Language Models"), which says what a token is worth that is read again: nearly as much as a new one up
to four times, nothing from about sixteen on. With text in plenty it is Chinchilla's law (Hoffmann et al. 2022), about
20 tokens a parameter. It was fitted on models of 7 million parameters and more; on the bundled corpus it puts smaller
ones in the order in which they were measured (`docs/log.md`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmcore.model.config import ModelConfig
from llmcore.planning.extent import bytes_per_token

MOST_EPOCHS = 16.0
STEADY = 0.002  # of the loss: a shape, or an epoch, that gains less is not worth its time
LEAST_STEPS = 200
BYTES_AN_ENTRY = 2000  # of text for one of the vocabulary: the quickstart's 9 MB for 4,096, better than 2,048 there
COMMON_BYTES_PER_TOKEN = bytes_per_token(4096)
VOCABULARIES = tuple(1 << power for power in range(9, 16))
WINDOWS = {"cpu": (64, 256), "cuda": (128, 2048)}  # measured on a processor: 256 beats 512 at equal arithmetic
TOKENS_A_STEP = {"cpu": 2048, "cuda": 1 << 19}
TOKENS_A_PASS = {"cpu": 2048, "cuda": 1 << 16}


@dataclass(frozen=True)
class Shape:
    """Of a model; names as in the section `train`."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    ffn_width: int

    def model(self, vocab_size: int, window: int) -> ModelConfig:
        return ModelConfig(
            vocab_size, self.width, self.layers, self.heads, self.kv_heads, self.ffn_width, window=window
        )


# a width is about 64 times the layers (nanochat), heads are 64 wide (32 in the smallest), the feed-forward 8/3 widths
LADDER = (
    Shape(2, 64, 2, 1, 192),
    Shape(2, 96, 3, 1, 256),
    Shape(3, 128, 2, 1, 384),
    Shape(4, 192, 3, 1, 512),
    Shape(5, 256, 4, 2, 704),
    Shape(6, 384, 6, 2, 1024),
    Shape(8, 512, 8, 2, 1408),
    Shape(12, 768, 12, 4, 2048),
    Shape(16, 1024, 16, 4, 2816),
    Shape(24, 1536, 24, 8, 4096),
)


@dataclass(frozen=True)
class Size:
    """What is chosen. tokens: that the text has to train on; budget: that the time allows with this shape."""

    shape: Shape
    vocab_size: int
    window: int
    batch: int
    micro_batch: int
    epochs: float
    steps: int
    warm_up: int
    learning_rate: float
    tokens: int
    budget: int

    @property
    def model(self) -> ModelConfig:
        return self.shape.model(self.vocab_size, self.window)


def loss(parameters: float, unique: float, epochs: float) -> float:
    """Expected loss by Muennighoff et al. 2023, equation 5 with the constants of appendix A: nats a token.

    unique: tokens that differ; epochs: how often they are read.
    """
    optimal = min(parameters, 0.0511 * unique)  # the size for which these tokens are just enough, G² = (A / B)^(1 / α)
    size = optimal + 5.31 * optimal * (1 - math.exp(-(parameters / optimal - 1) / 5.31))
    once = unique * min(1.0, epochs)
    read = once + 15.39 * once * (1 - math.exp(-max(0.0, epochs - 1) / 15.39))
    return 1.87 + 521 / size**0.353 + 1488 / read**0.353


def choose(text: float, trained: float, longest: int, flops: float, minutes: float, device: str) -> Size:
    """The size for so many bytes of text, of which the share `trained` is trained on.

    longest: bytes of text that three of four documents stay below; flops: FLOP/s of a training here, of whatever shape.
    """
    least, most = WINDOWS[device]
    best: tuple[float, Shape, int, int, float, float] | None = None
    for shape in LADDER:
        vocab_size = _vocabulary(shape, text)
        a_token = bytes_per_token(vocab_size)
        tokens = text * trained / a_token
        longest_tokens = min(longest / a_token, tokens / 64)  # and at least 64 windows
        window = min(most, max(least, 1 << max(0, math.ceil(math.log2(max(1.0, longest_tokens))))))
        model = shape.model(vocab_size, window)
        budget = flops * minutes * 60 / model.flops_per_token(window)
        unique = text * trained / COMMON_BYTES_PER_TOKEN  # so that vocabularies compare
        epochs = _epochs(model.parameters, unique, budget / tokens)
        expected = loss(model.parameters, unique, epochs)
        if best is None or expected < best[0] * (1 - STEADY):
            best = (expected, shape, vocab_size, window, epochs, budget)
    assert best is not None
    _, shape, vocab_size, window, epochs, budget = best
    tokens = max(1, round(text * trained / bytes_per_token(vocab_size)))
    batch = _batch(epochs * tokens, window, device)
    steps = max(1, round(epochs * math.ceil(tokens / window) / batch))
    return Size(
        shape=shape,
        vocab_size=vocab_size,
        window=window,
        batch=batch,
        micro_batch=min(batch, max(1, TOKENS_A_PASS[device] // window)),
        epochs=epochs,
        steps=steps,
        warm_up=max(1, min(50, steps // 10)),
        # the quickstart's at its width, falling with the root of the width (nanochat's dial)
        learning_rate=float(f"{0.006 * min(1.0, math.sqrt(192 / shape.width)):.2g}"),
        tokens=tokens,
        budget=round(budget),
    )


def _vocabulary(shape: Shape, text: float) -> int:
    """The largest that the text can teach, and whose embedding is no more than half of the model."""
    fitting = [
        size
        for size in VOCABULARIES
        if size * BYTES_AN_ENTRY <= text and 2 * size * shape.width <= shape.model(size, 64).parameters
    ]
    return max(fitting, default=VOCABULARIES[0])


def _epochs(parameters: float, tokens: float, affordable: float) -> float:
    """As many as the time allows and still lower the loss by a little each; to two digits."""
    most = min(MOST_EPOCHS, affordable)
    if most <= 1:
        return float(f"{most:.2g}")
    epochs = 1.0
    while epochs + 1 <= most and loss(parameters, tokens, epochs + 1) < loss(parameters, tokens, epochs) * (1 - STEADY):
        epochs += 1
    rest = most - epochs
    return float(f"{epochs + rest if rest < 1 else epochs:.2g}")


def _batch(tokens: float, window: int, device: str) -> int:
    """Windows in a step: as many as a step is meant to hold, fewer where that leaves too few steps; a power of two."""
    batch = max(1, min(TOKENS_A_STEP[device], 1 << int(math.log2(max(1.0, tokens / LEAST_STEPS)))) // window)
    return max(2, batch)
