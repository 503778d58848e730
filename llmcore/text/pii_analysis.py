"""Presidio over long texts: cut them, look only where an entity is possible, and believe only what stands up.

* **Evidence.** Each pattern entity has a cheap regular expression that every true finding of it contains ('@' for an
  e-mail address). A piece of text without evidence of an entity is not analysed for it. That changes no result, because
  a finding without evidence in its own text is not accepted either.
* **Context words.** Presidio raises a score when a word such as "phone" stands near. It compares lemmas, which a blank
  spaCy pipeline leaves empty; ours takes the lower-cased word for its lemma, so scores are those of a full pipeline.
* **Acceptance.** Version numbers are no IP addresses, and table columns, decimals and year ranges no phone numbers.
* **Offline.** Presidio's e-mail recogniser fetches the list of public suffixes from the Internet when it is first used;
  ours reads the snapshot that tldextract carries, so the outcome does not hang on the network or the day.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import polars as pl

from llmcore.text.pii_params import NAMED_ENTITIES, NER_MODEL, PATTERN_ENTITIES, PiiParams

# Readable by Python's and by polars' regular expressions. Entities without an entry are looked for everywhere.
EVIDENCE = {
    "EMAIL_ADDRESS": r"@",
    "PHONE_NUMBER": r"[0-9](?:[-x() .\[\]/~‐-―]{0,4}[0-9]){6}",
    "CREDIT_CARD": r"[0-9](?:[- ]?[0-9]){12}",
    "IBAN_CODE": r"[A-Z]{2}[0-9]{2}[ -]?[A-Z0-9]{4}",
    "US_SSN": r"[0-9]{9}|[0-9]{5}-[0-9]{4}|[0-9]{3}-[0-9]{6}|[0-9]{3}[- .][0-9]{2}[- .][0-9]{4}",
    "IP_ADDRESS": r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]|:[0-9A-Fa-f]{0,4}:",
    "MAC_ADDRESS": r"[0-9A-Fa-f]{2}[:-][0-9A-Fa-f]{2}[:-][0-9A-Fa-f]{2}|[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}",
    "CRYPTO": r"[A-Za-z0-9]{26}",
    "UK_NHS": r"[0-9]{3}[- ]?[0-9]{3}[- ]?[0-9]{4}",
    "IN_AADHAAR": r"[0-9]{4}[- :]?[0-9]{4}[- :]?[0-9]{4}",
    "PL_PESEL": r"[0-9]{11}",
}

ASCII_WORD = re.compile(r"[A-Za-z0-9_]")
SENTENCE_END = re.compile(r"[.!?;]\s|[。！？]")
VERSION_BEFORE = re.compile(r"(?i)(?:\bv(?:er(?:sion)?)?\.?|\brelease|\bversions?|[a-z]/)\s*$")
ADDRESS_BEFORE = re.compile(
    r"(?i)\b(?:ip|ipv4|address(?:es)?|addr|host|server|client|dns|from|gateway|ping)\b[^.\n]{0,40}$"
)
NO_PHONE = re.compile(
    r"""
    ^\d+[.,]\d+$                                   # a decimal
    | \s[-–—]\s                                    # two columns of a table, or a range
    | ^\d{1,3}(?:\.\d{1,3}){3}(?:/\d+)?$           # an IP address
    | ^(?:1[5-9]|20)\d\d\D{1,3}(?:1[5-9]|20)\d\d\b # years
    | ^\d{4}[-/.]\d\d?[-/.]\d\d?(?:\D|$)           # a date
    | ^\d{1,3}(?:[ .]\d{3}){2,}$                   # a number in groups of three
    | \d\.\d\d?\s                                  # amounts in a row
    | /                                            # a network or a path
    | ^\d{1,2}\s                                   # a list number before it
    """,
    re.VERBOSE,
)
BARE_PHONE_SCORE = 0.4  # digits without any separator are a phone number only where a context word raised the score


@dataclass(frozen=True, order=True)
class Finding:
    """Characters [start, end) of a text are an `entity`, with a confidence of 0 to 1."""

    start: int
    end: int
    entity: str
    score: float


def candidates(texts: pl.Series, entities: Sequence[str]) -> pl.Series:
    """Rows whose text may hold one of the entities."""
    if any(entity not in EVIDENCE for entity in entities):
        return pl.arange(0, len(texts), eager=True)
    pattern = "|".join(f"(?:{EVIDENCE[entity]})" for entity in entities) or r"[^\s\S]"
    return texts.str.contains(pattern).fill_null(False).arg_true()


class Analysis:
    """Presidio for one set of parameters; made once per process, as it loads models."""

    def __init__(self, params: PiiParams) -> None:
        self.params = params
        self.evidence = {entity: re.compile(EVIDENCE[entity]) for entity in params.entities if entity in EVIDENCE}
        self.everywhere = [entity for entity in params.entities if entity not in EVIDENCE]
        self.engine = _engine(params.entities) if params.entities else None

    @classmethod
    def of(cls, params: PiiParams) -> Analysis:
        """The one for these parameters."""
        return _analysis(params.model_dump_json())

    def findings(self, text: str, prefilter: bool = True) -> list[Finding]:
        """What is masked in a text: sorted, not overlapping, beginning and ending at the bounds of words."""
        found = [
            Finding(*_word_bounds(text, start + item.start, start + item.end), item.entity_type, item.score)
            for start, end in pieces(text, self.params.chunk_characters)
            for item in self._analyse(text[start:end], prefilter)
        ]
        return disjoint([finding for finding in found if self._accepted(finding, text)])

    def _analyse(self, piece: str, prefilter: bool) -> Sequence[Any]:
        seen = [name for name, evidence in self.evidence.items() if not prefilter or evidence.search(piece)]
        entities = self.everywhere + seen
        if not entities or self.engine is None:
            return ()
        found: Sequence[Any] = self.engine.analyze(piece, "en", entities, score_threshold=self.params.min_score)
        return found

    def _accepted(self, finding: Finding, text: str) -> bool:
        evidence = self.evidence.get(finding.entity)
        if evidence is not None and not evidence.search(text[finding.start : finding.end]):
            return False
        if finding.entity == "IP_ADDRESS":
            return _is_address(text, finding, self.params.mask_private_addresses)
        if finding.entity == "PHONE_NUMBER":
            return _is_phone(text, finding)
        return True


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
    kept: list[Finding] = []
    for finding in sorted(findings, key=lambda one: (-one.score, one.start - one.end, one.start, one.entity)):
        if all(finding.end <= other.start or finding.start >= other.end for other in kept):
            kept.append(finding)
    return sorted(kept)


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


def _is_address(text: str, finding: Finding, private: bool) -> bool:
    value = text[finding.start : finding.end]
    before, after = text[max(0, finding.start - 60) : finding.start], text[finding.end : finding.end + 2]
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


def _is_phone(text: str, finding: Finding) -> bool:
    value = text[finding.start : finding.end]
    before, after = text[max(0, finding.start - 2) : finding.start], text[finding.end : finding.end + 2]
    if NO_PHONE.search(value) or re.match(r"[.,:/%-]?\d|%", after) or re.search(r"[$£€#=/.,-]$|\d[:\s]$", before):
        return False
    return not value.isdigit() or finding.score > BARE_PHONE_SCORE


def _engine(entities: Sequence[str]) -> Any:
    """Presidio's analyser with exactly the recognisers of these entities."""
    with _without("torch", "transformers"):
        import spacy
        from presidio_analyzer import AnalyzerEngine, RecognizerRegistry, predefined_recognizers
        from presidio_analyzer.nlp_engine import SpacyNlpEngine
    import tldextract

    logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)
    suffixes = tldextract.TLDExtract(cache_dir=None, suffix_list_urls=())

    class OfflineEmail(predefined_recognizers.EmailRecognizer):
        def validate_result(self, pattern_text: str) -> bool:
            return bool(suffixes(pattern_text).fqdn)

    class LoadedPipeline(SpacyNlpEngine):
        def __init__(self, pipeline: Any) -> None:
            super().__init__()
            self.nlp: Any = {"en": pipeline}

    named = [entity for entity in entities if entity in NAMED_ENTITIES]
    registry = RecognizerRegistry(supported_languages=["en"])
    for entity in entities:
        if entity in PATTERN_ENTITIES:
            kind = getattr(predefined_recognizers, PATTERN_ENTITIES[entity])
            kind = OfflineEmail if entity == "EMAIL_ADDRESS" else kind
            registry.add_recognizer(kind(supported_language="en"))
    if named:
        registry.add_recognizer(predefined_recognizers.SpacyRecognizer(supported_entities=named))
        pipeline = spacy.load(NER_MODEL)
    else:
        _register_lemmas()
        pipeline = spacy.blank("en")
        pipeline.add_pipe("llmcore_lower_lemmas")
    return AnalyzerEngine(registry=registry, nlp_engine=LoadedPipeline(pipeline), supported_languages=["en"])


@contextmanager
def _without(*modules: str) -> Iterator[None]:
    """Let optional imports of these fail: spaCy and Presidio would load them for models that are not used here.

    That makes the difference between 424 MB and 106 MB for each worker, and most of the time to start.
    """
    hidden = [name for name in modules if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: "there is no such module"
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def _register_lemmas() -> None:
    from spacy.language import Language

    @Language.component("llmcore_lower_lemmas")
    def lower_lemmas(doc: Any) -> Any:
        for token in doc:
            token.lemma_ = token.lower_
        return doc


@lru_cache(maxsize=2)
def _analysis(params: str) -> Analysis:
    return Analysis(PiiParams.model_validate_json(params))
