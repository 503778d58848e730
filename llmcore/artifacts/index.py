"""Finding artifacts without reading all of them: names, prefixes of keys and digests, the last one of a step.

What a manifest says in short never changes, so it is remembered on this machine by the name and time of its record: one
listing tells what is new.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields

from llmcore.artifacts import roots
from llmcore.artifacts.keys import key_of, with_check, without_check
from llmcore.artifacts.lineage import ref_of
from llmcore.artifacts.manifest import Manifest, manifest_entries, manifest_of, parse_name, read_manifest, read_record
from llmcore.artifacts.memory import FAULTS, memory
from llmcore.artifacts.store import Store
from llmcore.errors import LlmcoreError, UsageError

SHOWN_DIGITS, MOST_SHOWN = 12, 3  # of artifacts that a prefix fits
TABLE = "artifacts (name TEXT PRIMARY KEY, written TEXT, summary TEXT)"


@dataclass(frozen=True)
class Summary:
    """An artifact in short."""

    stage: str
    key: str
    seal: str
    digest: str
    step: str
    role: str
    started: str
    files: int
    bytes: int


def summaries(store: Store, stage: str = "") -> list[Summary]:
    """Every artifact (and further edition), of one stage or of all, by the time its making began."""
    entries = {entry.name: entry.written.isoformat() for entry in manifest_entries(store, stage)}
    known: dict[str, Summary] = {}
    forgotten: list[tuple[str]] = []
    with suppress(*FAULTS), memory(_file(store), TABLE) as remembered:
        for name, written, text in remembered.execute("SELECT name, written, summary FROM artifacts"):
            if entries.get(name) == written:
                with suppress(ValueError, TypeError, AttributeError):  # what is damaged is read anew
                    known[name] = Summary(**without_check(json.loads(text)))
            elif name not in entries and not stage:
                forgotten.append((name,))
    new = [name for name in entries if name not in known]
    for name, summary in zip(new, store.each(new, lambda name: _summary(store, name)), strict=True):
        if summary is not None:
            known[name] = summary
    told = [(name, entries[name], json.dumps(with_check(asdict(known[name])))) for name in new if name in known]
    if told or forgotten:
        with suppress(*FAULTS), memory(_file(store), TABLE) as remembered:
            remembered.executemany("INSERT OR REPLACE INTO artifacts VALUES (?, ?, ?)", told)
            remembered.executemany("DELETE FROM artifacts WHERE name = ?", forgotten)
    # a forced run writes its manifest as an edition too
    found = {(s.stage, s.key, s.seal): s for s in (known[name] for name in entries if name in known)}
    return sorted(found.values(), key=lambda summary: summary.started)


def last_of(store: Store, stage: str, step: str) -> Manifest | None:
    """The artifact of a step that was begun last."""
    found = [summary for summary in summaries(store, stage) if summary.step == step]
    return read_manifest(store, stage, found[-1].key, found[-1].seal) if found else None


def resolve_ref(store: Store, text: str) -> Manifest:
    """The artifact that a ref's name, or a unique prefix of a key or digest, stands for; UsageError if none does.

    The prefix may have any length, and its stage in front ("train/5c2e").
    """
    ref = None
    with suppress(UsageError):
        ref = roots.ref(store, text)
    if ref is not None:
        try:
            return manifest_of(store, ref_of(store, {"digest": "", **ref.record}))
        except LlmcoreError as error:
            raise LlmcoreError(f"ref {text!r}: {error}") from error
    stage, _, digits = text.rpartition("/")
    if digits and all(letter in "0123456789abcdef" for letter in digits):
        found = [s for s in summaries(store, stage) if s.key.startswith(digits) or s.digest.startswith(digits)]
        keys = sorted({(summary.key, summary.stage) for summary in found})
        if len(keys) > 1:
            some = ", ".join(f"{stage}/{key[:SHOWN_DIGITS]}" for key, stage in keys[:MOST_SHOWN])
            more = ", …" if len(keys) > MOST_SHOWN else ""
            raise UsageError(f"{text!r} fits {len(keys)} artifacts in {store.uri} ({some}{more}); give more digits")
        for summary in found:
            manifest = read_manifest(store, summary.stage, summary.key)
            if manifest is not None:
                return manifest
    raise UsageError(f"no ref, key or digest {text!r} in {store.uri}; `llmcore ls` lists what there is")


def _summary(store: Store, name: str) -> Summary | None:
    manifest = read_record(store, name)
    if manifest is None:
        return None
    stage, key, _ = parse_name(name)
    started = str(manifest.run.get("started", ""))
    return Summary(
        stage,
        key,
        manifest.seal,
        manifest.digest,
        manifest.step,
        manifest.role,
        started,
        manifest.files,
        manifest.bytes,
    )


def _file(store: Store) -> str:
    """Where the store is remembered; elsewhere by a version whose summaries hold something else."""
    return f"index/{key_of([store.uri, [field.name for field in fields(Summary)]])[:16]}.sqlite"


def refs_by_key(store: Store) -> dict[str, list[str]]:
    """Key -> the names that stand for that artifact."""
    named: dict[str, list[str]] = {}
    for ref in roots.refs(store):
        named.setdefault(str(ref.record["key"]), []).append(ref.name)
    return named


def named_manifests(store: Store) -> Iterator[tuple[str, Manifest]]:
    """Every ref with the artifact it stands for; those whose artifact is gone are left out."""
    for ref in roots.refs(store):
        manifest = read_manifest(store, ref.record["stage"], ref.record["key"], ref.record.get("seal", ""))
        if manifest is not None:
            yield ref.name, manifest
