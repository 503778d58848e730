"""What garbage collection starts from: refs (published models, heads of datasets) and runs under way.

A root is a row of numbered create-only records below `roots/`; the newest one says what it keeps. A ref moves when a
run has something better; a run writes its root before it starts and moves it as steps finish. So an artifact is
reachable from the moment it is asked for until nobody needs it, however long the training between takes.

A run and a collector agree like this: a run first claims what it is going to look for, then waits for a collection that
is under way to end, then looks. A collector first announces itself, then asks what is reachable, then deletes.
Whichever comes second sees the other.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from llmcore.artifacts import lease as leases
from llmcore.artifacts import processes
from llmcore.artifacts.epochs import Epoch, Epochs
from llmcore.artifacts.jobs import memo_folder
from llmcore.artifacts.manifest import ArtifactRef
from llmcore.artifacts.recipe import Recipe
from llmcore.artifacts.store import Store
from llmcore.errors import LlmcoreError, UsageError

REFS, RUNS = "roots/refs", "roots/runs"
TARGETS = "targets"  # what `auto` became, by the name of a model or dataset
BEAT_SECONDS = 15.0
SILENT_SECONDS = 600.0  # a run on another machine that says nothing for so long is taken for dead

log = logging.getLogger(__name__)


# refs


@dataclass(frozen=True)
class Ref:
    """A named root as it stands: its record, and the number that moves on with every change (0: there was none)."""

    name: str
    record: Mapping[str, Any]
    number: int


def ref(store: Store, name: str) -> Ref | None:
    """What a name stands for; None if there is no such ref."""
    newest = Epochs(store, f"{REFS}/{_checked(name)}").newest()
    if newest is not None:
        return Ref(name, newest.record, newest.number) if newest.record.get("stage") else None
    record = store.record(f"refs/{name}.json")  # as 0.1 wrote it
    return Ref(name, record, 0) if record is not None else None


def set_ref(store: Store, name: str, record: Mapping[str, Any], after: int | None = None) -> bool:
    """Move a ref to another record; False if `after` is named and the ref is no longer at that number.

    record: plain data with `stage` and `key`; every mapping inside it that has both is kept by the collector.
    after: a number that `ref` told, or 0 if it told of none.
    """
    row = Epochs(store, f"{REFS}/{_checked(name)}")
    while True:
        newest = row.newest()
        number = newest.number if newest is not None else 0
        seen = number if newest is not None and newest.record.get("stage") else 0  # 0: a dropped ref is none
        if after is not None and seen != after:
            return False
        if row.create(number + 1, {**record, "moved_by": uuid.uuid4().hex}):
            row.forget_before(number + 1)
            return True
        if after is not None:
            return False


def drop_ref(store: Store, name: str) -> None:
    """Forget a name, so that what only it reaches may be collected. UsageError if there is none."""
    if ref(store, name) is None:
        raise UsageError(f"no ref {name!r} in {store.uri}; `llmcore ls` lists what there is")
    set_ref(store, name, {})
    store.backend.delete(f"refs/{name}.json")


def refs(store: Store) -> Iterator[Ref]:
    """All refs by name."""
    names = {entry.name.removeprefix(f"{REFS}/").rsplit("/", 1)[0] for entry in store.backend.entries(f"{REFS}/")}
    names |= {entry.name.removeprefix("refs/").removesuffix(".json") for entry in store.backend.entries("refs/")}
    for name in sorted(names):
        found = ref(store, name)
        if found is not None:
            yield found


def edges_in(record: Any) -> Iterator[Mapping[str, str]]:
    """Every artifact that a root's record names, however deep."""
    if isinstance(record, Mapping):
        if "stage" in record and "key" in record:
            yield record
        for value in record.values():
            yield from edges_in(value)


def _checked(name: str) -> str:
    if not name or name.startswith(("/", ".")) or ".." in name or "\\" in name or name.endswith("/"):
        raise UsageError(f"bad ref name {name!r}: use letters, digits, '-', '_' and '/'")
    return name


# runs under way


