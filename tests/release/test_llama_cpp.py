"""llama.cpp reads our files as we do: the same tokens in, the same tokens out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmcore.errors import LlmcoreError
from llmcore.model import huggingface
from llmcore.release import gate, gguf_file
from llmcore.release.gate import AWKWARD_TEXTS
from llmcore.release.quantise import QuantiseParams, quantise
from tests.local_files import LocalFiles, LocalRun
from tests.release_inputs import SPECIAL, TEXTS, WINDOW, one_thread, token_table, train_model, train_tokenizer

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (extra `kquants`)")
pytestmark = pytest.mark.slow

PROMPTS = [text[:40] for text in TEXTS[:20]]
CONTINUED = 32  # tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained long enough that its first choice is seldom a near tie, in every format."""
    root = tmp_path_factory.mktemp("llama")
    tokenizer = train_tokenizer(root)
    train_model(root, tokenizer, steps=150)
    for name in ("f16", "q8_0", "q4_0"):
        gguf_file.write(root, root, root / f"{name}.gguf", name)
    return root


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def open_file(path: Path) -> Any:
    defaults = llama_cpp.llama_cpp.llama_model_default_params

    def without_repacking() -> Any:
        # on processors with AMX the kernels for repacked weights crash on matrices as small as these
        made = defaults()
        made.use_extra_bufts = False
        return made

    with patch.object(llama_cpp.llama_cpp, "llama_model_default_params", without_repacking):
        return _open(path)


def _open(path: Path) -> Any:
    return llama_cpp.Llama(str(path), n_ctx=2 * WINDOW, n_threads=1, verbose=False, logits_all=True)


@pytest.fixture(scope="module")
def f16(folder: Path) -> Iterator[Any]:
    model = open_file(folder / "f16.gguf")
    yield model
    model.close()


@pytest.fixture(scope="module")
def transformers_tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def continued(model: Any, prompt: list[int]) -> list[int]:
    """Greedy continuation by llama.cpp."""
    model.reset()
    found: list[int] = []
    for token in model.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0):
        found.append(token)
        if len(found) == CONTINUED or token == 0:
            break
    return found


@pytest.mark.parametrize("text", AWKWARD_TEXTS, ids=lambda text: repr(text[:12]))
def test_awkward_texts_have_the_same_tokens_everywhere(
    f16: Any, tokenizer: Tokenizer, transformers_tokenizer: Any, text: str
) -> None:
    expected = tokenizer.encode(text).ids
    assert f16.tokenize(text.encode(), add_bos=True, special=True) == expected
    assert transformers_tokenizer(text)["input_ids"] == expected


def test_any_text_has_the_same_tokens_everywhere(f16: Any, tokenizer: Tokenizer, transformers_tokenizer: Any) -> None:
    pieces = st.one_of(st.text(), st.sampled_from([*SPECIAL, " ", "  ", "\n\n", "'ll", " 12", "é", "e\u0301", "日本"]))

    @given(st.lists(pieces, max_size=8).map("".join))
    @settings(max_examples=300, deadline=None, derandomize=True)
    def check(text: str) -> None:
        expected = tokenizer.encode(text).ids
        assert f16.tokenize(text.encode(), add_bos=True, special=True) == expected
        assert transformers_tokenizer(text)["input_ids"] == expected

    check()


def test_greedy_continuations_at_f16_are_ours(folder: Path, f16: Any, tokenizer: Tokenizer) -> None:
    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    same = total = 0
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt).ids
        with one_thread():
            answer = ours.generate(torch.tensor([ids]), max_new_tokens=CONTINUED, do_sample=False)
        expected = answer[0, len(ids) :].tolist()
        found = continued(f16, ids)
        same += sum(a == b for a, b in zip(expected, found, strict=False))
        total += len(expected)
    assert total >= 20 * CONTINUED // 2
    assert same / total >= 0.95, f"{same} of {total} tokens"


def test_logits_at_f16_are_ours(folder: Path, f16: Any, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXTS[3]).ids[:100]
    f16.reset()
    f16.eval(ids)
    found = torch.tensor(f16.scores[: len(ids)])
    with torch.inference_mode():
        expected = huggingface.load(folder)(torch.tensor([ids]))[0]
    assert (found - expected).abs().max() < 0.05  # weights and cache have 11 significant bits


def test_the_publish_gate_asks_llama_cpp(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "folder")
    (tmp_path / "folder" / "f16.gguf").rename(tmp_path / "folder" / "model-f16.gguf")
    assert gate.check_gguf(tmp_path / "folder", folder)
    weights = load_file(folder / "model.safetensors")
    query = weights["model.layers.0.self_attn.q_proj.weight"]
    weights["model.layers.0.self_attn.q_proj.weight"] = query.roll(1, dims=0)  # as if rows were permuted wrongly
    (tmp_path / "other").mkdir()
    shutil.copyfile(folder / "config.json", tmp_path / "other" / "config.json")
    save_file(weights, tmp_path / "other" / "model.safetensors")
    with pytest.raises(LlmcoreError, match=r"publish gate: llama\.cpp's prediction for .* is off"):
        gate.check_gguf(tmp_path / "folder", tmp_path / "other")


def test_llama_cpp_knows_where_a_text_ends(f16: Any) -> None:
    assert f16.token_eos() == 0
    assert f16.metadata["general.architecture"] == "llama"
    assert f16.metadata["tokenizer.ggml.pre"] == "gpt-2"
    assert "tokenizer.chat_template" not in f16.metadata


@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
def test_quantised_files_load_and_write(folder: Path, tokenizer: Tokenizer, name: str) -> None:
    model = open_file(folder / f"{name}.gguf")
    found = continued(model, tokenizer.encode("The statement").ids)
    model.close()
    assert 0 < len(found) <= CONTINUED
    assert all(0 <= token < tokenizer.get_vocab_size() for token in found)


def test_k_quants_are_made_measured_and_read(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokens" / "validation").mkdir(parents=True)
    table = token_table(tokenizer, TEXTS[:10])
    table.write_parquet(tmp_path / "tokens" / "validation" / "g000-00-manual-00000.parquet")
    inputs = {"model": LocalFiles(folder), "tokenizer": LocalFiles(folder), "tokens": LocalFiles(tmp_path / "tokens")}
    run = LocalRun(tmp_path / "run")
    quantise(inputs, QuantiseParams(formats=("q4_k_m",), tokens=2_000, threads=1), run)
    assert [path.name for path in (run.out / "gguf").iterdir()] == [
        "model-q4_k_m.gguf"
    ]  # the f16 it needs is not asked for
    entry = json.loads((run.out / "quantisation.json").read_text())["formats"][0]
    assert 0 < entry["mean_kl"] < 0.05
    model = open_file(run.out / "gguf" / "model-q4_k_m.gguf")
    assert continued(model, tokenizer.encode("The statement").ids)
    model.close()
