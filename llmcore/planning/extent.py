"""How much text the sources hold, as far as it can be told without reading them: bytes on disk, and what they yield.

The figures are for planning: a bound that no text exceeds, and a likely yield, which the first dataset replaces
(`cost.py`). Yields were measured on the bundled corpus (`docs/log.md`): State of the Union addresses as Parquet, the
Apache manual as HTML and as gzipped WARC, after all filters.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llmcore import quickstart
from llmcore.errors import UsageError
from llmcore.planning.config import CrawlSource, FileSource, PipelineConfig
from llmcore.sources import collect

# kind -> (bytes of text that a stored byte may hold at most, that it is likely to leave behind after all filters);
# WARC and Parquet are compressed inside, so their bound is only that of compressed text
YIELD: Mapping[str, tuple[float, float]] = {
    "text": (1.0, 0.85),
    "jsonl": (1.0, 0.75),
    "html": (1.0, 0.25),
    "parquet": (50.0, 3.8),
    "warc": (50.0, 1.0),
}
COMPRESSED = (50.0, 3.0)  # the same for a compression around text, jsonl or html
SITE_YIELD = 1.3  # bytes of text that a byte of the bundled site's archive (tar, xz) leaves behind
# UTF-8 bytes that a token of a vocabulary stands for: byte-level BPE, learned on the bundled corpus (docs/log.md)
BYTES_PER_TOKEN = {512: 2.1, 1024: 2.7, 2048: 3.3, 4096: 3.9, 8192: 4.3, 16384: 4.6, 32768: 4.8, 65536: 4.9}


@dataclass(frozen=True)
class Extent:
    """Of one source, or of all: files, their bytes, and UTF-8 bytes of text at most and likely.

    Known only for what lies in files; `unknown` names the crawls, whose extent nobody knows before they are fetched.
    """

    files: int = 0
    bytes: int = 0
    most: float = 0.0
    likely: float = 0.0
    unknown: tuple[str, ...] = ()

    def __add__(self, other: Extent) -> Extent:
        return Extent(
            self.files + other.files,
            self.bytes + other.bytes,
            self.most + other.most,
            self.likely + other.likely,
            self.unknown + other.unknown,
        )


def extent_of(source: CrawlSource | FileSource) -> Extent:
    """What a source holds today. Raises UsageError naming it where that is nothing, or cannot be looked at."""
    if isinstance(source, FileSource):
        return _files(source.kind, source.sizes())
    if source.serve is None:
        return Extent(unknown=(source.name,))
    site = Path(source.serve_path or "") if source.serve == "folder" else quickstart.bundled("site.tar.xz")
    if site.is_file():
        size = site.stat().st_size
        return Extent(1, size, COMPRESSED[0] * size, SITE_YIELD * size)
    if not source.serve_path or not site.is_dir():
        raise UsageError(f"source {source.name!r}: serve_path: {source.serve_path} is no folder of a site to serve")
    return _files("html", {str(path): path.stat().st_size for path in site.rglob("*") if path.is_file()})


def extent_of_all(config: PipelineConfig) -> Extent:
    """What all sources of a configuration hold today. Raises UsageError naming the source that holds nothing."""
    return sum((extent_of(source) for source in config.sources), Extent())


def _files(kind: str, sizes: Mapping[str, int]) -> Extent:
    most, likely = YIELD[kind]
    held = Extent(len(sizes), sum(sizes.values()))
    for name, size in sizes.items():
        packed = kind not in ("warc", "parquet") and name.lower().endswith(collect.COMPRESSIONS)
        more, likelier = COMPRESSED if packed else (1.0, 1.0)
        held += Extent(0, 0, size * most * more, size * likely * likelier)
    return held


def bytes_per_token(vocab_size: int) -> float:
    """UTF-8 bytes of text that a token is likely to stand for; linear in the logarithm between the sizes measured."""
    sizes = sorted(BYTES_PER_TOKEN)
    if vocab_size <= sizes[0] or vocab_size >= sizes[-1]:
        return BYTES_PER_TOKEN[sizes[0] if vocab_size <= sizes[0] else sizes[-1]]
    place = bisect.bisect_right(sizes, vocab_size)
    low, high = sizes[place - 1], sizes[place]
    share = (vocab_size / low - 1) / (high / low - 1)  # linear in size is near enough between neighbours
    return BYTES_PER_TOKEN[low] + share * (BYTES_PER_TOKEN[high] - BYTES_PER_TOKEN[low])