class RunRoot:
    """The root of a run: what it has made or found so far, and what it is looking for now."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.name = uuid.uuid4().hex
        self._row = Epochs(store, f"{RUNS}/{self.name}")
        self._lock = threading.Lock()
        self._number = 0
        self._lost = False
        self._record: dict[str, Any] = {
            "owner": processes.identity(),
            "began": "",
            "holds": {},
            "claim": None,
            "ended": False,
        }
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="run-root")

    def begin(self) -> None:
        """Write the root. A store that cannot be written to has no collector to fear either."""
        try:
            self._record["began"] = self.store.backend.now().isoformat()
            self._move()
        except UsageError as error:
            log.warning("%s; only what is there can be used", error)
            self._lost = True
            return
        self._thread.start()

    def claim(self, recipe: Recipe) -> None:
        """Say what is looked for from now on, until the next claim; waits while a collection is deleting.

        Raises LlmcoreError if the run was silent for so long that a collector has taken it for dead.
        """
        if self._number == 0:
            return
        memos = memo_folder(recipe) if recipe.stage.kind == "per_shard" else ""
        with self._lock:
            self._record["claim"] = {"of": recipe.stage.name, "artifact": recipe.key, "memos": memos}
            self._move()
        leases.settled(self.store, leases.COLLECTION)

    def hold(self, step: str, ref: ArtifactRef) -> None:
        """Keep an artifact as long as the run lasts. Written with the next claim, which protects it until then."""
        self._record["holds"][step] = ref.plain()

    def end(self) -> None:
        """The run is over; what it holds stays for the collector's usual time."""
        self._ended.set()
        if self._number == 0:
            return
        self._thread.join()
        with self._lock:
            self._record |= {"claim": None, "ended": True}
            try:
                self._move()
            except LlmcoreError as error:  # its silence will tell
                log.warning("the end of this run could not be written down: %s", error)

    def _move(self) -> None:
        if self._lost or (self._number and self.store.record(self._row.name(self._number)) is None):
            self._lost = True
            raise LlmcoreError(
                f"this run was silent for {SILENT_SECONDS:.0f} s, and `llmcore gc` took it for dead; run again"
            )
        number = self._number + 1
        while not self._row.create(number, {**self._record, "number": number}):
            number += 1  # nobody else writes here: the write before reached the store, and only its answer was lost
        self._number = number
        self._row.forget_before(number)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with self._lock:
                try:
                    self._move()
                except Exception as error:  # the next claim decides
                    log.warning("this run's root could not be renewed: %s", error)


@contextmanager
def run(store: Store) -> Iterator[RunRoot]:
    """The root of a run under way, from before it starts until its end."""
    root = RunRoot(store)
    root.begin()
    try:
        yield root
    finally:
        root.end()


@dataclass(frozen=True)
class KnownRun:
    """A run's root as a collector finds it."""

    name: str
    epoch: Epoch
    alive: bool

    @property
    def silent(self) -> bool:
        """Whether nothing is known but that it said nothing for long: it is on another machine."""
        elsewhere = self.epoch.record["owner"].get("machine") != processes.machine()
        return elsewhere and not self.alive and not self.epoch.record["ended"]

    @property
    def began(self) -> datetime:
        return datetime.fromisoformat(self.epoch.record["began"])

    @property
    def claim(self) -> Mapping[str, str] | None:
        claim: Mapping[str, str] | None = self.epoch.record["claim"]
        return claim


def runs(store: Store) -> Iterator[KnownRun]:
    """Every run that has left a root, alive, ended or dead."""
    names = {entry.name.removeprefix(f"{RUNS}/").split("/")[0] for entry in store.backend.entries(f"{RUNS}/")}
    for name in sorted(names):
        row = Epochs(store, f"{RUNS}/{name}")
        newest = row.newest()
        if newest is not None:
            yield KnownRun(name, newest, _is_alive(row, newest))


def _is_alive(row: Epochs, newest: Epoch) -> bool:
    if newest.record["ended"]:
        return False
    owner = newest.record["owner"]
    if owner.get("machine") == processes.machine():  # a clock that jumps says nothing about a process
        return not processes.is_dead(owner)
    return row.age(newest) < timedelta(seconds=SILENT_SECONDS)
