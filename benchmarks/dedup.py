"""Signatures and candidates a second, beside datasketch's MinHash and LSH on the same documents in the same run.

    python benchmarks/dedup.py [DOCUMENTS]

Prints one JSON line. Both sides start from raw text, use 5-word shingles and 14 bands of 8 rows on one core; recall is
that of planted near-copies whose Jaccard similarity, counted exactly, is at least 0.8.
"""

from __future__ import annotations

import json
import random
import re
import sys
import tempfile
import time
from pathlib import Path

import polars as pl
from datasketch import MinHash, MinHashLSH

from llmcore.quickstart import bundled
from llmcore.selection.dedup import ResolveParams, SignatureParams, resolve, signatures

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.local_files import LocalFiles, LocalRun

WORD = re.compile(r"[^\W_]+")
CHARACTERS = 2850  # mean length of a web page's text in the field's tables


def shingles(text: str) -> set[str]:
    words = WORD.findall(text.lower())
    return {" ".join(words[at : at + 5]) for at in range(max(1, len(words) - 4))}


def documents(count: int) -> tuple[list[str], dict[int, int]]:
    """Passages of real addresses in changing order, and for each planted copy the document it was made from."""
    chance = random.Random(0)
    whole = "\n".join(pl.read_parquet(bundled("sotu.parquet"))["text"])
    starts = [chance.randrange(len(whole) - CHARACTERS) for _ in range(count)]
    sentences = [whole[at : at + CHARACTERS].split(". ") for at in starts]
    texts = [". ".join(chance.sample(parts, len(parts))) for parts in sentences]
    copies = {}
    for number in range(0, count - 1, 4):
        words = texts[number].split()
        texts[number + 1] = " ".join(f"x{number}" if chance.random() < 0.012 else word for word in words)
        copies[number + 1] = number
    return texts, copies


def ours(texts: list[str], folder: Path) -> tuple[float, set[int]]:
    ids = [f"{n:032x}" for n in range(len(texts))]
    frame = pl.DataFrame({"id": ids, "text": texts, "source": "sotu", "url": None}).cast({"url": pl.String})
    started = time.perf_counter()
    for name in ("in/signatures", "documents/kept"):
        (folder / name).mkdir(parents=True)
    frame.write_parquet(folder / "documents" / "kept" / "g000.parquet", compression="zstd")
    table = signatures(frame, SignatureParams()).outputs["signatures"]
    assert isinstance(table, pl.DataFrame)
    table.write_parquet(folder / "in" / "signatures" / "g000.parquet", compression="zstd")
    run = LocalRun(folder / "run")
    inputs = {"signatures": LocalFiles(folder / "in"), "documents": LocalFiles(folder / "documents")}
    resolve(inputs, ResolveParams(threshold=0.7), run)
    seconds = time.perf_counter() - started
    decisions = pl.read_parquet(run.out / "decisions" / "g000.parquet").with_row_index()
    return seconds, set(decisions.filter(~pl.col("keep"))["index"])


def theirs(texts: list[str]) -> tuple[float, set[int]]:
    started = time.perf_counter()
    index = MinHashLSH(threshold=0.7, num_perm=112, params=(14, 8))
    lost: set[int] = set()
    sketches: dict[int, MinHash] = {}
    for number, text in enumerate(texts):
        sketch = MinHash(num_perm=112)
        sketch.update_batch([part.encode() for part in shingles(text)])
        if any(sketch.jaccard(sketches[other]) >= 0.7 for other in index.query(sketch)):
            lost.add(number)
        else:
            sketches[number] = sketch
            index.insert(number, sketch)
    return time.perf_counter() - started, lost


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    texts, copies = documents(count)
    planted = set()
    for copy, original in copies.items():
        a, b = shingles(texts[copy]), shingles(texts[original])
        if len(a & b) / len(a | b) >= 0.8:
            planted.add(copy)
    with tempfile.TemporaryDirectory() as folder:
        ours(texts[:50], Path(folder) / "warm")  # compiles the kernels
        seconds, lost = ours(texts, Path(folder) / "timed")
    their_seconds, their_lost = theirs(texts)
    result = {
        "benchmark": "dedup",
        "documents": count,
        "megabytes": round(sum(len(text.encode()) for text in texts) / 1e6, 1),
        "planted": len(planted),
        "documents_per_second": round(count / seconds),
        "recall": round(len(lost & planted) / len(planted), 4),
        "datasketch_documents_per_second": round(count / their_seconds),
        "datasketch_recall": round(len(their_lost & planted) / len(planted), 4),
        "times_faster": round(their_seconds / seconds, 1),
        "decisions_in_common": round(1 - len(lost ^ their_lost) / count, 4),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
