"""Presidio's pattern recognisers, by the entity that each finds, and its named entities.

All of Presidio's recognisers that need neither a model nor a service are there by the name of their entity, as
Presidio itself lists them. Two things differ from `AnalyzerEngine`:

* **Offline.** Presidio's e-mail recogniser fetches the list of public suffixes from the Internet when it is first used;
  ours reads the snapshot that tldextract carries, so the outcome does not hang on the network or the day.
* **Scripts without spaces**, or with particles that join. `\\b` sees no boundary between "org" and "です". What has
  Chinese, Japanese, Korean, Thai, Lao, Khmer or Burmese neighbours is looked at as if spaces stood there.
"""

from __future__ import annotations

import logging
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import regex

from llmcore.text.pii_params import NER_MODEL

UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3001-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]"
)
FLAGS = int(regex.DOTALL | regex.MULTILINE | regex.IGNORECASE)  # what Presidio's registry gives all recognisers


class Span(NamedTuple):
    """Characters [start, end) of a text, with a confidence of 0 to 1."""

    start: int
    end: int
    score: float


class Recognizer:
    """One of Presidio's recognisers, asked without its engine."""

    def __init__(self, presidio: Any) -> None:
        self.presidio = presidio
        if hasattr(presidio, "global_regex_flags"):
            presidio.global_regex_flags = FLAGS
        self.context = tuple(dict.fromkeys(word.lower() for word in presidio.context))
        self.entities: tuple[str, ...] = tuple(presidio.supported_entities)

    def spans(self, text: str) -> list[Span]:
        """What Presidio finds in the text, before its context raises a score; also beside scripts without spaces."""
        found = self._ask(text)
        if text.isascii() or not UNSPACED.search(text):
            return found
        apart = self._ask(UNSPACED.sub(" ", text))
        return apart + [span for span in found if all(span.end <= one.start or one.end <= span.start for one in apart)]

    def _ask(self, text: str) -> list[Span]:
        items = self.presidio.analyze(text, list(self.entities), None)
        return [Span(item.start, item.end, item.score) for item in items]


class NamedEntities:
    """spaCy's named entities as Presidio reads them. Loading takes a second and 100 MB."""

    def __init__(self, entities: Sequence[str]) -> None:
        with _without("torch", "transformers"):
            import spacy
            from presidio_analyzer import predefined_recognizers
            from presidio_analyzer.nlp_engine import SpacyNlpEngine

        class LoadedPipeline(SpacyNlpEngine):
            def __init__(self) -> None:
                super().__init__()
                self.nlp: Any = {"en": spacy.load(NER_MODEL)}

        self.entities = list(entities)
        self.engine = LoadedPipeline()
        self.recognizer: Any = predefined_recognizers.SpacyRecognizer(supported_entities=self.entities)

    def spans(self, text: str) -> list[tuple[str, Span]]:
        """(entity, span) for each name in the text."""
        artifacts = self.engine.process_text(text, "en")
        items = self.recognizer.analyze(text, self.entities, artifacts)
        return [(item.entity_type, Span(item.start, item.end, item.score)) for item in items]


def pattern_entities() -> tuple[str, ...]:
    """Names of all that Presidio's pattern recognisers find, sorted."""
    return tuple(sorted(recognizers()))


@lru_cache(maxsize=1)
def recognizers() -> dict[str, tuple[Recognizer, ...]]:
    """Entity -> Presidio's predefined recognisers of it that need neither a model nor a service."""
    with _without("torch", "transformers"):
        from presidio_analyzer import EntityRecognizer, predefined_recognizers
    logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)
    found: defaultdict[str, list[Recognizer]] = defaultdict(list)
    for kind in vars(predefined_recognizers).values():
        if not isinstance(kind, type) or not issubclass(kind, EntityRecognizer):
            continue
        if not re.search(r"\.(?:generic|country_specific)\.", kind.__module__):
            continue
        with_defaults: Any = kind  # each fills in what its base class asks for
        made = Recognizer(_offline_email() if kind is predefined_recognizers.EmailRecognizer else with_defaults())
        for entity in made.entities:
            found[entity].append(made)
    return {entity: tuple(found[entity]) for entity in sorted(found)}


def _offline_email() -> Any:
    import tldextract
    from presidio_analyzer import predefined_recognizers

    suffixes = tldextract.TLDExtract(cache_dir=None, suffix_list_urls=())

    class OfflineEmail(predefined_recognizers.EmailRecognizer):
        def validate_result(self, pattern_text: str) -> bool:
            return bool(suffixes(pattern_text).fqdn)

    return OfflineEmail()


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
