"""Does everything behind an artifact hold what its record says?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl

from llmcore.artifacts.lineage import manifests_behind
from llmcore.artifacts.manifest import Folder, Manifest, folders_of, outputs_digest
from llmcore.artifacts.store import Store, blob_name, suffix_of


def verify(store: Store, top: Manifest) -> Iterator[tuple[Manifest, str, str]]:
    """Re-hash every blob behind an artifact; yield (artifact, file, what is wrong) for each that differs.

    Manifests were checked against their seals when they were read, and each is named by its seal in those made from it:
    the seal of the artifact given vouches for all of them. Each blob is read once, afresh from the store.
    """
    seen: set[tuple[str, int | None, int | None]] = set()
    for manifest in manifests_behind(store, [top]):
        if not manifest.seal:
            yield manifest, manifest.step, "has no seal (made by llmcore 0.1): inputs and metrics cannot be checked"
        files: list[tuple[str, str, str, int | None, int | None]] = [
            (name, output.blob, suffix_of(name), output.bytes, output.rows) for name, output in manifest.outputs.items()
        ]
        if _totals(folders_of(manifest.outputs)) != _totals(manifest.folders):
            yield manifest, manifest.step, "bytes and rows of the files do not add up to those of their folders"
        if manifest.listing:
            files.append(("the list of files", manifest.listing, ".parquet", None, None))
            if outputs_digest(manifest.outputs) != manifest.digest:
                yield manifest, "the list of files", "does not hash to the artifact's digest"
        for name, digest, suffix, size, rows in files:
            blob = blob_name(digest, suffix)
            if (blob, size, rows) in seen:
                continue
            seen.add((blob, size, rows))
            entry = store.backend.entry(blob)
            if entry is None:
                yield manifest, name, f"{blob} is missing"
            elif size not in (None, entry.bytes) or not store.blob_is_sound(digest, suffix):
                yield manifest, name, f"{blob} does not hash to its name"
            elif rows is not None and rows != _rows_of(store.backend.local(blob)):
                yield manifest, name, f"{blob} has not the {rows} rows that the record tells of"


def _totals(folders: Mapping[str, Folder]) -> dict[str, tuple[int, int, int]]:
    return {name: (folder.files, folder.bytes, folder.rows) for name, folder in folders.items()}


def _rows_of(path: Path | None) -> int | None:
    return None if path is None else int(pl.scan_parquet(path).select(pl.len()).collect().item())
