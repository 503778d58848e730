"""Presidio over long texts: look only where an entity is possible, and believe only what stands up.

* **Evidence.** Each usual entity has a cheap regular expression that every true finding of it contains ('@' for an
  e-mail address), and the characters that a finding consists of. Presidio sees the run of such characters around the
  evidence and nothing else of the text. That changes no result, because a finding without evidence in its own text is
  not accepted either. Other entities are looked for everywhere, in pieces.
* **Context words.** What stands before a finding raises its score as in Presidio: `llmcore/text/pii_context.py`.
* **Acceptance.** Version numbers are no IP addresses, and table columns, decimals and year ranges no phone numbers.
* **spaCy** is loaded, and reads, only where names are asked for.
"""

from __future__ import annotations

import ipaddress
import re
from bisect import bisect
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import polars as pl

from llmcore.text import pii_phone
from llmcore.text.pii_context import raised
from llmcore.text.pii_params import NAMED_ENTITIES, PiiParams
from llmcore.text.pii_recognizers import NamedEntities, Recognizer, Span, recognizers

# Entity -> evidence, and the characters of a finding. Evidence begins with one character or class, for which Python's
# search has a fast path; polars, which knows no look-behind, reads it without. Entities without an entry are looked for
# everywhere.
EVIDENCE = {
    "EMAIL_ADDRESS": ((r"@",), r"-!#$%&'*+/=?^_`{|}~.@\w"),
    "PHONE_NUMBER": ((pii_phone.EVIDENCE,), r"\d"),
    "CREDIT_CARD": ((r"[0-9](?:[- ]?[0-9]){12}",), r"-\d "),
    "IBAN_CODE": ((r"[0-9][0-9](?<=[A-Za-z]{2}[0-9]{2})(?:[ -]?[A-Za-z0-9]{4}){2}",), r"-A-Za-z0-9 "),
    "US_SSN": (
        (r"[0-9][0-9]{2}(?:[0-9]{6}|[0-9]{2}-[0-9]{4}|-[0-9]{6}|[- .][0-9]{2}[- .][0-9]{4})",),
        r"-0-9 .",
    ),
    "IP_ADDRESS": (
        (r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]", r":(?::|[0-9A-Fa-f]{1,4}:[0-9A-Fa-f]{1,4}:)"),
        r"0-9A-Za-z:.%/",
    ),
    "MAC_ADDRESS": (
        (
            r"[0-9A-Fa-f][0-9A-Fa-f][:-][0-9A-Fa-f]{2}[:-][0-9A-Fa-f]{2}",
            r"[0-9A-Fa-f][0-9A-Fa-f]{3}\.[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}",
        ),
        r"-0-9A-Fa-f:.",
    ),
    "CRYPTO": ((r"[A-Za-z0-9][A-Za-z0-9]{25}",), r"A-Za-z0-9"),
    "UK_NHS": ((r"[0-9][0-9]{2}[- ]?[0-9]{3}[- ]?[0-9]{4}",), r"-0-9 "),
    "IN_AADHAAR": ((r"[0-9][0-9]{3}[- :]?[0-9]{4}[- :]?[0-9]{4}",), r"-0-9 :"),
    "PL_PESEL": ((r"[0-9][0-9]{10}",), r"0-9"),
}
LOOK_BEHIND = re.compile(r"\(\?<=[^)]*\)")
REACH = 400  # characters of a run on each side of the evidence; the longest entity, an e-mail address, has at most 320
MARGIN = 2  # characters beside a run, for what an expression looks at around its match

ASCII_WORD = re.compile(r"[A-Za-z0-9_]")
SENTENCE_END = re.compile(r"[.!?;]\s|[。！？]")
VERSION_BEFORE = re.compile(r"(?i)(?:\bv(?:er(?:sion)?)?\.?|\brelease|\bversions?|[a-z]/)\s*$")
ADDRESS_BEFORE = re.compile(
    r"(?i)\b(?:ip|ipv4|address(?:es)?|addr|host|server|client|dns|from|gateway|ping)\b[^.\n]{0,40}$"
)


