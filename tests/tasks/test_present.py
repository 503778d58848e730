"""What the UI is handed: Markdown in which nothing that a model wrote is lost, and nothing of it is markup."""

from __future__ import annotations

import re

import pytest

from tasks.present import _quoted, evaluation_table, verbatim

HOSTILE = "a_b_ *c* <script>alert(1)</script> [x](http://evil) `rm` | www.evil.org 1. # -"


@pytest.mark.parametrize("part", ["prompt", "text"])
def test_a_sample_keeps_every_mark_and_none_of_them_means_anything(part: str) -> None:
    shown = _quoted({"prompt": "The ", "text": "end"} | {part: HOSTILE})
    body = shown.replace("<b>", "", 1).replace("</b>", "", 1)
    assert not re.search(r"(?<!\\)[_*<>\[\]()`|#:.]", body), "each is escaped"
    assert HOSTILE in re.sub(r"\\(?=[!-/:-@\[-`{-~])", "", shown)


def test_lines_and_blanks_of_a_sample_stay() -> None:
    assert (
        _quoted({"prompt": "a", "text": "\n\n    b\r\n c"})
        == "<b>a</b><br>\n<br>\n\u00a0\u00a0\u00a0\u00a0b<br>\n\u00a0c"
    )


def test_the_model_stands_beside_its_baselines() -> None:
    score = {"value": 1.5, "low": 1.4, "high": 1.6}
    split = {"model": score, "baselines": {"xz": {"value": 2.0}}, "sources": {"a_b": score, "c": score}}
    rows = evaluation_table({"splits": {"test": split, "validation": split}}).splitlines()
    assert rows[0] == "| bits per byte, lower is better | this model | xz \\-9 |"
    assert rows[2:4] == ["| test | 1.500 (1.400–1.600) | 2.000 |", "| validation | 1.500 (1.400–1.600) | 2.000 |"]
    assert "| test, a\\_b | 1.500 (1.400–1.600) | |" in rows


def test_a_name_is_one_line() -> None:
    assert verbatim("a\n| b") == "a \\| b"
