"""A decoder-only transformer in the form that Hugging Face calls Llama, with documents that cannot see each other.

RMSNorm before each half-block (Zhang and Sennrich 2019), rotary positions in the half-split layout (Su et al. 2021),
grouped queries (Ainslie et al. 2023), SwiGLU (Shazeer 2020), one matrix for embedding and output (Press and Wolf 2017).
Modules carry Llama's names, so the state dictionary is the published one, with nothing renamed and nothing permuted.

Shapes: B windows, T tokens in a window, D width, H query heads, K key-value heads, E = D / H, V vocabulary.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcore.errors import UsageError
from llmcore.model.config import ModelConfig

IGNORED = -100  # a target that has no loss


class RMSNorm(nn.Module):
    """x / rms(x) in fp32, cast back, times a weight: the order in which Llama rounds."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        query, key_value = config.heads * config.head_width, config.kv_heads * config.head_width
        self.q_proj = nn.Linear(config.width, query, bias=False)
        self.k_proj = nn.Linear(config.width, key_value, bias=False)
        self.v_proj = nn.Linear(config.width, key_value, bias=False)
        self.o_proj = nn.Linear(query, config.width, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """x [B, T, D]; rotation: cosine and sine [B or 1, 1, T, E]; mask bool [B, 1, T, T] or None for plain causal."""
        windows, length, _ = x.shape
        shape = (windows, length, -1, self.config.head_width)
        q = rotate(self.q_proj(x).view(shape).transpose(1, 2), rotation)  # [B, H, T, E]
        k = rotate(self.k_proj(x).view(shape).transpose(1, 2), rotation)  # [B, K, T, E]
        v = self.v_proj(x).view(shape).transpose(1, 2)
        group = self.config.heads // self.config.kv_heads
        if group > 1:
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(seen.transpose(1, 2).reshape(windows, length, -1))


class FeedForward(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.ffn_width, bias=False)
        self.up_proj = nn.Linear(config.width, config.ffn_width, bias=False)
        self.down_proj = nn.Linear(config.ffn_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotation, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Everything below the output layer (Llama's `model.` prefix)."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        cosine, sine = rotation_tables(config)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)

    def forward(self, tokens: Tensor, positions: Tensor | None, mask: Tensor | None) -> Tensor:
        """tokens int64 [B, T], positions int64 [B, T] -> [B, T, D]."""
        where = positions if positions is not None else torch.arange(tokens.shape[1], device=tokens.device)[None]
        rotation = self.cosine[where].unsqueeze(1), self.sine[where].unsqueeze(1)
        x = self.embed_tokens(tokens)
        for block in self.layers:
            x = block(x, rotation, mask)
        out: Tensor = self.norm(x)
        return out


class Transformer(nn.Module):
    """The language model. Weights are drawn from `seed` alone, parameter by parameter in the order of their names."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = None if config.tied else nn.Linear(config.width, config.vocab_size, bias=False)
        draw_weights(self, config, seed)

    @property
    def head_weight(self) -> Tensor:
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    def forward(self, tokens: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """Logits of the next token.

        tokens int64 [B, T]; document_ids int32 [B, T], equal within a document and different in neighbours, or None for
        one document a window. Returns [B, T, V]. Raises UsageError where T is beyond the window.
        """
        if tokens.shape[1] > self.config.window:
            raise UsageError(f"{tokens.shape[1]} tokens in one window of {self.config.window}; cut them")
        positions, mask = (None, None) if document_ids is None else document_layout(document_ids)
        return F.linear(self.model(tokens, positions, mask), self.head_weight)

    def loss(self, tokens: Tensor, targets: Tensor, positions: Tensor | None, mask: Tensor | None) -> Tensor:
        """Sum of the cross-entropy, nats in fp32, over targets that are not IGNORED; the caller divides by their count.

        tokens, targets, positions int64 [B, T]; mask bool [B, 1, T, T]; the last two as `document_layout` gives them.
        """
        logits = F.linear(self.model(tokens, positions, mask), self.head_weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum")


def document_layout(document_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Positions that restart at each document [B, T], and who sees whom, bool [B, 1, T, T]."""
    length = document_ids.shape[1]
    index = torch.arange(length, device=document_ids.device)
    starts = torch.ones_like(document_ids, dtype=torch.bool)
    starts[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    first = torch.where(starts, index, 0).cummax(dim=1).values  # of the document each token belongs to
    causal = index[:, None] >= index[None, :]
    same = first[:, :, None] == first[:, None, :]
    return index - first, (same & causal).unsqueeze(1)


def rotation_tables(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position's angles, fp32 [window, E]; the second half of E repeats the first."""
    frequencies = config.rope_theta ** (-torch.arange(0, config.head_width, 2, dtype=torch.float32) / config.head_width)
    angles = torch.outer(torch.arange(config.window, dtype=torch.float32), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (x[i], x[i + E/2]) by its angle; computed in fp32, returned in x's dtype."""
    cosine, sine = rotation
    left, right = x.chunk(2, dim=-1)
    return (x * cosine + torch.cat((-right, left), dim=-1) * sine).to(x.dtype)


@torch.no_grad()
def draw_weights(model: Transformer, config: ModelConfig, seed: int) -> None:
    """Normal weights of deviation 0.02; projections back into the residual stream by 1/√(2·layers) smaller (GPT-2)."""
    source = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if parameter.ndim == 1:
            parameter.fill_(1.0)
            continue
        back = name.endswith(("o_proj.weight", "down_proj.weight"))
        parameter.normal_(0.0, 0.02 / math.sqrt(2 * config.layers) if back else 0.02, generator=source)
