"""Finding artifacts without reading all of them: names, prefixes of keys and digests, the last one of a step.

What a manifest says in short never changes, so it is remembered on this machine (`LLMCORE_CACHE`, default
`~/.cache/llmcore`) by the name and time of its record: one listing tells what is new. The file may be deleted at any
time.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from llmcore.artifacts import roots
from llmcore.artifacts.keys import with_check, without_check
from llmcore.artifacts.lineage import ref_of
from llmcore.artifacts.manifest import Manifest, manifest_entries, manifest_of, parse_name, read_manifest, read_record
from llmcore.artifacts.store import Store
from llmcore.errors import LlmcoreError, UsageError

LEAST_DIGITS = 4  # of a prefix
BUSY_SECONDS = 5.0


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
    with closing(_remembered(store)) as memory:
        rows: list[tuple[str, str, str]] = []
        known: dict[str, Summary] = {}
        with suppress(sqlite3.Error, UnicodeDecodeError):  # what is damaged is read anew
            rows = memory.execute("SELECT name, written, summary FROM artifacts").fetchall()
        for name, written, text in rows:
            with suppress(ValueError, TypeError, AttributeError):
                if entries.get(name) == written:
                    known[name] = Summary(**without_check(json.loads(text)))
        new = [name for name in entries if name not in known]
        for name, summary in zip(new, store.each(new, lambda name: _summary(store, name)), strict=True):
            if summary is not None:
                known[name] = summary
        with suppress(sqlite3.Error, UnicodeDecodeError):  # remembering is a convenience
            told = [(n, entries[n], json.dumps(with_check(asdict(known[n])))) for n in new if n in known]
            memory.executemany("INSERT OR REPLACE INTO artifacts VALUES (?, ?, ?)", told)
            if not stage:
                gone = [(name,) for name, _, _ in rows if name not in entries]
                memory.executemany("DELETE FROM artifacts WHERE name = ?", gone)
            memory.commit()
    # a forced run writes its manifest as an edition too
    found = {(s.stage, s.key, s.seal): s for s in (known[name] for name in entries if name in known)}
    return sorted(found.values(), key=lambda summary: summary.started)


def last_of(store: Store, stage: str, step: str) -> Manifest | None:
    """The artifact of a step that was begun last."""
    found = [summary for summary in summaries(store, stage) if summary.step == step]
    return read_manifest(store, stage, found[-1].key, found[-1].seal) if found else None


def resolve_ref(store: Store, text: str) -> Manifest:
    """The artifact that a ref's name, or a unique prefix of a key or digest, stands for. UsageError if none does."""
    ref = None
    with suppress(UsageError):
        ref = roots.ref(store, text)
    if ref is not None:
        try:
            return manifest_of(store, ref_of(store, {"digest": "", **ref.record}))
        except LlmcoreError as error:
            raise LlmcoreError(f"ref {text!r}: {error}") from error
    if len(text) >= LEAST_DIGITS and all(letter in "0123456789abcdef" for letter in text):
        found = [s for s in summaries(store) if s.key.startswith(text) or s.digest.startswith(text)]
        if len({summary.key for summary in found}) > 1:
            raise UsageError(f"{text!r} fits {len(found)} artifacts in {store.uri}; give more digits")
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


def _remembered(store: Store) -> sqlite3.Connection:
    """What this machine knows of a store; in memory where it cannot be written down."""
    home = Path(os.environ.get("LLMCORE_CACHE", Path.home() / ".cache" / "llmcore")) / "index"
    for place in (str(home / f"{hashlib.sha256(store.uri.encode()).hexdigest()[:16]}.sqlite"), ":memory:"):
        try:
            home.mkdir(parents=True, exist_ok=True)
            memory = sqlite3.connect(place, timeout=BUSY_SECONDS)
            memory.execute("CREATE TABLE IF NOT EXISTS artifacts (name TEXT PRIMARY KEY, written TEXT, summary TEXT)")
            return memory
        except (OSError, sqlite3.Error, UnicodeDecodeError):
            continue
    raise LlmcoreError("sqlite cannot make a database in memory; the Python installation is broken")


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