@dataclass(frozen=True, order=True)
class Finding:
    """Characters [start, end) of a text are an `entity`, with a confidence of 0 to 1."""

    start: int
    end: int
    entity: str
    score: float


def candidates(texts: pl.Series, entities: Sequence[str]) -> dict[int, list[str]]:
    """Row -> those of the entities that its text may hold; rows without any are left out. In order."""
    rows: defaultdict[int, list[str]] = defaultdict(list)
    for entity in entities:
        if entity in EVIDENCE:
            pattern = "|".join(LOOK_BEHIND.sub("", one) for one in EVIDENCE[entity][0])
            found = texts.str.contains(pattern).fill_null(False).arg_true()
        else:
            found = texts.is_not_null().arg_true()
        for row in found:
            rows[row].append(entity)
    return dict(sorted(rows.items()))


class Analysis:
    """Presidio for one set of parameters; made once per process, as it loads models."""

    def __init__(self, params: PiiParams) -> None:
        self.params = params
        named = [entity for entity in params.entities if entity in NAMED_ENTITIES]
        patterns = [entity for entity in params.entities if entity not in NAMED_ENTITIES]
        self.names = NamedEntities(named) if named else None
        self.patterns = {entity: recognizers()[entity] for entity in patterns} if patterns else {}
        self.evidence = {entity: Evidence(*EVIDENCE[entity]) for entity in patterns if entity in EVIDENCE}

    @classmethod
    def of(cls, params: PiiParams) -> Analysis:
        """The one for these parameters."""
        return _analysis(params.model_dump_json())

    def findings(
        self, text: str, language: str = "", among: Collection[str] | None = None, prefilter: bool = True
    ) -> list[Finding]:
        """What is masked in a text: sorted, not overlapping, beginning and ending at the bounds of words.

        language: ISO 639 code of the text, for its context words. among: the entities of which `candidates` saw
        evidence. prefilter: look only where there is evidence. These two change nothing but the time.
        """
        found = [*self._patterns(text, language, among, prefilter), *self._names(text)]
        return disjoint([finding for finding in found if finding.score >= self.params.min_score])

    def _patterns(self, text: str, language: str, among: Collection[str] | None, prefilter: bool) -> Iterator[Finding]:
        for entity, asked in self.patterns.items():
            if among is not None and entity not in among:
                continue
            for recognizer in asked:
                for span in self._spans(recognizer, entity, text, language, prefilter):
                    start, end = _word_bounds(text, span.start, span.end)
                    if self._accepted(entity, text, start, end):
                        score = raised(span.score, recognizer.context, entity, text, span.start, language)
                        yield Finding(start, end, entity, score)

    def _names(self, text: str) -> Iterator[Finding]:
        if self.names is not None:
            for start, end in pieces(text, self.params.chunk_characters):
                for entity, span in self.names.spans(text[start:end]):
                    yield Finding(*_word_bounds(text, start + span.start, start + span.end), entity, span.score)

    def _spans(self, recognizer: Recognizer, entity: str, text: str, language: str, prefilter: bool) -> Iterator[Span]:
        if entity == "PHONE_NUMBER":
            regions, leniency = tuple(recognizer.presidio.supported_regions), recognizer.presidio.leniency
            for start, end, local in pii_phone.numbers(text, regions, leniency, language, prefilter):
                yield Span(start, end, pii_phone.LOCAL_SCORE if local else recognizer.presidio.SCORE)
        elif entity not in self.evidence:
            for start, end in pieces(text, self.params.chunk_characters):
                yield from _shifted(recognizer.spans(text[start:end]), start)
        elif not prefilter:
            yield from recognizer.spans(text)
        else:
            windows = list(self.evidence[entity].windows(text))
            if not windows:
                return
            # One question for all: no finding of these entities goes over the end of a line.
            joined = recognizer.spans("\n".join(text[start:end] for start, end in windows))
            places = list(accumulate((end - start + 1 for start, end in windows), initial=0))
            for span in joined:
                window = bisect(places, span.start) - 1
                yield from _shifted([span], windows[window][0] - places[window])

    def _accepted(self, entity: str, text: str, start: int, end: int) -> bool:
        if entity in self.evidence and not self.evidence[entity].within(text, start, end):
            return False
        return entity != "IP_ADDRESS" or _is_address(text, start, end, self.params.mask_private_addresses)


