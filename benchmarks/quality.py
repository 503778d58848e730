"""Quality signals and decisions, documents a second, beside the same rules as a plain Python loop over documents.

    python benchmarks/quality.py DOCUMENTS.parquet [--documents N]

Prints one JSON line: documents and characters, seconds and documents/s of both, their ratio, and on what share of the
documents the two agree about every rule. The plain implementation is also the tests' oracle: it is written to be
obviously right, with none of our code.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import Counter

import polars as pl

STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}
CLOSING = r"[\"'”’»)\]*」』）》】]*"
POLICY = re.compile(r"\b(terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies)\b", re.I)


def plain_signals(text: str) -> dict[str, float]:
    """Every signal of one English text but its unit, by the definitions in `llmcore.selection.signals`; of the marks
    that end sentences it knows those of Latin, Chinese and Japanese."""
    words = text.split()
    lines = [line for line in text.split("\n") if line.strip()]
    paragraphs = [part for part in re.split("\n{2,}", text) if part.strip()]
    ends = [line.rstrip() for line in lines]
    n, characters = max(len(words), 1), max(len(text), 1)
    found: dict[str, float] = {
        "characters": len(text),
        "words": len(words),
        "lines": len(lines),
        "mean_word_length": sum(map(len, words)) / n,
        "longest_word": max(map(len, words), default=0),
        "alpha_words": sum(any(c.isalpha() for c in word) for word in words) / n,
        "stop_words": len({word.lower().strip(".,;:!?\"'()[]“”‘’") for word in words} & STOP_WORDS),
        "hashes_per_word": text.count("#") / n,
        "ellipses_per_word": len(re.findall(r"\.\.\.|…", text)) / n,
        "bullet_lines": _share(bool(re.match(r"[ \t]*(?:[•●‣⁃◦▪∙·*\-–—] |•)", line)) for line in ends),
        "ellipsis_lines": _share(line.endswith(("...", "…")) for line in ends),
        "terminal_lines": _share(bool(re.search(rf"[.!?。！？…]{CLOSING}$|[\"”]$", line)) for line in ends),
        "short_lines": _share(len(line) <= 30 for line in lines),
        "javascript_lines": _share("javascript" in line.lower() for line in lines),
        "policy_lines": _share(bool(POLICY.search(line)) for line in lines),
        "newlines_per_word": text.count("\n") / n,
        "sentences": len(re.findall(rf"[.!?]{CLOSING}(?:\s|$)|[。！？]+", text))
        + sum(not re.search(rf"[.!?。！？]{CLOSING}$", line) for line in ends),
        "curly_brackets": text.count("{"),
        "lorem_ipsum": text.lower().count("lorem ipsum"),
    }
    for name, parts in (("line", lines), ("paragraph", paragraphs)):
        seen: set[str] = set()
        again = [part for part in parts if part in seen or seen.add(part)]  # type: ignore[func-returns-value]
        found[f"duplicate_{name}s"] = len(again) / max(len(parts), 1)
        found[f"duplicate_{name}_characters"] = sum(map(len, again)) / characters
    for size in (2, 3, 4):
        counts = Counter(" ".join(words[i : i + size]) for i in range(len(words) - size + 1))
        top, times = counts.most_common(1)[0] if counts else ("", 0)
        found[f"top_{size}_gram_characters"] = len(top) * times / characters
    for size in range(5, 11):
        known: set[tuple[str, ...]] = set()
        place = repeated = 0
        while place <= len(words) - size:
            gram = tuple(words[place : place + size])
            if gram in known:
                repeated += sum(map(len, gram))
                place += size
            else:
                known.add(gram)
                place += 1
        found[f"duplicate_{size}_gram_characters"] = repeated / characters
    return found


def _share(answers: object) -> float:
    values = [bool(answer) for answer in answers]  # type: ignore[attr-defined]
    return sum(values) / len(values) if values else 0.0


def main() -> None:
    from llmcore.selection.quality import QualityParams, failures, rules
    from llmcore.selection.signals import SignalsParams, measure, signals

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", help="Parquet with columns id and text")
    parser.add_argument("--documents", dest="count", type=int, default=500)
    options = parser.parse_args()
    documents = pl.read_parquet(options.documents, columns=["id", "text"]).head(options.count)
    documents = documents.with_columns(lang=pl.lit("en"))
    table = rules(QualityParams(classifier_min_score=None))
    measure(documents.head(1), SignalsParams())  # compiles

    start = time.perf_counter()
    ours = failures(signals(documents, SignalsParams()).outputs["signals"], table)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    rows = [plain_signals(text) for text in documents["text"]]
    theirs = [
        [
            rule.name
            for rule in table
            if row["lines"] >= rule.min_lines
            and not (
                row[rule.signal] >= rule.threshold if rule.comparison == ">=" else row[rule.signal] <= rule.threshold
            )
        ]
        for row in rows
    ]
    plain_seconds = time.perf_counter() - start
    agree = sum([item["rule"] for item in mine] == other for mine, other in zip(ours.to_list(), theirs, strict=True))
    print(
        json.dumps(
            {
                "benchmark": "quality",
                "documents": len(documents),
                "characters": int(documents["text"].str.len_chars().sum()),
                "seconds": round(seconds, 3),
                "documents_per_second": round(len(documents) / seconds, 1),
                "plain_seconds": round(plain_seconds, 3),
                "plain_documents_per_second": round(len(documents) / plain_seconds, 1),
                "ratio": round(plain_seconds / seconds, 2),
                "agreement": round(agree / max(len(documents), 1), 4),
            }
        )
    )


if __name__ == "__main__":
    main()
