"""PII: recall and precision on the labelled sentences of presidio-evaluator: this tree, another one, plain Presidio.

    python benchmarks/pii_recall.py [--against CHECKOUT] [--sentences N] [--locale en_US …]

Needs `presidio-evaluator` (0.3.2), which is no dependency of llmcore: install it elsewhere and put its folder into
PYTHONPATH. Prints one JSON line. A labelled value counts as found if a finding of its type overlaps it; a finding is
right if it overlaps any label. Presidio is asked for the same six entities with its default threshold and the small
model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pii import ENTITIES, plain_presidio

NAMES = {"IBAN": "IBAN_CODE", "SSN": "US_SSN", "EMAIL": "EMAIL_ADDRESS", "CREDIT_CARD_NUMBER": "CREDIT_CARD"}
Span = tuple[int, int, str]


def generate(count: int, locale: str) -> list[tuple[str, list[Span]]]:
    """Labelled sentences, (text, [(start, end, entity)]), the same ones each time."""
    from presidio_evaluator.data_generator import PresidioSentenceFaker

    faker = PresidioSentenceFaker(locale=locale, lower_case_ratio=0.05, random_seed=1)
    return [
        (
            one.full_text,
            [(s.start_position, s.end_position, NAMES.get(s.entity_type, s.entity_type)) for s in one.spans],
        )
        for one in faker.generate_new_fake_sentences(count)
    ]


def finder(system: str) -> Callable[[str], list[Span]]:
    """What a system finds in a text."""
    if system == "presidio":
        analyse = plain_presidio()
        return lambda text: [(one.start, one.end, one.entity_type) for one in analyse(text)]
    from llmcore.text.pii import PiiParams
    from llmcore.text.pii_analysis import Analysis

    analysis = Analysis.of(PiiParams())
    return lambda text: [(one.start, one.end, one.entity) for one in analysis.findings(text)]


def score(sentences: list[tuple[str, list[Span]]], find: Callable[[str], list[Span]]) -> dict[str, Any]:
    """Recall and precision by entity, and what was missed or wrong of telephone numbers."""
    labelled, hit, found, right = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    missed: list[str] = []
    wrong: list[str] = []
    for text, labels in sentences:
        findings = find(text)
        for start, end, entity in labels:
            if entity not in ENTITIES:
                continue
            labelled[entity] += 1
            seen = any(kind == entity and first < end and start < last for first, last, kind in findings)
            hit[entity] += seen
            if not seen:
                missed.append(f"{entity}: {text[max(0, start - 40) : end + 5]}")
        for first, last, kind in findings:
            found[kind] += 1
            correct = any(first < end and start < last for start, end, _ in labels)
            right[kind] += correct
            if not correct:
                wrong.append(f"{kind}: {text[max(0, first - 40) : last + 5]}")
    return {
        "recall": {name: round(hit[name] / labelled[name], 3) for name in sorted(labelled)},
        "precision": {name: round(right[name] / found[name], 3) for name in sorted(found)},
        "missed": missed[:20],
        "wrong": wrong[:20],
    }


def main() -> None:
    """Ask each system in a process of its own about the same sentences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout of llmcore")
    parser.add_argument("--sentences", type=int, default=1500)
    parser.add_argument("--locale", default="en_US")
    parser.add_argument("--examples", action="store_true", help="also some of what was missed or wrong")
    parser.add_argument("--system", choices=["llmcore", "presidio"], help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.system:
        print(json.dumps(score(json.loads(options.file.read_text()), finder(options.system))))
        return
    here = Path(__file__).resolve().parent.parent
    systems = {"llmcore": ("llmcore", here), "presidio": ("presidio", here)}
    if options.against:
        systems["before"] = ("llmcore", options.against.resolve())
    sentences = generate(options.sentences, options.locale)
    labelled = Counter(entity for _, labels in sentences for _, _, entity in labels if entity in ENTITIES)
    figures: dict[str, Any] = {
        "benchmark": "pii_recall",
        "sentences": len(sentences),
        "labelled": dict(sorted(labelled.items())),
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "sentences.json")
        file.write_text(json.dumps(sentences))
        for name, (system, tree) in systems.items():
            call = [sys.executable, __file__, "--system", system, "--file", str(file)]
            done = subprocess.run(call, env=os.environ | {"PYTHONPATH": str(tree)}, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            result = json.loads(done.stdout.splitlines()[-1])
            figures[name] = {
                key: value for key, value in result.items() if options.examples or key in ("recall", "precision")
            }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
