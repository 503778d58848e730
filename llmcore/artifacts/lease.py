"""One holder at a time for dear work, on any store that has create-only writes.

A lease is a row of numbered records `runs/<key>/lease/<epoch>`: to take, renew, take over or give back is to create the
next epoch, which exactly one process can do. The age of the newest epoch, by the store's own clock, says whether its
holder still lives; a holder on this very machine is also looked up by its process.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psutil

from llmcore.artifacts.epochs import Epoch, Epochs
from llmcore.artifacts.store import Store
from llmcore.errors import LeaseLostError

SECONDS_TO_LIVE = 60.0
RENEW_EVERY_SECONDS = 15.0
POLL_SECONDS = 0.5


class Lease:
    """A held lease; renews itself from a thread until it is given back."""

    def __init__(self, row: Epochs, number: int, owner: str) -> None:
        self.row = row
        self.owner = owner
        self._number = number
        self._lost = False
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

    def give_back(self) -> None:
        self._ended.set()
        self._thread.join()
        with self._lock:
            if not self._lost:
                # the last epoch stays, because a late contender must not find the row empty and start a second one
                self.row.create(self._number + 1, _record(None))
                self.row.forget_before(self._number + 1)

    def _renew_until_ended(self) -> None:
        while not self._ended.wait(RENEW_EVERY_SECONDS):
            with self._lock:
                try:
                    renewed = self.row.create(self._number + 1, _record(self.owner))
                    # a write that was tried again may have met itself
                    if not renewed and not self._is_mine(self._number + 1):
                        self._lost = True
                        return
                    self._number += 1
                    self.row.forget_before(self._number)
                except Exception:
                    continue  # the store is away for a moment; the next beat or the check before the commit decides

    def _is_mine(self, number: int) -> bool:
        record = self.row.store.record(self.row.name(number))
        return record is not None and record.get("owner") == self.owner


def take(store: Store, key: str, still_wanted: Callable[[], bool], waiting: Callable[[str], None]) -> Lease | None:
    """Wait for the lease of `key` and take it; None as soon as `still_wanted()` says the work was done by another.

    `waiting` is told once by whom the lease is held.
    """
    row = Epochs(store, f"runs/{key}/lease")
    owner = uuid.uuid4().hex
    told = False
    while still_wanted():
        newest = row.newest()
        if newest is None or _is_free(row, newest):
            number = newest.number + 1 if newest is not None else 1
            if row.create(number, _record(owner)):
                row.forget_before(number)
                return Lease(row, number, owner)
            continue
        if not told:
            waiting(f"process {newest.record.get('pid')} on {newest.record.get('host')}")
            told = True
        time.sleep(POLL_SECONDS)
    return None


def holder(store: Store, key: str) -> str | None:
    """Who holds the lease of `key` now; None if it is free."""
    row = Epochs(store, f"runs/{key}/lease")
    newest = row.newest()
    if newest is None or _is_free(row, newest):
        return None
    return f"process {newest.record.get('pid')} on {newest.record.get('host')}"


def _is_free(row: Epochs, newest: Epoch) -> bool:
    holder = newest.record
    if holder.get("owner") is None:
        return True
    if holder.get("host") == socket.gethostname() and not _is_alive(holder):
        return True
    return row.age(newest) > timedelta(seconds=SECONDS_TO_LIVE)


def _is_alive(holder: dict[str, Any]) -> bool:
    try:
        return bool(psutil.Process(holder["pid"]).create_time() == holder["process_started"])
    except psutil.Error:
        return False


def _record(owner: str | None) -> dict[str, Any]:
    return {
        "owner": owner,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_started": psutil.Process().create_time(),
    }
