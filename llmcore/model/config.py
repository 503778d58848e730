"""The shape of a model, and what follows from it without a tensor: parameters and arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from llmcore.errors import UsageError


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model.

    ffn_width: inner width of the feed-forward; window: longest context it is trained on, in tokens;
    tied: whether the output uses the embedding's matrix.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    ffn_width: int
    window: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tied: bool = True

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "layers", "heads", "kv_heads", "ffn_width", "window"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise UsageError(f"width {self.width} must divide into {self.heads} heads of an even size")
        if self.heads % self.kv_heads:
            raise UsageError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def parameters(self) -> int:
        """Trained numbers, each once."""
        attention = self.width * self.head_width * (2 * self.heads + 2 * self.kv_heads)
        block = attention + 3 * self.width * self.ffn_width + 2 * self.width
        return self.vocab_size * self.width * (1 if self.tied else 2) + self.layers * block + self.width

    def flops_per_token(self, context: int | None = None) -> int:
        """Floating-point operations to train on one token, forward and backward; a tied output layer counts too.

        Convention: 6 a weight that multiplies (Kaplan et al. 2020), and 6 · layers · width · context for causal
        attention (half the 12 of PaLM, appendix B, which counts what the mask hides). context: most tokens attended to.
        """
        lookup = 0 if self.tied else self.vocab_size * self.width
        norms = (2 * self.layers + 1) * self.width
        return 6 * (self.parameters - lookup - norms) + 6 * self.layers * self.width * (context or self.window)
