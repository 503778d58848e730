"""GGUF files, what quantisation costs, the model card, lineage.json and the publish gate."""

from __future__ import annotations

import json
import re
import shutil
from hashlib import sha256
from pathlib import Path

import gguf
import numpy as np
import polars as pl
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from llmcore.errors import LlmcoreError, UsageError
from llmcore.model import huggingface
from llmcore.model.transformer import ModelConfig, Transformer
from llmcore.planning.chain import build
from llmcore.planning.config import load
from llmcore.release import fidelity, gate, gguf_file, k_quants
from llmcore.release.card import markdown
from llmcore.release.licences import model_licence
from llmcore.release.publish import PublishParams, publish
from llmcore.release.quantise import STAGE, QuantiseParams
from tests.local_files import LocalFiles, LocalRun
from tests.release_inputs import HOSTILE, SPECIAL, release, token_table, train_model, train_tokenizer
from tests.small import small_config


@pytest.fixture(scope="module")
def model() -> Path:
    return release().chain.root / "train"


@pytest.fixture(scope="module")
def tokenizer() -> Path:
    return release().chain.root / "tokenizer"


def field(path: Path, name: str) -> object:
    return gguf.GGUFReader(path).fields[name].contents()


@pytest.mark.parametrize(("quantisation", "error"), [("f16", 2e-3), ("q8_0", 1e-2), ("q4_0", 0.2)])
def test_a_gguf_file_holds_the_weights_to_its_precision(
    model: Path, tokenizer: Path, tmp_path: Path, quantisation: str, error: float
) -> None:
    written = gguf_file.write(model, tokenizer, tmp_path / "m.gguf", quantisation)
    restored = gguf_file.to_huggingface(tmp_path / "m.gguf", model / "config.json", tmp_path / "restored")
    original, found = load_file(model / "model.safetensors"), load_file(tmp_path / "restored" / "model.safetensors")
    assert found.keys() == original.keys()
    for name, tensor in original.items():
        assert (found[name] - tensor).abs().max() <= error * tensor.abs().max(), name
    assert written.tensors == restored.tensors
    assert written.weights == restored.weights == sum(tensor.numel() for tensor in original.values())


def test_the_same_model_gives_the_same_bytes(model: Path, tokenizer: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        gguf_file.write(model, tokenizer, tmp_path / name, "q4_0")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_query_and_key_rows_are_interleaved_as_llama_cpp_wants_them(
    model: Path, tokenizer: Path, tmp_path: Path
) -> None:
    gguf_file.write(model, tokenizer, tmp_path / "m.gguf", "f16")
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    query = load_file(model / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"].numpy()
    first_head = query[:16].astype(np.float16)  # 4 heads of 16 rows
    assert np.array_equal(stored["blk.0.attn_q.weight"][0:16:2], first_head[:8])
    assert np.array_equal(stored["blk.0.attn_q.weight"][1:16:2], first_head[8:])
    assert "output.weight" not in stored  # tied


def test_an_untied_output_matrix_is_written(model: Path, tokenizer: Path, tmp_path: Path) -> None:
    untied = tmp_path / "untied"
    untied.mkdir()
    weights = load_file(model / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] * 2
    save_file(weights, untied / "model.safetensors")
    config = json.loads((model / "config.json").read_text()) | {"tie_word_embeddings": False}
    (untied / "config.json").write_text(json.dumps(config))
    gguf_file.write(untied, tokenizer, tmp_path / "m.gguf", "f16")
    assert "output.weight" in {tensor.name for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}


def test_the_tokenizer_travels_in_the_file(model: Path, tokenizer: Path, tmp_path: Path) -> None:
    gguf_file.write(model, tokenizer, tmp_path / "m.gguf", "f16")
    tokens, types = (
        field(tmp_path / "m.gguf", "tokenizer.ggml.tokens"),
        field(tmp_path / "m.gguf", "tokenizer.ggml.token_type"),
    )
    assert tokens[: len(SPECIAL)] == list(SPECIAL)
    assert types[: len(SPECIAL)] == [gguf.TokenType.CONTROL] * len(SPECIAL)
    assert set(types[len(SPECIAL) :]) == {gguf.TokenType.NORMAL}
    assert field(tmp_path / "m.gguf", "tokenizer.ggml.pre") == "gpt-2"
    assert field(tmp_path / "m.gguf", "tokenizer.ggml.eos_token_id") == 0
    assert field(tmp_path / "m.gguf", "tokenizer.ggml.padding_token_id") == 1
    assert field(tmp_path / "m.gguf", "tokenizer.ggml.add_bos_token") is False
    assert "tokenizer.chat_template" not in gguf.GGUFReader(tmp_path / "m.gguf").fields  # a base model has none


def test_a_chat_template_travels_in_the_file(model: Path, tokenizer: Path, tmp_path: Path) -> None:
    shutil.copytree(tokenizer, tmp_path / "tokenizer")
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings))
    gguf_file.write(model, tmp_path / "tokenizer", tmp_path / "m.gguf", "f16")
    assert "<|end|>" in str(field(tmp_path / "m.gguf", "tokenizer.chat_template"))


