"""A row of numbered, create-only records: the newest one is what holds now.

To move the row on is to create the next number, which exactly one of several processes can do: compare-and-swap on any
store that has create-only writes. Leases, heads of datasets and roots of runs are such rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from llmcore.artifacts.backends import Entry
from llmcore.artifacts.keys import with_check, without_check
from llmcore.artifacts.store import Store
from llmcore.errors import LlmcoreError


@dataclass(frozen=True)
class Epoch:
    """One record of the row, and where and when it was written."""

    number: int
    record: dict[str, Any]
    entry: Entry


class Epochs:
    """The row `<prefix>/<number, nine digits>` in a store."""

    def __init__(self, store: Store, prefix: str) -> None:
        self.store = store
        self.prefix = prefix.rstrip("/")

    def newest(self) -> Epoch | None:
        """The record with the highest number; None if the row was never begun.

        Raises LlmcoreError if that record is damaged.
        """
        while True:
            entry = max(self._entries(), key=_number, default=None)
            if entry is None:
                return None
            data = self.store.backend.read(entry.name)
            if data is not None:  # else the row moved on since it was listed
                return Epoch(_number(entry), self._sound(entry.name, data), entry)

    def create(self, number: int, record: Mapping[str, Any]) -> bool:
        """Write that number; False if it is taken. A record that differs from every other's makes True unambiguous."""
        return self.store.commit(self.name(number), with_check(record))

    def _sound(self, name: str, data: bytes) -> dict[str, Any]:
        # a ref that lost one letter of "stage" would look like one that was dropped, and a lease like a free one
        try:
            return without_check(json.loads(data))
        except (ValueError, AttributeError, LlmcoreError) as error:
            raise LlmcoreError(
                f"damaged record {name} in {self.store.uri}: nobody knows what it stood for; restore it, or delete it "
                f"if {self.prefix} may begin anew"
            ) from error

    def forget_before(self, number: int) -> None:
        """Delete the records below `number`. The newest must stay: an empty row would begin again."""
        for entry in list(self._entries()):
            if _number(entry) < number:
                self.store.backend.delete(entry.name)

    def age(self, epoch: Epoch) -> timedelta:
        """How long ago the epoch was written, by the store's own clock."""
        return self.store.backend.now() - epoch.entry.written

    def name(self, number: int) -> str:
        return f"{self.prefix}/{number:09d}"

    def _entries(self) -> list[Entry]:
        # what lies deeper belongs to another row, whose name begins with this one's
        start = f"{self.prefix}/"
        found = self.store.backend.entries(start)
        return [entry for entry in found if entry.name.removeprefix(start).isdecimal()]


def _number(entry: Entry) -> int:
    return int(entry.name.rsplit("/", 1)[1])