class Evidence:
    """What every finding of an entity contains, and the run of characters around it in which a finding lies."""

    def __init__(self, patterns: Sequence[str], characters: str) -> None:
        self.patterns = [re.compile(pattern) for pattern in patterns]
        self.run = re.compile(f"[{characters}]{{0,{REACH}}}")

    def within(self, text: str, start: int, end: int) -> bool:
        """Whether there is evidence in text[start:end]."""
        return any(pattern.search(text, start, end) for pattern in self.patterns)

    def windows(self, text: str) -> Iterator[tuple[int, int]]:
        """Ranges of a text outside of which there is no finding; they may overlap."""
        for pattern in self.patterns:
            done = 0
            for hit in pattern.finditer(text):
                if hit.end() <= done:
                    continue
                back = self.run.match(text[max(0, hit.start() - REACH) : hit.start()][::-1])
                ahead = self.run.match(text, hit.end())
                assert back is not None and ahead is not None
                done = ahead.end()
                yield max(0, hit.start() - back.end() - MARGIN), min(len(text), done + MARGIN)


def pieces(text: str, size: int) -> Iterator[tuple[int, int]]:
    """Cut [0, len(text)) into ranges of at most `size` characters: after a line, else a sentence, else a
    word, else anywhere."""
    start = 0
    while len(text) - start > size:
        end = start + size
        cut = text.rfind("\n", start + size // 2, end) + 1
        if not cut:
            cut = max((match.end() for match in SENTENCE_END.finditer(text, start + size // 2, end)), default=0)
        if not cut:
            cut = text.rfind(" ", start + 1, end) + 1
        yield start, cut or end
        start = cut or end
    if start < len(text):
        yield start, len(text)


def disjoint(findings: Sequence[Finding]) -> list[Finding]:
    """Of findings that overlap, the surest; then the longest, the first, the first by name. Sorted by place."""
    kept: list[Finding] = []  # in order of place, so that only the neighbours can overlap
    for finding in sorted(findings, key=lambda one: (-one.score, one.start - one.end, one.start, one.entity)):
        place = bisect(kept, finding)
        if (not place or kept[place - 1].end <= finding.start) and (
            place == len(kept) or kept[place].start >= finding.end
        ):
            kept.insert(place, finding)
    return kept


def _shifted(spans: Iterable[Span], by: int) -> Iterator[Span]:
    return (Span(span.start + by, span.end + by, span.score) for span in spans)


def _word_bounds(text: str, start: int, end: int) -> tuple[int, int]:
    """Widen a range that begins or ends inside an ASCII word; white space at its ends is not part of it."""
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    while start > 0 and ASCII_WORD.match(text[start - 1]) and ASCII_WORD.match(text[start]):
        start -= 1
    while end < len(text) and ASCII_WORD.match(text[end]) and ASCII_WORD.match(text[end - 1]):
        end += 1
    return start, end


def _is_address(text: str, start: int, end: int, private: bool) -> bool:
    value = text[start:end]
    before, after = text[max(0, start - 60) : start], text[end : end + 2]
    if re.search(r"[\d.][.]?$", before) or re.match(r"\.\d", after):  # 1.2.3.4.5
        return False
    try:
        address = ipaddress.ip_interface(value.split("%")[0]).ip
    except ValueError:
        return False
    if not private and (not address.is_global or address.is_multicast):
        return False
    if address.version == 6:
        return True
    if VERSION_BEFORE.search(before):
        return False
    small = all(int(part) < 32 for part in str(address).split("."))
    return not small or bool(ADDRESS_BEFORE.search(before))


@lru_cache(maxsize=2)
def _analysis(params: str) -> Analysis:
    return Analysis(PiiParams.model_validate_json(params))
