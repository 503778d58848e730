"""One holder at a time for dear work, on any store that has create-only writes.

A lease is the row of epochs `runs/<key>/lease/<number>`: to take, renew, take over or give back is to create the next
number, which exactly one process can do. A holder is taken for dead when its process is seen to be gone, from the same
process namespace of the same boot, or when a waiter has watched the row stand still for SECONDS_TO_LIVE by its own
steady clock. What time it is, here or at the store, decides nothing: clocks jump.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from llmcore.artifacts import processes
from llmcore.artifacts.epochs import Epoch, Epochs
from llmcore.artifacts.store import Store
from llmcore.errors import LeaseLostError

SECONDS_TO_LIVE = 60.0
RENEW_EVERY_SECONDS = 15.0
SILENT_SECONDS = 600.0  # for who asks once, and can only compare the times that the store tells
POLL_SECONDS = 0.5
COLLECTION = "gc"  # the key of the lease that a collection of garbage holds while it deletes
# more than this between two looks was not watched: the waiter was suspended, or the store away for the holder as well
LONGEST_LOOK_SECONDS = 5.0
GIVE_BACK_SECONDS = 10.0


class Lease:
    """A held lease; renews itself from a thread until it is given back.

    While the store is away the work goes on; whether the lease was lost by then, `check` says before the commit.
    """

    def __init__(self, row: Epochs, number: int, owner: str) -> None:
        self.row = row
        self.owner = owner
        self._number = number
        self._lost = False
        self._renewed = _steady_seconds()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_ended, daemon=True, name=f"lease-{row.prefix[5:13]}")
        self._thread.start()

    def check(self) -> None:
        """Raise LeaseLostError unless this process still holds the newest epoch; asks the store."""
        with self._lock:  # between the renewing thread's two writes the row looks like another's
            newest = self.row.newest()
            if newest is None or newest.record.get("owner") != self.owner:
                self._lost = True
        self.check_quickly()

    def check_quickly(self) -> None:
        """Raise LeaseLostError if the renewing thread found the lease taken; asks nobody."""
        if self._lost:
            raise LeaseLostError(f"lost the lease {self.row.prefix}: another process took the work over")

    def check_fresh(self) -> None:
        """Raise LeaseLostError unless it was renewed so lately that nobody can take the holder for dead; asks nobody.

        For what must not be done by a holder who was suspended or cut off meanwhile.
        """
        self.check_quickly()
        if _steady_seconds() - self._renewed > SECONDS_TO_LIVE / 2:
            raise LeaseLostError(f"the lease {self.row.prefix} was not renewed in time: others may go on; run again")

    def give_back(self) -> None:
        """Let the next one have it. Raises nothing, because it is called while other errors are under way."""
        self._ended.set()
        self._thread.join(GIVE_BACK_SECONDS)
        if self._thread.is_alive():
            _warn_that_it_stays(self.row, "the store does not answer")

    def _renew_until_ended(self) -> None:
        while not self._ended.wait(RENEW_EVERY_SECONDS):
            with self._lock:
                try:
                    self._renew()
                except Exception as error:  # the next beat, or the check before the commit, decides
                    logging.getLogger(__name__).warning("lease %s not renewed: %s", self.row.prefix, error)
            if self._lost:
                return
        try:
            # the last epoch stays, because a late contender must not find the row empty and start a second one
            with self._lock:
                self.row.create(self._number + 1, _record(None))
                self.row.forget_before(self._number + 1)
        except Exception as error:
            _warn_that_it_stays(self.row, str(error))

    def _renew(self) -> None:
        number, began = self._number + 1, _steady_seconds()
        # a write that was tried again may have met itself
        if not self.row.create(number, _record(self.owner)) and not self._is_mine(number):
            self._lost = True
            return
        self._number, self._renewed = number, began
        self.row.forget_before(number)

    def _is_mine(self, number: int) -> bool:
        record = self.row.store.record(self.row.name(number))
        return record is not None and record.get("owner") == self.owner


class Watch:
    """How long somebody has been looking at a row without seeing it move."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._looked = 0.0
        self._seconds = 0.0

    def look(self, newest: Epoch) -> float:
        """Seconds that this epoch was watched for, by a clock that only goes forward."""
        now = time.monotonic()
        if newest.number == self._number:
            self._seconds += min(now - self._looked, LONGEST_LOOK_SECONDS)
        else:
            self._number, self._seconds = newest.number, 0.0
        self._looked = now
        return self._seconds


def take(store: Store, key: str, still_wanted: Callable[[], bool], waiting: Callable[[str], None]) -> Lease | None:
    """Wait for the lease of `key` and take it; None as soon as `still_wanted()` says the work was done by another.

    `waiting` is told once by whom the lease is held.
    """
    row, watch = Epochs(store, f"runs/{key}/lease"), Watch()
    owner = uuid.uuid4().hex
    told = False
    while still_wanted():
        newest = row.newest()
        if newest is None or _is_free(newest) or watch.look(newest) > SECONDS_TO_LIVE:
            number = newest.number + 1 if newest is not None else 1
            if row.create(number, _record(owner)):
                row.forget_before(number)
                return Lease(row, number, owner)
            continue
        if not told:
            waiting(_who(newest))
            told = True
        time.sleep(POLL_SECONDS)
    return None


def holder(store: Store, key: str, watch: Watch | None = None) -> str | None:
    """Who holds the lease of `key` now; None if it is free.

    A holder elsewhere counts as dead after SECONDS_TO_LIVE of the watch of whoever asks again and again; for others
    after SILENT_SECONDS by the store's clock.
    """
    row = Epochs(store, f"runs/{key}/lease")
    newest = row.newest()
    if newest is None or _is_free(newest):
        return None
    if watch is None and row.age(newest) > timedelta(seconds=SILENT_SECONDS):
        return None
    if watch is not None and watch.look(newest) > SECONDS_TO_LIVE:
        return None
    return _who(newest)


def settled(store: Store, key: str) -> int:
    """Wait until the lease of `key` is free; how far its row has come.

    If that has not moved between two calls, nobody held the lease meanwhile.
    """
    row, watch = Epochs(store, f"runs/{key}/lease"), Watch()
    while True:
        newest = row.newest()
        if newest is None:
            return 0
        if _is_free(newest) or watch.look(newest) > SECONDS_TO_LIVE:
            return newest.number
        time.sleep(POLL_SECONDS)


def _steady_seconds() -> float:
    """A clock that nobody sets and that, where there is such a one, goes on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _who(epoch: Epoch) -> str:
    return f"process {epoch.record.get('pid')} on {epoch.record.get('host')}"


def _is_free(newest: Epoch) -> bool:
    # containers may share a host name, and each has a process 1: `is_dead` says what is sure
    return newest.record.get("owner") is None or processes.is_dead(newest.record)


def _record(owner: str | None) -> dict[str, Any]:
    return {"owner": owner, **processes.identity()}


def _warn_that_it_stays(row: Epochs, why: str) -> None:
    logging.getLogger(__name__).warning(
        "lease %s not given back: %s; others wait %.0f s for it", row.prefix, why, SECONDS_TO_LIVE
    )
