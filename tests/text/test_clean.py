"""Clean: what it mends, what it takes out, and that doing it twice changes nothing."""

from __future__ import annotations

import unicodedata

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llmcore.schema import DOCUMENT_SCHEMA, DROPPED_SCHEMA, document_id
from llmcore.text.clean import CleanParams, clean, cleaned

ANY_LENGTH = CleanParams(min_characters=1)


def documents(*texts: str) -> pl.DataFrame:
    rows = [{"id": document_id("test", text, str(i)), "text": text, "source": "test"} for i, text in enumerate(texts)]
    missing = {name: pl.lit(None) for name in DOCUMENT_SCHEMA if name not in ("id", "text", "source")}
    frame = pl.DataFrame(rows, schema={"id": pl.String, "text": pl.String, "source": pl.String})
    return frame.with_columns(**missing).select(DOCUMENT_SCHEMA.names()).cast(DOCUMENT_SCHEMA)


def one(text: str, params: CleanParams = ANY_LENGTH) -> str:
    texts, _ = cleaned(pl.Series([text]), params)
    return str(texts[0])


@pytest.mark.parametrize(
    ("dirty", "clean_text"),
    [
        ("The sÃ©ance was â\x80\x9cgoodâ\x80\x9d", "The séance was “good”"),
        ("cafe\u0301", "café"),
        ("a\x00b\x1bc\u200bd\ufeff\u202e", "abcd"),
        ("one\u00a0 \u3000two\t three", "one two three"),
        ("  indented  code\n    stays", "  indented code\n    stays"),
        ("name\tsize\t\n a\t\tb \t c\t\n\tx", "name\tsize\n a\t\tb c\n\tx"),
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("a  \n\n\n\n\nb\n", "a\n\nb"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("漢字かな交じり文", "漢字かな交じり文"),
    ],
)
def test_mends_and_normalises(dirty: str, clean_text: str) -> None:
    assert one(dirty) == clean_text


@pytest.mark.parametrize(
    "line",
    [
        "This website uses cookies to give you the best experience.",
        "Available Languages:  de  |  en  |  fr ",
        "Copyright 2026 The Apache Software Foundation.",
        "© 2021 Somebody. All rights reserved.",
        "Licensed under the Apache License, Version 2.0.",
        "Comments are closed.",
        "Skip to main content",
        "Apache > HTTP Server > Documentation > Version 2.4 > Modules",
        "Home | About | Contact",
        "Accept all cookies",
        "Last modified: Tue, 5 Mar 2019 14:02:11 GMT",
        "This page was last updated on March 3rd, 2021 at 10:14 pm.",
        "Updated 2020-01-31T10:00:00Z",
        "(c) 2004-2009 Somebody & Sons",
    ],
)
def test_takes_out_boilerplate_lines(line: str) -> None:
    assert one(f"A sentence before it.\n{line}\nA sentence after it.") == "A sentence before it.\nA sentence after it."


@pytest.mark.parametrize(
    "line",
    [
        "Copyright law is older than the printing press would suggest.",
        "The next top model.",
        "if a > b and b > c then a > c, which is what transitive means, and holds for every order of numbers",
        "Cookies are baked for ten minutes.",
        "Modified 1999 to allow",
        "Updated in 1994 by Smith",
        "Updated 1994 by Smith and again by his sons.",
        "(c) 2019 sales rose by a tenth",
    ],
)
def test_leaves_prose_alone(line: str) -> None:
    assert one(line) == line


def test_drops_what_is_empty_or_short_and_keeps_the_order() -> None:
    long = "A sentence of some length that is kept. " * 5
    shard = documents(long + "one", "", "too short", "\x00\u200b", long + "two")
    result = clean(shard, CleanParams())
    kept, dropped = result.outputs["kept"], result.outputs["dropped"]
    assert kept["id"].to_list() == [shard["id"][0], shard["id"][4]]
    assert dropped["reason"].to_list() == ["empty", "too_short", "empty"]
    assert dropped["detail"][1] == '{"rule":"min_characters","value":9,"threshold":100}'
    assert dropped.schema == DROPPED_SCHEMA and kept.schema == DOCUMENT_SCHEMA


def test_an_empty_shard_gives_empty_tables() -> None:
    result = clean(documents(), CleanParams())
    assert len(result.outputs["kept"]) == len(result.outputs["dropped"]) == 0


def test_ten_megabytes_on_one_line() -> None:
    text = "All work and no play makes a dull text. " * 250_000
    assert one(text) == text.strip()


def test_a_document_does_not_depend_on_its_neighbours() -> None:
    texts = ["sÃ©ance", "plain", "Comments are closed.\nkept", "â\x80\x99s", "x"]
    forwards = cleaned(pl.Series(texts), ANY_LENGTH)[0].to_list()
    backwards = cleaned(pl.Series(texts[::-1]), ANY_LENGTH)[0].to_list()
    assert forwards == backwards[::-1]
    assert forwards == [one(text) for text in texts]


def test_a_broken_pattern_is_named() -> None:
    with pytest.raises(ValidationError, match=r"'\(' is not a regular expression"):
        CleanParams(boilerplate=("(",))


AWKWARD = st.text(
    st.one_of(
        st.sampled_from("Ãâ€™“”Â\xa0 \t\n\r\x0b\x85\u2028\u0301e\u200b|>©'"),
        st.characters(exclude_categories=("Cs",)),
    ),
    max_size=60,
)
PIECES = st.lists(
    st.sampled_from(
        ["sÃ©ance", "â\x80\x99", "Home | About", "Comments are closed.", "text", "\n", " ", "\u0301", "Ã\xa0"]
    )
)


@settings(max_examples=300, deadline=None)
@example("Â\x1b¡")
@given(st.one_of(AWKWARD, PIECES.map("".join)))
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    once = one(text)
    assert one(once) == once
    assert unicodedata.is_normalized("NFC", once)