def test_bos_is_added_exactly_where_tokenizer_json_adds_it(model: Path, tokenizer: Path, tmp_path: Path) -> None:
    framing = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    framing.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[0]} $A", pair=f"{SPECIAL[0]} $A $B", special_tokens=[(SPECIAL[0], 0)]
    )
    framing.save(str(tmp_path / "tokenizer.json"))
    gguf_file.write(model, tmp_path, tmp_path / "m.gguf", "f16")
    assert field(tmp_path / "m.gguf", "tokenizer.ggml.add_bos_token") is True
    assert field(tmp_path / "m.gguf", "tokenizer.ggml.add_eos_token") is False


def test_rows_that_do_not_divide_by_32_stay_at_16_bits_and_are_named(tokenizer: Path, tmp_path: Path) -> None:
    narrow = tmp_path / "narrow"
    train_model(narrow, Tokenizer.from_file(str(tokenizer / "tokenizer.json")), 1, width=48, ffn_width=96)
    written = gguf_file.write(narrow, tokenizer, tmp_path / "m.gguf", "q8_0")
    assert "token_embd.weight" in written.fallback
    assert "blk.0.ffn_down.weight" not in written.fallback  # its rows are 96 wide


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused(model: Path, tmp_path: Path) -> None:
    train_tokenizer(tmp_path, vocabulary=1100)
    with pytest.raises(LlmcoreError, match="has no row in a model of 1024"):
        gguf_file.write(model, tmp_path, tmp_path / "m.gguf")


def test_coarser_formats_are_smaller_and_lose_more() -> None:
    report = json.loads((release().chain.root / "quantise" / "quantisation.json").read_text())
    formats = {entry["format"]: entry for entry in report["formats"]}
    assert list(formats) == ["f16", "q8_0", "q4_0"]
    for finer, coarser in (("f16", "q8_0"), ("q8_0", "q4_0")):
        assert formats[finer]["bytes"] > formats[coarser]["bytes"]
        assert formats[finer]["mean_kl"] <= formats[coarser]["mean_kl"]
        assert formats[finer]["top1_agreement"] >= formats[coarser]["top1_agreement"]
    assert all(entry["mean_kl"] <= entry["kl_p999"] for entry in formats.values())
    assert abs(formats["f16"]["bits_per_byte_difference"]) < 1e-4
    assert 0 < formats["q4_0"]["mean_kl"] < 0.02
    assert 8_000 <= report["measured_on"]["tokens"] < 8_000 + 128
    assert release().quantised_metrics["q4_0_mean_kl"] == formats["q4_0"]["mean_kl"]


def test_bits_per_byte_are_those_of_the_text(model: Path, tokenizer: Path) -> None:
    encoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    text = "naïve ☕ statement"
    ids = encoder.encode(text).ids
    losses = fidelity.measure(model, {}, [np.array([0, *ids])], tokenizer / "tokenizer.json", 1, "cpu", lambda *_: None)
    assert (losses.tokens, losses.bytes) == (len(ids), len(text.encode()))
    assert losses.bits_per_byte > 0


