"""PII: recall and precision by entity on labelled sentences, and characters a second on the bundled addresses.

    python benchmarks/pii.py [--sentences N]

Prints one JSON line. The sentences are made from templates in the manner of Presidio's own evaluator, with generated
values that are valid (checksums, number plans), so they are easy: the figures are a floor to hold, not a claim about
the web. A value counts as found if a finding of its type overlaps it. A third of the sentences hold only what looks
like personal data: versions, dates, amounts, private addresses.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter

import polars as pl

from llmcore.quickstart import bundled
from llmcore.text.pii import PiiParams, scrub
from llmcore.text.pii_analysis import Analysis

NAMES = ("jane.doe", "bob", "m.weber82", "info", "anna-lena", "k_ito")
DOMAINS = ("example.com", "mail.example.co.uk", "example.org", "uni-muenchen.de", "corp.example.net")
TEMPLATES = (
    "Please write to {EMAIL_ADDRESS} about the order.",
    "Contact: {EMAIL_ADDRESS}, {PHONE_NUMBER}",
    "My phone number is {PHONE_NUMBER}, call me after six.",
    "You can reach the office at {PHONE_NUMBER}.",
    "I lost my credit card, its number is {CREDIT_CARD}.",
    "Charge {CREDIT_CARD} and send the receipt to {EMAIL_ADDRESS}.",
    "Transfer the rent to {IBAN_CODE} by Friday.",
    "Her social security number is {US_SSN}.",
    "The request came from {IP_ADDRESS} at noon.",
    "{EMAIL_ADDRESS} logged in from {IP_ADDRESS}",
)
HARMLESS = (
    "Version {a}.{b}.{c}.{d} of the server fixes bug {n}.",
    "In {y} receipts were ${a},{n3},{m3} and in {z} they were ${b},{m3},{n3}.",
    "From {y} to {z} the share rose from {a}.{b} to {c}.{d} percent.",
    "Listen on 192.168.{a}.{b} and 127.0.0.1, port {n}.",
    "[{y}-0{e}-1{e} 1{e}:0{e}:5{e}.{n}] process {n}{m3} ended",
)


def value(entity: str, chance: random.Random) -> str:
    """A valid value of the entity."""
    digit = chance.randint
    if entity == "EMAIL_ADDRESS":
        return f"{chance.choice(NAMES)}@{chance.choice(DOMAINS)}"
    if entity == "PHONE_NUMBER":
        area, rest = chance.choice((212, 415, 617, 312)), f"{digit(200, 999)}{chance.choice('-. ')}{digit(1000, 9999)}"
        return chance.choice(
            (f"({area}) {rest}", f"{area}-{rest}", f"+1 {area} {rest}", f"+44 20 7946 0{digit(100, 999)}")
        )
    if entity == "CREDIT_CARD":
        body = "4" + "".join(str(digit(0, 9)) for _ in range(14))
        total = sum(sum(divmod(int(d) * (2 - i % 2), 10)) for i, d in enumerate(body))
        number = body + str(-total % 10)
        return chance.choice((number, "-".join(number[i : i + 4] for i in range(0, 16, 4))))
    if entity == "IBAN_CODE":
        account = "".join(str(digit(0, 9)) for _ in range(18))
        number = f"DE{98 - int(account + '131400') % 97:02d}{account}"
        return chance.choice((number, " ".join(number[i : i + 4] for i in range(0, 22, 4))))
    if entity == "US_SSN":
        return f"{digit(100, 600)}-{digit(10, 99)}-{digit(1000, 9999)}"
    return f"{chance.choice((72, 91, 203, 62))}.{digit(32, 255)}.{digit(0, 255)}.{digit(1, 254)}"


def sentences(count: int, seed: int = 1) -> list[tuple[str, list[tuple[int, int, str]]]]:
    """(text, labelled spans), two thirds of them with personal data."""
    chance = random.Random(seed)
    out: list[tuple[str, list[tuple[int, int, str]]]] = []
    for number in range(count):
        if number % 3 == 2:
            small = {name: chance.randint(1, 31) for name in "abcd"} | {"e": chance.randint(1, 9)}
            large = {"n": chance.randint(1000, 99999), "n3": chance.randint(100, 999), "m3": chance.randint(100, 999)}
            years = {"y": chance.randint(1800, 1899), "z": chance.randint(1900, 2020)}
            out.append((chance.choice(HARMLESS).format(**small, **large, **years), []))
            continue
        text, spans = "", []
        for index, part in enumerate(chance.choice(TEMPLATES).replace("}", "{").split("{")):
            if index % 2:
                found = value(part, chance)
                spans.append((len(text), len(text) + len(found), part))
                part = found
            text += part
        out.append((text, spans))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=1500)
    options = parser.parse_args()
    params = PiiParams()
    start = time.perf_counter()
    analysis = Analysis.of(params)
    load_seconds = time.perf_counter() - start

    labelled, hit, found, right = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    start = time.perf_counter()
    for text, spans in sentences(options.sentences):
        findings = analysis.findings(text)
        for first, last, entity in spans:
            labelled[entity] += 1
            hit[entity] += any(f.entity == entity and f.start < last and first < f.end for f in findings)
        for f in findings:
            found[f.entity] += 1
            right[f.entity] += any(first < f.end and f.start < last for first, last, _ in spans)
    sentence_seconds = time.perf_counter() - start

    texts = pl.read_parquet(bundled("sotu.parquet"))["text"]
    characters = int(texts.str.len_chars().sum())
    start = time.perf_counter()
    metrics = scrub(pl.DataFrame({"id": [str(i) for i in range(len(texts))], "text": texts}), params).metrics
    seconds = time.perf_counter() - start
    print(
        json.dumps(
            {
                "benchmark": "pii",
                "recall": {name: round(hit[name] / labelled[name], 3) for name in sorted(labelled)},
                "precision": {name: round(right[name] / found[name], 3) for name in sorted(found)},
                "labelled": dict(sorted(labelled.items())),
                "sentences_per_second": round(options.sentences / sentence_seconds, 1),
                "load_seconds": round(load_seconds, 2),
                "address_characters": characters,
                "address_seconds": round(seconds, 2),
                "address_masks": metrics,
            }
        )
    )


if __name__ == "__main__":
    main()
