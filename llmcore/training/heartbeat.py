"""Signs of life of a trainer: what it leaves in its scratch folder while it works, and how long who watches saw none.

heartbeat.json   how far, how fast; replaced every half second
log.jsonl        one line a step
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

HEARTBEAT = "heartbeat.json"
HEARTBEAT_SECONDS = 0.5
STARTING_SECONDS = 3600.0  # without a first step: tokens are read, a model is compiled
SLOW = 4.0  # times the longest pause between two signs of life so far: what is only slow does not hang
LOOKED_SECONDS = 10.0  # between two looks count at most: who was stopped himself cannot say how long the trainer was


class Log:
    """Heartbeat and step log of the first process; the others are silent."""

    def __init__(self, scratch: Path, steps: int, first: bool) -> None:
        self.scratch, self.steps, self.first = scratch, steps, first
        self.timed = 0  # steps since this process began
        self.speed = 0.0  # tokens a second, smoothed; the first step, which compiles, is left out
        self.last = self.beaten = time.monotonic()
        self.row: Mapping[str, Any] = {}

    def say(self, text: str) -> None:
        if self.first:
            print(text, file=sys.stderr, flush=True)

    def step(self, row: Mapping[str, Any], tokens: int) -> None:
        now = time.monotonic()
        speed = tokens / max(now - self.last, 1e-9)
        if self.timed:
            self.speed = speed if self.timed == 1 else 0.9 * self.speed + 0.1 * speed
        self.timed, self.last = self.timed + 1, now
        if not self.first:
            return
        with suppress(OSError), (self.scratch / "log.jsonl").open("a", encoding="utf-8") as file:  # it only shows
            file.write(json.dumps({**row, "tokens_per_second": round(speed, 1), "time": round(time.time(), 3)}) + "\n")
        self.row = row
        self.beat(at_once=row["step"] == self.steps or self.timed == 1)

    def beat(self, at_once: bool = False) -> None:
        """A sign of life, from the first step on: before it, who watches waits longer (a model may compile)."""
        now = time.monotonic()
        if not self.first or not self.timed or not (at_once or now - self.beaten >= HEARTBEAT_SECONDS):
            return
        self.beaten = now
        told = {
            "step": self.row["step"],
            "steps": self.steps,
            "loss": self.row["loss"],
            "tokens_per_second": round(self.speed, 1),
            "time": time.time(),
        }
        aside = self.scratch / f".{HEARTBEAT}"
        try:
            aside.write_text(json.dumps(told), encoding="utf-8")
            aside.replace(self.scratch / HEARTBEAT)
        except OSError:  # a full disk: that the one before is touched is sign enough
            with suppress(OSError):
                (self.scratch / HEARTBEAT).touch()


class Pulse:
    """How long a trainer has given no sign of life, counted while somebody looked."""

    def __init__(self, scratch: Path, hang_seconds: float) -> None:
        self.path = scratch / HEARTBEAT
        self.hang_seconds = hang_seconds
        self.beat: Mapping[str, Any] | None = None
        self.still = 0.0
        self.longest = 0.0  # pause between two beats so far
        self._when = 0
        self._looked = time.monotonic()

    def look(self) -> None:
        """Read the heartbeat."""
        now = time.monotonic()
        self.still += min(now - self._looked, LOOKED_SECONDS)
        self._looked = now
        try:
            when = self.path.stat().st_mtime_ns
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if when != self._when:
            if self.beat is not None:
                self.longest = max(self.longest, self.still)
            self.beat, self.still, self._when = found, 0.0, when

    @property
    def limit(self) -> float:
        """Seconds after which a still trainer counts as hung."""
        if not self.hang_seconds:
            return float("inf")
        return max(self.hang_seconds, STARTING_SECONDS if self.beat is None else SLOW * self.longest)

    @property
    def hangs(self) -> bool:
        return self.still > self.limit
