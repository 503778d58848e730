"""The model computes what Hugging Face's Llama computes, and documents in one window do not see each other."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcore.errors import LlmcoreError, UsageError
from llmcore.model import huggingface
from llmcore.model.transformer import ModelConfig, Transformer, document_layout

SHAPE = ModelConfig(vocab_size=97, width=32, layers=3, heads=4, kv_heads=2, ffn_width=48, window=64)
UNTIED = ModelConfig(vocab_size=61, width=24, layers=2, heads=3, kv_heads=3, ffn_width=40, window=32, tied=False)


def tokens_of(config: ModelConfig, windows: int, length: int) -> torch.Tensor:
    return torch.randint(config.vocab_size, (windows, length), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("config", [SHAPE, UNTIED], ids=["tied", "untied"])
def test_transformers_loads_the_folder_and_gives_equal_logits(config: ModelConfig, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = Transformer(config, seed=3)
    huggingface.save(model, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, local_files_only=True).eval()
    tokens = tokens_of(config, 2, config.window)
    with torch.no_grad():
        difference = (theirs(tokens).logits - model(tokens)).abs().max()
        again = (theirs(tokens).logits - huggingface.load(tmp_path)(tokens)).abs().max()
    assert difference < 1e-4 and again < 1e-4
    assert theirs.num_parameters() == config.parameters == sum(p.numel() for p in model.parameters())


def test_the_folder_says_what_old_and_new_readers_look_for(tmp_path: Path) -> None:
    huggingface.save(Transformer(SHAPE), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    from safetensors import safe_open

    with safe_open(tmp_path / "model.safetensors", "pt") as weights:
        assert weights.metadata() == {"format": "pt"}
        assert "lm_head.weight" not in set(weights.keys())


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=2, max_size=3))
def test_documents_packed_into_one_window_give_the_logits_they_give_alone(lengths: list[int]) -> None:
    model = Transformer(SHAPE, seed=1).eval()
    tokens = tokens_of(SHAPE, 1, sum(lengths))
    ids = torch.cat([torch.full((n,), i, dtype=torch.int32) for i, n in enumerate(lengths)])[None]
    with torch.no_grad():
        packed = model(tokens, ids)
        alone = torch.cat([model(piece) for piece in tokens.split(lengths, dim=1)], dim=1)
    assert (packed - alone).abs().max() < 1e-4


def test_positions_restart_and_the_mask_is_causal_within_a_document() -> None:
    positions, mask = document_layout(torch.tensor([[7, 7, 3, 3, 3, 7]]))
    assert positions.tolist() == [[0, 1, 0, 1, 2, 0]]
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


def test_the_same_seed_draws_the_same_weights_and_another_seed_others() -> None:
    first, same, other = (Transformer(SHAPE, seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_flops_count_the_tied_output_and_only_the_attention_that_the_mask_leaves() -> None:
    # nanoGPT's way, with causal attention counted half: 6N + 6·layers·width·context
    small = ModelConfig(vocab_size=10, width=8, layers=1, heads=2, kv_heads=2, ffn_width=16, window=4)
    weights = 10 * 8 + 4 * 8 * 8 + 3 * 8 * 16
    assert small.flops_per_token() == 6 * weights + 6 * 1 * 8 * 4


@pytest.mark.parametrize("config", [SHAPE, UNTIED], ids=["tied", "untied"])
def test_parameters_are_counted_from_the_shape_as_torch_counts_them(config: ModelConfig) -> None:
    assert config.parameters == sum(weight.numel() for weight in Transformer(config).parameters())


def test_a_shape_or_folder_that_cannot_be_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="multiple of kv_heads"):
        ModelConfig(vocab_size=10, width=8, layers=1, heads=4, kv_heads=3, ffn_width=8, window=4)
    with pytest.raises(UsageError, match="cut them"):
        Transformer(SHAPE)(tokens_of(SHAPE, 1, 65))
    with pytest.raises(LlmcoreError, match=r"config\.json"):
        huggingface.load(tmp_path)
    huggingface.save(Transformer(SHAPE), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(LlmcoreError, match=r"model\.safetensors: not readable"):
        huggingface.load(tmp_path)
