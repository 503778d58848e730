"""Decontamination on labelled documents: what must be caught, and what must not."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from llmcore.artifacts.keys import file_digest
from llmcore.errors import LlmcoreError, UsageError
from llmcore.quickstart import bundled
from llmcore.selection.decontaminate import (
    BUNDLED,
    BenchmarkParams,
    DecontaminateParams,
    OverlapParams,
    benchmarks,
    decontaminate,
)
from tests.local_files import LocalFiles, LocalRun


@cache
def items(name: str) -> list[dict[str, Any]]:
    lines = bundled(f"benchmarks/{name.removesuffix('-100')}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> LocalFiles:
    return build(tmp_path_factory.mktemp("index"))


def build(folder: Path, **params: Any) -> LocalFiles:
    run = LocalRun(folder)
    benchmarks({}, BenchmarkParams(**params), run)
    return LocalFiles(run.out)


def frame(*texts: str) -> pl.DataFrame:
    schema = {"id": pl.String, "text": pl.String}
    return pl.DataFrame({"id": [f"{number:032x}" for number in range(len(texts))], "text": list(texts)}, schema)


def caught(index: LocalFiles, *texts: str, threshold: float | None = None) -> list[bool]:
    documents = frame(*texts)
    result = decontaminate(documents, OverlapParams(threshold=threshold), index)
    kept, lost = result.outputs["kept"], result.outputs["dropped"]
    assert isinstance(kept, pl.DataFrame) and isinstance(lost, pl.DataFrame)
    assert kept.height + lost.height == documents.height
    assert kept.equals(documents.filter(documents["id"].is_in(kept["id"].implode())))
    return documents["id"].is_in(lost["id"].implode()).to_list()


def around(text: str) -> str:
    address = pl.read_parquet(bundled("sotu.parquet"))["text"][100]
    return f"{address[:3000]}\n\n{text}\n\n{address[3000:6000]}"


GSM = items("gsm8k")[3]["prompt"]
TRUTH = items("truthfulqa_mc1")[0]
SWAG = items("hellaswag")[0]
WORDS = GSM.split()

CONTAMINATED = {
    "verbatim": GSM,
    "shouted, without punctuation": GSM.upper().replace(",", "").replace(".", ""),
    "split over lines": "\n".join(" ".join(WORDS[at : at + 6]) for at in range(0, len(WORDS), 6)),
    "one number changed": re.sub(r"\d+", "977", GSM, count=1),
    "first two thirds quoted": " ".join(WORDS[: len(WORDS) * 2 // 3]),
    "worked answer alone, as shown on a page": re.sub("<<.*?>>", "", items("gsm8k")[3]["upstream_answer"]),
    "options re-formatted": TRUTH["question"]
    + "".join(f"\n({'abcdefgh'[n]}) {c};" for n, c in enumerate(TRUTH["choices"])),
    "options in another order": SWAG["ctx"] + " … " + " / ".join(reversed(SWAG["endings"])),
}
CLEAN = {
    "a third quoted": " ".join(WORDS[: len(WORDS) // 3]),
    "short question alone": TRUTH["question"],
    "one option alone": TRUTH["choices"][1],
    "an address": "",
    "exam boilerplate": "Choose the best answer. Which of these is correct? All of the above. None of the above.",
    "licence text": "Licensed under the Apache License, Version 2.0; you may not use this file except in compliance "
    "with the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0",
    "same words shuffled": " ".join(sorted(WORDS)),
}


@pytest.mark.parametrize("label", CONTAMINATED)
def test_contaminated_pages_are_dropped(index: LocalFiles, label: str) -> None:
    assert caught(index, around(CONTAMINATED[label])) == [True]


@pytest.mark.parametrize("label", CLEAN)
def test_clean_pages_stay(index: LocalFiles, label: str) -> None:
    assert caught(index, around(CLEAN[label])) == [False]


@pytest.mark.parametrize("name", BUNDLED)
def test_every_item_quoted_in_full_is_caught(index: LocalFiles, name: str) -> None:
    texts = []
    for item in items(name):
        question = item.get("question") or item.get("prompt") or item.get("ctx")
        texts.append("\n".join([str(question), *(item.get("choices") or item.get("endings") or [])]))
    assert all(caught(index, *texts))


def test_real_addresses_and_an_empty_shard_are_clean(index: LocalFiles) -> None:
    assert not any(caught(index, *pl.read_parquet(bundled("sotu.parquet"))["text"].head(60), ""))
    assert caught(index) == []


def test_the_reason_names_benchmark_item_overlap_and_threshold(index: LocalFiles) -> None:
    result = decontaminate(frame(around(GSM), "nothing"), OverlapParams(), index)
    row = result.outputs["dropped"].row(0, named=True)  # type: ignore[union-attr]
    assert (row["stage"], row["reason"]) == ("decontaminate", "benchmark_overlap")
    expected = {"benchmark": "gsm8k-100", "item": items("gsm8k")[3]["id"], "overlap": 1.0, "threshold": 0.5}
    assert json.loads(row["detail"]) == expected
    assert result.metrics["dropped_gsm8k-100"] == 1 and result.metrics["kept"] == 1
    report = result.outputs["overlaps"]
    assert isinstance(report, pl.DataFrame)
    assert report.select("item", "dropped").rows() == [(items("gsm8k")[3]["id"], True)]


@pytest.mark.parametrize(
    ("definition", "quote", "expected"),
    [
        ("tulu3", " ".join(WORDS[:14]), False),
        ("palm", GSM, True),
        ("palm", " ".join(WORDS[: len(WORDS) * 6 // 10]), False),
        ("gpt3", " ".join(WORDS[:14]), True),
        ("gpt3", " ".join(WORDS[:12]), False),
        ("datatrove", " ".join(WORDS[:13]), True),
    ],
)
def test_definitions_by_name(tmp_path: Path, definition: str, quote: str, expected: bool) -> None:
    assert caught(build(tmp_path, definition=definition, bundled=("gsm8k-100",)), around(quote)) == [expected]


def test_an_index_that_could_match_nothing_is_an_error(tmp_path: Path) -> None:
    for number, content in enumerate(("", '{"label": 3}\n', '{"question": "Why?"}\n')):
        path = tmp_path / f"mine{number}.jsonl"
        path.write_text(content)
        run = LocalRun(tmp_path / str(number), {"paths": {"mine": str(path)}})
        with pytest.raises(UsageError, match="'mine' would match nothing"):
            benchmarks({}, BenchmarkParams(files={"mine": file_digest(path)}), run)


def test_a_setting_that_misses_the_canary_is_an_error(index: LocalFiles, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for name in index.names():
        (damaged / name).write_bytes(index.path(name).read_bytes())
    grams = pl.read_parquet(damaged / "ngrams.parquet")
    grams.with_columns(pl.col("hash") + 1).write_parquet(damaged / "ngrams.parquet")
    with pytest.raises(LlmcoreError, match="quoted word for word was not caught"):
        decontaminate(frame("anything"), OverlapParams(), LocalFiles(damaged))


def test_a_users_own_benchmark_enters_by_digest(tmp_path: Path) -> None:
    path = tmp_path / "exam.jsonl"
    question = "In which year did the harbour master of the smallest port on the northern coast resign from his office?"
    path.write_text(json.dumps({"question": question, "answer": "1911"}) + "\n")
    section = DecontaminateParams(benchmarks=("gsm8k-100", str(path)))
    params = section.benchmark_params()
    assert params.bundled == ("gsm8k-100",) and params.files == {"exam": file_digest(path)}
    run = LocalRun(tmp_path / "run", {"paths": section.paths()})
    benchmarks({}, params, run)
    assert caught(LocalFiles(run.out), around(question), around(GSM), "") == [True, True, False]
    path.write_text(path.read_text() + "\n")
    with pytest.raises(LlmcoreError, match="changed since"):
        benchmarks({}, params, LocalRun(tmp_path / "again", {"paths": section.paths()}))
    with pytest.raises(UsageError, match="no such file"):
        DecontaminateParams(benchmarks=(str(tmp_path / "none.jsonl"),)).benchmark_params()
    with pytest.raises(ValueError, match="no benchmark 'gsm9k'"):
        DecontaminateParams(benchmarks=("gsm9k",))


def test_a_sample_says_in_name_and_numbers_that_it_is_one(index: LocalFiles, tmp_path: Path) -> None:
    assert all(name.endswith("-100") for name in BUNDLED)
    with pytest.raises(ValueError, match="no benchmark 'gsm8k'; there are gsm8k-100, hellaswag-100"):
        DecontaminateParams(benchmarks=("gsm8k",))
    section = DecontaminateParams(benchmarks=("gsm8k-100", str(exam(tmp_path / "exam.jsonl", QUESTIONS[0]))))
    run = LocalRun(tmp_path / "run", {"paths": section.paths()})
    metrics = benchmarks({}, section.benchmark_params(), run)
    assert (metrics["items"], metrics["items_gsm8k-100"], metrics["items_exam"]) == (101, 100, 1)


def exam(path: Path, question: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"question": question}) + "\n")
    return path


QUESTIONS = (
    "In which year did the harbour master of the smallest port on the northern coast resign from his office?",
    "How many lighthouses stood along the eastern shore when the second survey of the islands was completed?",
)


def test_two_benchmarks_of_one_stem_both_count_wherever_they_lie(tmp_path: Path) -> None:
    indexed = []
    for place in ("here", "elsewhere"):
        paths = [exam(tmp_path / place / str(n) / "gsm8k-100.jsonl", text) for n, text in enumerate(QUESTIONS)]
        section = DecontaminateParams(benchmarks=("gsm8k-100", *map(str, paths)))
        params = section.benchmark_params()
        assert params.files.keys() == section.paths().keys() and len(params.files) == 2
        assert "gsm8k-100" not in params.files
        run = LocalRun(tmp_path / place / "run", {"paths": section.paths()})
        assert benchmarks({}, params, run)["benchmarks"] == 3
        assert caught(LocalFiles(run.out), *map(around, QUESTIONS), around(GSM), "") == [True, True, True, False]
        indexed.append(params)
    assert indexed[0] == indexed[1]


def test_one_file_named_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"'\./exam\.jsonl' is named twice|'exam\.jsonl' is named twice"):
        DecontaminateParams(benchmarks=("exam.jsonl", "./exam.jsonl"))


def test_a_benchmark_is_read_line_by_line_as_json_counts_lines(tmp_path: Path) -> None:
    path = exam(tmp_path / "exam.jsonl", QUESTIONS[0])
    path.write_text(json.dumps({"question": QUESTIONS[0] + "\u2028 and why?"}, ensure_ascii=False) + "\n")
    section = DecontaminateParams(benchmarks=(str(path),))
    assert (
        benchmarks({}, section.benchmark_params(), LocalRun(tmp_path / "run", {"paths": section.paths()}))["items"] == 1
    )
    path.write_bytes(b'{"question": "caf\xe9"}')
    section = DecontaminateParams(benchmarks=(str(path),))
    with pytest.raises(UsageError, match="benchmark 'exam': not UTF-8"):
        benchmarks({}, section.benchmark_params(), LocalRun(tmp_path / "again", {"paths": section.paths()}))


def test_what_many_documents_say_is_no_evidence(tmp_path: Path) -> None:
    """A licence inside a benchmark item must not drop every page that carries the licence."""
    licence = CLEAN["licence text"]
    path = tmp_path / "law.jsonl"
    own = "Which clause of these terms lets a licensee of the work charge a fee for a warranty that he offers himself?"
    path.write_text(json.dumps({"question": f"{licence} {own}"}) + "\n")
    (tmp_path / "documents" / "kept").mkdir(parents=True)
    frame(*[around(licence)] * 30).write_parquet(tmp_path / "documents" / "kept" / "g000-00-a-00000.parquet")
    params = BenchmarkParams(bundled=("gsm8k-100",), files={"law": file_digest(path)})
    for role, expected in (({}, [True, False]), ({"documents": LocalFiles(tmp_path / "documents")}, [False, True])):
        run = LocalRun(tmp_path / f"run{len(role)}", {"paths": {"law": str(path)}})
        metrics = benchmarks(role, params, run)
        assert (metrics["common_ngrams"] > 0) == bool(role)
        assert caught(LocalFiles(run.out), around(licence), around(own)) == expected
