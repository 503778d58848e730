"""What no root reaches: artifacts, memos, blobs, scratch, leases, roots of ended runs, uploads broken off."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from itertools import groupby

from llmcore.artifacts import lease as leases
from llmcore.artifacts import roots, working
from llmcore.artifacts.backends import Entry
from llmcore.artifacts.jobs import read_memo
from llmcore.artifacts.manifest import (
    Manifest,
    manifest_entries,
    manifest_name,
    parse_name,
    read_record,
)
from llmcore.artifacts.store import Store, blob_name, suffix_of
from llmcore.errors import LlmcoreError

# nothing younger goes, whatever reaches it: what a run that has ended or died has made is worth a second run
YOUNGEST = timedelta(hours=24)
CLOCK_STEP = timedelta(seconds=3)  # S3 tells times in whole seconds
BATCH = 1000  # objects that are deleted between two looks at the clock
HOLD_SECONDS = 5.0  # for which runs may be held up by deleting, or for as long as the look before it took


def garbage(store: Store, older_than: timedelta = YOUNGEST) -> list[Entry]:
    """Objects that no root reaches and that were written more than `older_than` ago, in the order to delete them in.

    While runs are under way, nothing goes that was written since the oldest of them began.
    Manifests go before the memos and blobs they name, so that an interrupted collection leaves no broken artifact.
    Raises LlmcoreError for a ref that names an artifact which is not there: what it should keep is then unknown.
    """
    return Survey(store, older_than).garbage()


def collect(store: Store, older_than: timedelta = YOUNGEST) -> Iterator[Entry]:
    """Delete garbage, and say of each object that it is gone. LlmcoreError if another collection is at it.

    What is reachable is asked with runs held up, which go on after as long again as the asking took; then it is asked
    anew. So a large store costs twice the deleting, however many looks that takes. Each object is looked at once more
    before it goes.
    """
    survey = Survey(store, older_than)
    todo = {entry.name for entry in survey.garbage()}
    while todo:
        lease = leases.take(store, leases.COLLECTION, lambda: True, _somebody_collects)
        if lease is None:
            return
        delete = partial(survey.delete, check=lease.check_fresh)
        try:
            began = time.monotonic()
            still = [entry for entry in survey.garbage() if entry.name in todo]
            until = time.monotonic() + max(HOLD_SECONDS, time.monotonic() - began)
            todo &= {entry.name for entry in still}
            for batch in _batches(still):
                yield from (entry for entry in store.each(batch, delete) if entry is not None)
                todo -= {entry.name for entry in batch}
                if time.monotonic() > until:
                    break
        finally:
            lease.give_back()
    working.remove_abandoned()


def _batches(found: list[Entry]) -> Iterator[list[Entry]]:
    """Several go at a time, and no blob may go before the last of the records that name it."""
    for _, group in groupby(found, key=_floor):
        floor = list(group)
        yield from (floor[start : start + BATCH] for start in range(0, len(floor), BATCH))


def _floor(entry: Entry) -> int:
    """0 for manifests, 1 for memos, 2 for what these name and all else."""
    return {"artifacts": 0, "editions": 0, "memo": 1}.get(entry.name.split("/")[0], 2)


def _somebody_collects(holder: str) -> None:
    raise LlmcoreError(f"another collection is under way: {holder}; wait for its end")


@dataclass
class Survey:
    """A look at the store; what manifests and memos say is remembered for the next look."""

    store: Store
    older_than: timedelta
    _manifests: dict[str, tuple[datetime | None, Manifest]] = field(default_factory=dict)
    _written: dict[str, datetime] = field(default_factory=dict)
    _unfinished: set[str] = field(default_factory=set)
    _memos: dict[str, set[str]] = field(default_factory=dict)

    def garbage(self) -> list[Entry]:
        store = self.store
        last_moment = store.backend.now() - self.older_than
        # a silent run whose root is too young to go would not be told, when it comes back, that it was taken for dead
        running = [
            dataclasses.replace(run, alive=run.alive or (run.silent and run.epoch.entry.written > last_moment))
            for run in roots.runs(store)
        ]
        last_moment = min([last_moment, *(run.began - CLOCK_STEP for run in running if run.alive)])

        # the manifests first: whatever is committed while this goes on is younger than what is listed
        recorded = list(manifest_entries(store))
        self._written = {entry.name: entry.written for entry in recorded}
        memos = list(store.backend.entries("memo/"))
        kept = self._reachable(running, recorded, last_moment)
        names = set(kept)
        for manifest in list(kept.values()):  # with an edition stays what others find it by
            first = manifest_name(manifest.stage, manifest.key)
            names.add(first)
            found = self._manifest(first)
            if found is not None:
                kept[first] = found
        blobs = {blob_name(o.blob, suffix_of(name)) for m in kept.values() for name, o in m.outputs.items()}
        blobs |= {blob_name(m.listing, ".parquet") for m in kept.values() if m.listing}

        claims = [run.claim for run in running if run.alive and run.claim]
        wanted = tuple(f"{claim['memos']}/" for claim in claims if claim["memos"])
        self._read_memos(memos)
        live = [memo for memo in memos if memo.written > last_moment or (wanted and memo.name.startswith(wanted))]
        blobs |= {blob for memo in live for blob in self._memos[memo.name]}
        staying = {memo.name for memo in live}

        scratch = list(store.backend.entries("runs/"))
        at_work = {entry.name.split("/")[1] for entry in scratch if entry.written > last_moment}
        at_work |= {claim["artifact"] for claim in claims} | {leases.COLLECTION}
        at_work |= {
            key for key in {entry.name.split("/")[1] for entry in scratch} - at_work if leases.holder(store, key)
        }
        named = {ref.name.removeprefix("datasets/") for ref in roots.refs(store)}
        over = {run.name for run in running if not run.alive and run.epoch.entry.written <= last_moment}

        def old(prefix: str) -> list[Entry]:
            return [entry for entry in store.backend.entries(prefix) if entry.written <= last_moment]

        return [
            *(entry for entry in recorded if entry.written <= last_moment and entry.name not in names),
            *(memo for memo in memos if memo.name not in staying and not blobs.issuperset(self._memos[memo.name])),
            *(entry for entry in scratch if entry.name.split("/")[1] not in at_work),
            *(entry for entry in old("blobs/") if entry.name not in blobs),
            *(entry for entry in store.backend.entries(f"{roots.RUNS}/") if entry.name.split("/")[2] in over),
            *(entry for entry in old(f"{roots.TARGETS}/") if entry.name.split("/")[1] not in named),
            *self._broken_off(last_moment),
        ]

    def delete(self, entry: Entry, check: Callable[[], None]) -> Entry | None:
        """Delete what `garbage` named, unless it was renewed since; None then.

        check: raises where runs may have gone on without waiting for this collection.
        """
        if entry.name in self._unfinished:
            self.store.backend.abandon(entry)
            return entry
        now = self.store.backend.entry(entry.name)
        if now is None or now.written != entry.written:
            return None
        check()
        self.store.backend.delete(entry.name)
        return entry

    def _broken_off(self, last_moment: datetime) -> list[Entry]:
        found = [entry for entry in self.store.backend.unfinished() if entry.written <= last_moment]
        self._unfinished |= {entry.name for entry in found}
        return found

    def _reachable(
        self, running: list[roots.KnownRun], recorded: list[Entry], last_moment: datetime
    ) -> dict[str, Manifest]:
        """Every manifest that stays, by the name of its record."""
        kept: dict[str, Manifest] = {}
        for ref in roots.refs(self.store):
            for edge in roots.edges_in(ref.record):
                self._keep(kept, edge, f"ref {ref.name!r}")
        for run in running:
            if run.alive or run.epoch.entry.written > last_moment:
                for edge in roots.edges_in(run.epoch.record["holds"]):
                    self._keep(kept, edge, "" if not run.alive else f"a run on {run.epoch.record['owner']['host']}")
        claims = {(run.claim["of"], run.claim["artifact"]) for run in running if run.alive and run.claim}
        for entry in recorded:
            if entry.written > last_moment or parse_name(entry.name)[:2] in claims:
                manifest = self._manifest(entry.name)
                if manifest is not None:
                    self._keep(kept, manifest.edge(), "")
        return kept

    def _keep(self, kept: dict[str, Manifest], edge: Mapping[str, str], root: str) -> None:
        """Add an artifact and all behind it. root: who must find it, or LlmcoreError; "": whoever does need not."""
        waiting = [edge]
        while waiting:
            place = waiting.pop()
            stage, key, seal = place["stage"], place["key"], place.get("seal", "")
            first = manifest_name(stage, key)
            manifest = self._manifest(first)
            name = first
            if manifest is None or seal not in ("", manifest.seal):
                name = manifest_name(stage, key, seal) if seal else first
                manifest = self._manifest(name)
            if manifest is None:
                if root:
                    raise LlmcoreError(
                        f"{root} needs {stage}/{key[:12]}, which is not in {self.store.uri}: nothing was collected; "
                        "run its pipeline again, or drop the ref with `llmcore gc --forget NAME`"
                    )
                continue
            if name not in kept:
                kept[name] = manifest
                waiting += [edge for edges in manifest.inputs.values() for edge in edges]

    def _manifest(self, name: str) -> Manifest | None:
        written = self._written.get(name)
        known = self._manifests.get(name)
        if known is None or written is None or known[0] != written:
            found = read_record(self.store, name)
            if found is None:
                return None
            known = self._manifests[name] = (written, found)
        return known[1]

    def _read_memos(self, memos: list[Entry]) -> None:
        new = [memo.name for memo in memos if memo.name not in self._memos]
        for name, record in zip(new, self.store.each(new, lambda name: read_memo(self.store, name)), strict=True):
            outputs = record["outputs"] if record is not None else {}
            self._memos[name] = {blob_name(output["blob"], suffix_of(file)) for file, output in outputs.items()}
