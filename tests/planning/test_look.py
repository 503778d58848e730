"""What lies in folders is found as sources: kinds, licences, languages, columns; the rest is named with what to do."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from llmcore.errors import UsageError
from llmcore.planning.licences import licence_in, licence_of
from llmcore.planning.look import look
from llmcore.quickstart import bundled
from llmcore.release import publish

ROOT = Path(__file__).parents[2]
SPEECHES = pl.read_parquet(bundled("sotu.parquet"))["text"].str.slice(0, 2500).to_list()[:30]
GERMAN = (
    "Die Verwaltung hat den Antrag geprüft und festgestellt, dass die Unterlagen vollständig sind. Der Bescheid wird "
    "in den nächsten Tagen zugestellt. Bei Fragen wenden Sie sich bitte an die zuständige Stelle im Erdgeschoss. "
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "My Notes 2024"
    made.mkdir()
    return made


def speeches(folder: Path, suffix: str = ".txt", count: int = 20) -> None:
    for number, text in enumerate(SPEECHES[:count]):
        (folder / f"{number:02d}{suffix}").write_text(text)


def test_a_folder_of_text_is_one_source_with_its_size_language_and_name(folder: Path) -> None:
    speeches(folder)
    ((source,), left) = look([str(folder)])
    assert (source.name, source.kind, source.path, source.files) == ("my_notes_2024", "text", str(folder), 20)
    assert source.bytes == sum(path.stat().st_size for path in folder.iterdir())
    assert source.languages == {"en": 1.0} and left == []
    assert 0.7 * source.bytes < source.text < source.bytes
    assert (source.licence, source.licence_file) == ("unknown", None)


def test_kinds_lie_side_by_side_and_what_is_no_source_is_left_out_with_what_to_do(folder: Path) -> None:
    speeches(folder)
    page = "<!DOCTYPE html><html><body><h1>Title</h1><p>{}</p></body></html>"
    (folder / "page.html").write_text(page.format(SPEECHES[20]))
    (folder / "rows.csv").write_text("a,b\n1,2\n")
    (folder / "style.css").write_text("b { color: red }\n")
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\0\0")
    (folder / ".hidden.txt").write_text("x")
    found, left = look([str(folder)])
    assert [(source.kind, source.files) for source in found] == [("text", 20), ("html", 1)]
    assert len({source.name for source in found}) == 2
    advice = {one.what: one.advice for one in left}
    assert advice.keys() == {".csv", ".css", ".png"} and "write_parquet" in advice[".csv"]


@pytest.mark.parametrize(
    ("suffix", "content", "kind"),
    [
        (".adoc", SPEECHES[0], "text"),
        ("", SPEECHES[0], "text"),
        (".page", f"<html><body><p>{SPEECHES[0]}</p></body></html>", "html"),
        (".dump", f"{json.dumps({'text': SPEECHES[0]})}\n{json.dumps({'text': SPEECHES[1]})}\n", "jsonl"),
    ],
)
def test_unknown_suffixes_are_told_by_their_content(suffix: str, content: str, kind: str, folder: Path) -> None:
    (folder / f"one{suffix}").write_text(content)
    (folder / f"two{suffix}").write_text(content)
    ((source,), _) = look([str(folder)])
    assert (source.kind, source.files) == (kind, 2)
    assert source.path.startswith(f"{folder}/**/*"), "by a glob, since a folder is searched for known suffixes only"


def test_columns_of_rows_are_found(tmp_path: Path) -> None:
    rows = {"key": [str(n) for n in range(30)], "link": ["https://example.org/a"] * 30}
    pl.DataFrame(rows | {"body": SPEECHES}).write_parquet(tmp_path / "a.parquet")
    pages = [f"<html><body><p>{text}</p></body></html>" for text in SPEECHES]
    pl.DataFrame(rows | {"page": pages}).write_ndjson(tmp_path / "b.jsonl")
    found, _ = look([str(tmp_path / "a.parquet"), str(tmp_path / "b.jsonl")])
    assert found[0].columns == {"text_column": "body", "url_column": "link"}
    assert found[1].columns == {"text_column": "page", "url_column": "link", "html_column": True}
    assert all(source.languages == {"en": 1.0} for source in found)


def test_languages_are_shares_of_the_text(folder: Path) -> None:
    speeches(folder, count=3)
    for number in range(3):
        (folder / f"de{number}.txt").write_text(GERMAN * 12)
    ((source,), _) = look([str(folder)])
    assert set(source.languages) == {"en", "de"} and sum(source.languages.values()) == pytest.approx(1)


def test_compressed_files_are_read(folder: Path) -> None:
    for number, text in enumerate(SPEECHES[:5]):
        (folder / f"{number}.txt.gz").write_bytes(gzip.compress(text.encode()))
    ((source,), _) = look([str(folder)])
    assert source.kind == "text" and source.languages == {"en": 1.0} and source.text > source.bytes


@pytest.mark.parametrize("path", ["nowhere", "s3://bucket/x", "https://example.org/"])
def test_what_cannot_be_looked_at_is_one_line(path: str) -> None:
    with pytest.raises(UsageError) as caught:
        look([path])
    assert path in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_of_nothing_to_read_says_what_lies_there(folder: Path) -> None:
    (folder / "rows.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match=r"nothing that can be read \(1 of \.csv: convert the files"):
        look([str(folder)])


@pytest.mark.parametrize("licence", publish.BUNDLED_LICENCES)
def test_the_bundled_licences_are_recognised(licence: str) -> None:
    assert licence_of(ROOT / f"llmcore/release/templates/{licence}.txt") == licence


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("# SPDX-License-Identifier: CC-BY-SA-4.0\n", "CC-BY-SA-4.0"),
        (
            "                    GNU GENERAL PUBLIC LICENSE\n                       Version 3, 29 June 2007\n",
            "GPL-3.0-only",
        ),
        ("                  GNU Free Documentation License\n Version 1.3, 3 November 2008\n", "GFDL-1.3-only"),
        ("Creative Commons Attribution-ShareAlike 4.0 International", "CC-BY-SA-4.0"),
        ("Creative Commons Attribution 4.0 International", "CC-BY-4.0"),
        ("Permission is hereby granted, free of charge, to any person obtaining a copy\nof this", "MIT"),
        ("The author disclaims copyright.\n**    May you do good and not evil.\n", "blessing"),
        ("All rights reserved.", "unknown"),
    ],
)
def test_licences_are_told_by_their_text(text: str, licence: str, tmp_path: Path) -> None:
    (tmp_path / "COPYING").write_text(text)
    assert licence_in(tmp_path) == (licence, tmp_path / "COPYING")
