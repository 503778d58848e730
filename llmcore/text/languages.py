"""What rules about text must know of a language: its stop words, how long its words are, how its sentences end.

The figures stand in `languages.json` beside this file, for the languages that lid.176 names; `build_languages.py` makes
it from one text that exists in all of them, the Universal Declaration of Human Rights, and from spaCy's lists of stop
words. Being a parallel text, it says how many characters of Thai or Chinese tell what an English word tells. The way is
FineWeb-2's (Penedo et al. 2025, arXiv 2506.20920): the label of a document chooses its words and thresholds.

A language without a list of stop words is judged by no rule about them; of one that is not in the table nothing is
assumed but that it puts spaces between words.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

TABLE = Path(__file__).with_name("languages.json")
ENGLISH = "en"  # what a document without a label is taken for

# Scripts that put no spaces between words, as the inside of a class in Rust's regular expressions
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Myanmar}\p{Khmer}\p{Tibetan}ー"
ETHIOPIC_SPACE = "፡"  # stands between words where a Latin text has a space
UNSPACED_LETTER = rf"[[{UNSPACED}]&&[\p{{L}}\p{{M}}\p{{N}}]]"


@dataclass(frozen=True)
class Language:
    """What is known of one language; the defaults are those of a language of which nothing is.

    stop_words: frequent words of grammar, in lower case; () where there is no list.
    word_length: mean characters between white space, as a multiple of English's.
    length: characters of a text, as a multiple of the same text's in English.
    units_per_word: characters (letters with their marks) that tell what one English word tells, in a language that puts
        no spaces between words; None in all others.
    marks: whether a sentence ends in a mark (in Thai it ends in a space).
    """

    stop_words: tuple[str, ...] = ()
    word_length: float = 1.0
    length: float = 1.0
    units_per_word: float | None = None
    marks: bool = True


def languages() -> Mapping[str, Language]:
    """All that the table holds, by lid.176's codes."""
    return _table()[1]


def language(code: str | None) -> Language:
    """What is known of a language; None reads as English."""
    return languages().get(code or ENGLISH, Language())


def stop_words(code: str | None) -> tuple[str, ...]:
    """The language's stop words, () where there is no list."""
    return language(code).stop_words


def terminal_marks() -> str:
    """Characters that end a sentence in some script: Unicode's Sentence_Terminal, Tibetan's shad and Khmer's signs."""
    return _table()[0]


def data(params: object) -> dict[str, Path]:
    """The table decides what the stages that read it make (`Stage.data`)."""
    return {TABLE.name: TABLE}


@lru_cache(maxsize=1)
def _table() -> tuple[str, Mapping[str, Language]]:
    read: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    found = {
        code: Language(**{**facts, "stop_words": tuple(facts.get("stop_words", ()))})
        for code, facts in read["languages"].items()
    }
    return read["terminal_marks"], MappingProxyType(found)
