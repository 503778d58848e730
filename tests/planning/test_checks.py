"""What cannot work is found before anything runs, by every command alike."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llmcore.errors import UsageError
from llmcore.planning import checks
from llmcore.planning.chain import build
from llmcore.planning.checks import examine, must_work
from llmcore.planning.config import load, quickstart
from llmcore.text.language import lid176
from tests.small import ADDRESSES, BYTES_EACH, TINY_TRAINING, small_config

NOTES = {"kind": "text", "name": "notes", "path": "texts"}


def wrong(tmp_path: Path, **changes: Any) -> list[str]:
    return examine(load(small_config(tmp_path, **changes))).wrong


def test_the_quickstart_and_the_small_configuration_work(tmp_path: Path) -> None:
    assert must_work(quickstart()) == [] == must_work(load(small_config(tmp_path)))


def test_the_codes_are_the_models_own() -> None:
    assert {f"__label__{code}" for code in checks.known_languages()} == set(lid176().get_labels())


@pytest.mark.parametrize(
    ("code", "meant"),
    [("english", "en"), ("EN", "en"), ("deu", "de"), ("zh-CN", "zh"), ("en_GB", "en"), ("french", "fr"), ("jpn", "ja")],
)
def test_an_unknown_language_is_named_with_the_code_that_is_meant(code: str, meant: str, tmp_path: Path) -> None:
    (line,) = wrong(tmp_path, language={"languages": ["fr", code]})
    assert line.startswith(f"language.languages: {code!r} is no code") and line.endswith(f"did you mean {meant}?")


def test_a_language_that_nobody_knows_comes_with_all_codes(tmp_path: Path) -> None:
    (line,) = wrong(tmp_path, language={"languages": ["klingon"]})
    assert "there are af, als, am" in line


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = wrong(
        tmp_path,
        language={"languages": ["english"]},
        sources=[NOTES, NOTES | {"name": "gone", "path": "nowhere"}, NOTES | {"name": "none", "path": "empty"}],
        store=f"file://{tmp_path}/file/store",
        execution={"runner": "ray"},
        decontaminate={"benchmarks": ["exam.jsonl"]},
    )
    begins = ("language.languages:", "execution.runner: ray needs prefect_ray", "decontaminate.benchmarks:", "store:")
    for begin in (*begins, "source 'gone': path:", "source 'none': path:"):
        assert any(line.startswith(begin) for line in found), f"{begin} is not in {found}"


def test_a_window_that_the_text_cannot_fill_is_refused_and_a_wide_one_warned_of(tmp_path: Path) -> None:
    held = ADDRESSES * BYTES_EACH
    (line,) = wrong(tmp_path, pack={"window": 2 * held})
    assert line.startswith("pack.window: 240,000 tokens are more than the sources hold (120,000 bytes")
    warnings = must_work(load(small_config(tmp_path, pack={"window": held - 1})))
    assert any(line.startswith("pack.window: a step of 8 windows") for line in warnings)


def test_a_vocabulary_that_the_text_cannot_teach_is_refused_and_a_large_one_warned_of(tmp_path: Path) -> None:
    (line,) = wrong(tmp_path, tokenizer={"vocab_size": 1 << 20})
    assert line.startswith("tokenizer.vocab_size: 1,048,576 entries cannot be learned from 120,000 bytes")
    warnings = must_work(load(small_config(tmp_path, tokenizer={"vocab_size": 50_000})))
    assert any(line.startswith("tokenizer.vocab_size: 50,000 entries for about 0.10 MB") for line in warnings)


def test_of_a_crawl_nobody_knows_the_size(tmp_path: Path) -> None:
    site = {"kind": "crawl", "name": "site", "start_urls": ["https://example.org/"]}
    assert wrong(tmp_path, sources=[site], pack={"window": 1 << 20}, tokenizer={"vocab_size": 1 << 20}) == []


def test_compiling_needs_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    asked = {"train": TINY_TRAINING | {"compile": True}, "execution": {"device": "cpu"}}
    (line,) = wrong(tmp_path, **asked)
    assert line.startswith("train.compile: ") and "no-such-compiler" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_target_that_this_machine_is_not_is_a_warning_until_it_runs_here(tmp_path: Path) -> None:
    config = load(small_config(tmp_path, execution={"device": "cuda"}))
    assert any("no GPU" in line for line in must_work(config))
    with pytest.raises(UsageError, match="no GPU"):
        must_work(config, here=True)


def test_a_training_on_a_dataset_that_is_there_needs_no_sources(tmp_path: Path) -> None:
    config = load(small_config(tmp_path, sources=[NOTES | {"path": "nowhere"}]))
    must_work(config, sources=False)
    with pytest.raises(UsageError, match=r"source 'notes': path: .*nowhere does not exist"):
        must_work(config)


def test_a_stage_that_there_is_not_comes_with_the_one_that_is_meant(tmp_path: Path) -> None:
    chain = build(load(small_config(tmp_path)))
    with pytest.raises(UsageError, match=r"--until: no stage 'tran' in the chain; did you mean 'train'\? There are"):
        list(chain.until("tran"))


@pytest.mark.slow
def test_every_command_finds_the_same_before_anything_runs(tmp_path: Path) -> None:
    path = small_config(tmp_path, language={"languages": ["english"]}, execution={"runner": "ray"})
    lines = []
    for words in (["config"], ["config", "--json"], ["plan"], ["run"], ["dataset"]):
        command = [sys.executable, "-m", "llmcore.cli", words[0], str(path), *words[1:]]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HOME": str(tmp_path)})
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        lines.append(done.stderr)
    assert len(set(lines)) == 1 and "did you mean en?" in lines[0] and "execution.runner: ray" in lines[0]
    assert not (tmp_path / "store").exists()