def test_held_out_text_is_drawn_from_every_document_first(tokenizer: Path, tmp_path: Path) -> None:
    encoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    table = token_table(encoder, [f"{n} " + "The statement is executed. " * 60 for n in range(10)])
    (tmp_path / "validation").mkdir()
    table.write_parquet(tmp_path / "validation" / "g000-00-web-00000.parquet")
    pieces = fidelity.sample(LocalFiles(tmp_path), budget=1_000, window=100, split="validation")
    rows = table.sort("id")["tokens"].to_list()
    assert [piece.tolist() for piece in pieces] == [[0, *row[:100]] for row in rows]
    more = fidelity.sample(LocalFiles(tmp_path), budget=1_500, window=100, split="validation")
    assert [piece.tolist() for piece in more[10:]] == [row[99:200] for row in rows[:5]]
    gone = table.sort("id").select("id").head(3)
    left = fidelity.sample(LocalFiles(tmp_path), budget=1_000, window=100, split="validation", gone=gone)
    assert [piece.tolist() for piece in left[:7]] == [[0, *row[:100]] for row in rows[3:]]
    with pytest.raises(LlmcoreError, match="no held-out tokens"):
        fidelity.held_out_split(LocalFiles(tmp_path), gone=table.select("id"))


def test_no_held_out_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "validation").mkdir()
    pl.DataFrame(schema={"id": pl.String, "tokens": pl.List(pl.UInt16), "n_tokens": pl.Int64}).write_parquet(
        tmp_path / "validation" / "g000-00-web-00000.parquet"
    )
    with pytest.raises(LlmcoreError, match="no held-out tokens"):
        fidelity.held_out_split(LocalFiles(tmp_path))


def test_without_validation_text_the_test_split_serves(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    table = token_table(Tokenizer.from_file(str(tokenizer / "tokenizer.json")), ["The statement is executed."])
    table.write_parquet(tmp_path / "test" / "g000-00-web-00000.parquet")
    assert fidelity.held_out_split(LocalFiles(tmp_path)) == "test"


def test_a_k_quant_without_the_extra_is_one_line_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(k_quants, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"q4_k_m needs llama.cpp; install the extra .*llmcore\[kquants\]"):
        k_quants.check_available(QuantiseParams(formats=("f16", "q4_k_m")).formats)
    k_quants.check_available(("f16", "q8_0"))


def test_the_published_folder_is_complete_and_every_file_is_vouched_for() -> None:
    folder, bill = release().folder, json.loads(release().read("lineage.json"))
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "model-f16.gguf",
        "model-q8_0.gguf",
        "model-q4_0.gguf",
        "README.md",
        "LICENSE",
        "lineage.json",
        "report.html",
    }
    for name, entry in bill["files"].items():
        assert sha256((folder / name).read_bytes()).hexdigest() == entry["sha256"]
    assert len(bill["files"]) + 1 == release().metrics["files"]
    assert release().metrics["gate"] == "transformers"
    assert json.loads(release().read("generation_config.json"))["eos_token_id"] == [0, 5]


def test_the_tokenizer_of_a_base_model_says_its_window_and_has_no_chat_template() -> None:
    settings = json.loads(release().read("tokenizer_config.json"))
    assert settings["model_max_length"] == json.loads(release().read("config.json"))["max_position_embeddings"]
    assert "chat_template" not in settings


def test_lineage_leads_from_the_model_back_to_the_crawl() -> None:
    bill = json.loads(release().read("lineage.json"))
    ids = {node["id"] for node in bill["nodes"]} | {"published"}
    assert all(edge["from"] in ids and edge["to"] in ids for edge in bill["edges"])
    reached, waiting = set(), ["published"]
    while waiting:
        target = waiting.pop()
        reached.add(target)
        waiting += [edge["from"] for edge in bill["edges"] if edge["to"] == target and edge["from"] not in reached]
    assert reached == ids
    assert any(node["stage"] == "crawl" for node in bill["nodes"] if node["id"] in reached)


def test_lineage_counts_each_source_and_its_licence() -> None:
    sources = {row["source"]: row for row in json.loads(release().read("lineage.json"))["sources"]}
    assert sources["web"]["licence"] == "Apache-2.0"
    assert sources["web"]["documents"] == 40
    assert sources["web"]["trained_documents"] < 40
    assert sources[HOSTILE]["licence"] == "unknown"


