"""Every mistake of a configuration is said at once, each with its key, its source and what was meant perhaps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llmcore.errors import UsageError
from llmcore.planning.config import check, load

SOURCE = {"kind": "text", "name": "notes", "path": "x"}


def mistakes(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and "\n" not in line
    return line.removeprefix(f"{path}: ").split(" | ")


def test_every_wrong_key_is_named_at_once_with_the_nearest_right_one(tmp_path: Path) -> None:
    found = mistakes(
        tmp_path,
        "name: mine\nsorces: 3\nlayers: 4\n"
        "sources:\n- {kind: text, name: notes, txt_column: t, path: y}\n- {kind: crawl, name: site, start_url: x}\n"
        "train: {layer: 4, window: 3, epocs: 1}\npack: {widnow: 4}\nsplit: {foo: 1}\n",
    )
    assert sorted(found) == [
        "layers: unknown key; it belongs under train",
        "pack.widnow: unknown key; did you mean window?",
        "sorces: unknown key; did you mean sources?",
        "sources.0.txt_column (source 'notes'): unknown key; did you mean text_column?",
        "sources.1.start_url (source 'site'): unknown key; did you mean start_urls?",
        "sources.1.start_urls (source 'site'): missing, add it",
        "split.foo: unknown key; there are validation, test, seed",
        "train.epocs: unknown key; did you mean epochs?",
        "train.layer: unknown key; did you mean layers?",
        "train.window: unknown key; it belongs under pack",
    ]


def test_what_the_training_refuses_does_not_hide_the_rest(tmp_path: Path) -> None:
    source = "sources: [{kind: text, name: a, path: x}]"
    found = mistakes(tmp_path, f"name: a\n{source}\ntrain: {{batch: 8, micro_batch: 3}}\npack: {{window: wide}}\n")
    assert found[0].startswith("train.micro_batch: 3 does not divide") and found[1].startswith("pack.window: ")


@pytest.mark.parametrize(
    ("kind", "instead"),
    [
        ("csv", r"convert the files: .*read_csv\('FILE'\).*kind: parquet with text_column"),
        ("json", "kind: jsonl"),
        ("pdf", "pdftotext"),
        ("docx", "pandoc"),
        ("md", "say kind: text"),
        ("website", "say kind: crawl"),
        ("parqet", r"did you mean parquet\?"),
    ],
)
def test_a_kind_that_there_is_not_comes_with_what_to_do(kind: str, instead: str, tmp_path: Path) -> None:
    (line,) = mistakes(tmp_path, f"name: a\nsources: [{{kind: {kind}, name: notes, path: x}}]\n")
    assert line.startswith(f"sources.0.kind (source 'notes'): '{kind}' is none of crawl, ")
    assert re.search(instead, line)


def test_the_command_that_is_advised_for_csv_makes_what_can_be_read(tmp_path: Path) -> None:
    import polars as pl

    pl.DataFrame({"body": ["One text.", "Another text."]}).write_csv(tmp_path / "a.csv")
    pl.read_csv(tmp_path / "a.csv").write_parquet(tmp_path / "a.csv.parquet")
    made = check(
        {"name": "a", "sources": [{"kind": "parquet", "name": "a", "path": "a.csv.parquet", "text_column": "body"}]},
        folder=tmp_path,
    )
    assert made.sources[0].kind == "parquet"
    assert list(made.sources[0].sizes()) == ["a.csv.parquet"]


def test_credentials_are_never_shown() -> None:
    data = {"name": "a", "sources": [{"kind": "crawl", "start_urls": "https://me:secret@example.org/"}]}
    with pytest.raises(UsageError) as caught:
        check(data)
    assert "secret" not in str(caught.value)
