"""The names of shards, `gNNN-SOURCE-NNNNN.parquet`, and the order they stand in."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

GENERATION = re.compile(r"g(\d+)(?=[-.]|$)")
SOURCE = re.compile(r"g\d+-([a-z0-9_]+)(?=[-.]|$)")  # a source's name has no hyphen, see planning/config.py
NUMBER = re.compile(r"(?<=-)\d{5,}(?=[-.]|$)")


def generation_of(name: str) -> int | None:
    """The generation that a shard belongs to (0: the first snapshot); None for a file that is no shard."""
    found = GENERATION.match(PurePosixPath(name).name)
    return int(found.group(1)) if found else None


def source_of(name: str) -> str:
    """The source whose documents a shard holds; "" for a file that holds those of all, or is no shard."""
    found = SOURCE.match(PurePosixPath(name).name)
    return found.group(1) if found else ""


def generation_name(number: int) -> str:
    return f"g{number:03d}"


def shard_order(name: str) -> tuple[str, int, str]:
    """What to sort shards by: folder, generation, and the rest with its numbers as numbers: g999 before g1000."""
    path = PurePosixPath(name)
    found = GENERATION.match(path.name)
    if not found:
        return str(path.parent), -1, path.name
    rest = NUMBER.sub(lambda number: number.group().zfill(20), path.name[found.end() :])
    return str(path.parent), int(found.group(1)), rest