def test_publishing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    run = LocalRun(tmp_path, manifests=release().chain.manifests)
    publish(release().inputs, PublishParams(name="tiny", description="A model of Python's manual & <b>more</b>."), run)
    for path in sorted(release().folder.iterdir()):
        assert (run.out / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_gate_refuses_other_logits(model: Path, tmp_path: Path) -> None:
    shutil.copytree(release().folder, tmp_path / "folder")
    weights = load_file(model / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"] *= 1.01
    save_file(weights, tmp_path / "folder" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LlmcoreError, match="publish gate: transformers's logits differ"):
        gate.check_loaders(tmp_path / "folder", model)


def test_the_gate_refuses_another_rotary_base(model: Path, tmp_path: Path) -> None:
    shutil.copytree(release().folder, tmp_path / "folder")
    config = json.loads((model / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 500.0
    (tmp_path / "folder" / "config.json").write_text(json.dumps(config))
    with pytest.raises(LlmcoreError, match="logits differ"):
        gate.check_loaders(tmp_path / "folder", model)


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "tokenizer.json"])
def test_the_gate_refuses_a_missing_file(tmp_path: Path, name: str) -> None:
    shutil.copytree(release().folder, tmp_path / "folder")
    (tmp_path / "folder" / name).unlink()
    with pytest.raises(LlmcoreError, match=f"publish gate: {name} is missing"):
        gate.check_folder(tmp_path / "folder", json.loads(release().read("lineage.json")))


def test_the_gate_refuses_a_changed_or_unlisted_file(tmp_path: Path) -> None:
    shutil.copytree(release().folder, tmp_path / "folder")
    bill = json.loads(release().read("lineage.json"))
    gate.check_folder(tmp_path / "folder", bill)
    with (tmp_path / "folder" / "model-q8_0.gguf").open("r+b") as file:
        file.seek(5_000)
        file.write(b"?")
    with pytest.raises(LlmcoreError, match=r"model-q8_0\.gguf is not what lineage\.json says"):
        gate.check_folder(tmp_path / "folder", bill)
    shutil.copyfile(release().folder / "model-q8_0.gguf", tmp_path / "folder" / "model-q8_0.gguf")
    (tmp_path / "folder" / "extra.bin").write_bytes(b"x")
    with pytest.raises(LlmcoreError, match=r"extra\.bin is not what lineage\.json says"):
        gate.check_folder(tmp_path / "folder", bill)


def test_a_model_without_sources_is_not_published(tmp_path: Path) -> None:
    inputs = {**release().inputs, "history": LocalFiles(tmp_path / "nothing")}
    known = [entry for entry in release().chain.manifests if entry["step"] in ("tokenizer", "train", "quantise")]
    with pytest.raises(LlmcoreError, match=r"lineage\.json names no source"):
        publish(inputs, PublishParams(), LocalRun(tmp_path, manifests=known))


def test_a_licence_needs_its_text() -> None:
    with pytest.raises(ValueError, match="no text of licence 'MIT' is bundled: give it as licence_text"):
        PublishParams(licence="MIT")
    assert PublishParams(licence="MIT", licence_text="Permission is hereby granted …").licence == "MIT"


@pytest.mark.parametrize(
    "licence", ["Apache-2.0", "CC0-1.0", "CC-BY-4.0", "MIT", "BSD-3-Clause", "unknown", "ODC-By-1.0"]
)
def test_the_default_licence_stands_where_the_sources_allow_it(licence: str) -> None:
    assert model_licence("", {"notes": licence}) == "Apache-2.0"


@pytest.mark.parametrize(
    "licence", ["CC-BY-SA-4.0", "CC-BY-NC-4.0", "GPL-3.0-only", "ODbL-1.0", "GFDL-1.3", "proprietary"]
)
def test_the_licence_is_asked_for_where_a_source_does_not_allow_the_default(tmp_path: Path, licence: str) -> None:
    source = {"kind": "text", "name": "notes", "path": "texts", "licence": licence}
    config = load(small_config(tmp_path, sources=[source]))
    with pytest.raises(UsageError, match=r"publish\.licence: missing; source 'notes' is .* does not allow the default"):
        build(config)
    said = config.model_copy(update={"publish": PublishParams(licence=licence, licence_text="You may …")})
    assert said.publish_params().licence == licence


def test_the_card_has_front_matter_that_the_hub_reads() -> None:
    _, front, body = release().read("README.md").split("---\n", 2)
    matter = yaml.safe_load(front)
    assert matter["license"] == "apache-2.0"
    assert matter["language"] == ["en"]
    assert matter["library_name"] == "transformers"
    assert matter["model-index"][0]["results"][0]["metrics"][0]["value"] == 1.55
    assert body.startswith("\n# tiny\n")


def test_the_card_shows_the_model_beside_its_baselines() -> None:
    rows = [line for line in release().read("README.md").splitlines() if line.startswith("| ")]
    shown = [line for line in rows if "1.550 (1.520–1.590)" in line]
    assert shown[:1] == ["| **this model** | 1.520 (1.490–1.560) | 1.550 (1.520–1.590) |"]
    order = ["**this model**", "byte 7-gram", "byte 5-gram", "xz -9", "unigram", "uniform"]
    places = [next(number for number, line in enumerate(rows) if f"| {name}" in line or name in line) for name in order]
    assert places == sorted(places)
    assert any("| `model-q4_0.gguf` |" in line for line in rows)
    assert any(line.startswith("| dedup | 79 | 74 | 5 |") and "near duplicate 5" in line for line in rows)


def test_card_and_report_say_what_was_not_read_and_how_large_benchmarks_are() -> None:
    for name in ("README.md", "report.html"):
        page = release().read(name)
        assert "gsm8k-100</bdi> (100 items)" in page or "gsm8k-100 (100 items)" in page, name
        assert "7 of 60 documents were never read" in page, name
        assert "(difference 0.110 (0.080–0.150))" in page, name


def test_the_card_tells_how_it_was_trained_and_what_was_removed() -> None:
    card = release().read("README.md")
    assert "**Better than a byte 7\\-gram" in card or "**Better than a byte 7-gram" in card
    assert '"learning_rate": 0.005' in card
    assert 'tokenizer("The", return_tensors="pt")' in card  # the prompt is of the corpus
    assert "-p The -n 64" in card
    rows = [line for line in card.splitlines() if line.startswith("| ")]
    assert any(line.startswith("| dedup | near duplicate | 5 | ") for line in rows)
    assert "| EMAIL\\_ADDRESS | 4 |" in rows
    assert "Nobody said under which licence" in card
    trained = sum(int(line.split("|")[2]) for line in rows if re.match(r"\| [\d,]+ to [\d,]+ \|", line))
    (split,) = [line for line in rows if line.startswith("| train | ")]
    assert trained == int(split.split("|")[2])


def test_text_of_documents_cannot_become_markup_on_the_card() -> None:
    card = release().read("README.md")
    head, _, tail = card.partition("## Samples")
    assert "<script>" not in head
    assert "](http" not in head.replace("\\](http", "")
    assert "````text\nThe state ``` of <script>" in tail  # a longer fence than any inside
    assert markdown("a|b\nc <i> & *x*") == "a\\|b c &lt;i&gt; &amp; \\*x\\*"


GOLDEN = {
    "f16": "253b058b4817d1cf",
    "q8_0": "dd3628f3c6be5db7",
    "q4_0": "29cddfa81e47ffac",
}


@pytest.mark.parametrize("quantisation", GOLDEN)
def test_quantise_makes_what_it_always_made(tmp_path: Path, quantisation: str) -> None:
    """Other bytes from the same input need another version of the stage."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *alphabet, "th", "the"])}
    merges = [("t", "h"), ("th", "e")]
    encoder = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.add_special_tokens(list(SPECIAL))
    encoder.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}')
    config = ModelConfig(len(vocabulary), width=32, layers=1, heads=2, kv_heads=1, ffn_width=64, window=16)
    model = Transformer(config)
    numbers = np.random.Generator(np.random.Philox(1))
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    model.load_state_dict(
        {name: torch.from_numpy(numbers.random(shapes[name], dtype=np.float32) - 0.5) for name in sorted(shapes)}
    )
    huggingface.save(model, tmp_path)
    gguf_file.write(tmp_path, tmp_path, tmp_path / "m.gguf", quantisation)
    assert STAGE.version == 2
    assert sha256((tmp_path / "m.gguf").read_bytes()).hexdigest()[:16] == GOLDEN[quantisation]


def test_without_transformers_our_own_loader_is_the_gate_and_the_card_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "find_spec", lambda name: None)
    run = LocalRun(tmp_path, manifests=release().chain.manifests)
    assert publish(release().inputs, PublishParams(), run)["gate"] == "llmcore"
    assert "transformers was not installed" in (run.out / "README.md").read_text(encoding="utf-8")
