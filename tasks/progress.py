"""A stage's progress: a bar on the terminal or lines in the log, and a progress bar in the Prefect UI."""

from __future__ import annotations

import time
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger

from tasks.showing import show
from tasks.terminal import terminal

UI_EVERY_SECONDS = 2.0
LOG_EVERY_SECONDS = 10.0  # in the UI's log
LINE_EVERY_SECONDS = 30.0  # where the command's output goes into a file or a pipe
DRAW_EVERY_SECONDS = 0.1
QUIET_SECONDS = 60.0  # after a report that could not be shown
BAR_CELLS = 24
UNITS = {"model": "steps"}  # by role: what a stage counts where its name does not say it


class ProgressBar:
    """Updated every few seconds, full when the work ends well.

    role:  of the stage. in_ui: with an artifact in the UI, made when the first report comes.
    """

    def __init__(self, name: str, role: str = "", in_ui: bool = True) -> None:
        self.name, self.unit, self.in_ui = name, UNITS.get(role, ""), in_ui
        self._artifact: UUID | None = None
        self._shown = self._drawn = 0.0
        self._logged = time.monotonic()
        self._first = (0.0, 0.0, 0.0)  # time, amount done and total of the first report of this total

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: Any) -> None:
        if kind is None and self._artifact is not None:
            self._show(100.0, None)

    def report(self, done: float, total: float, text: str = "") -> None:
        now = time.monotonic()
        percent = min(100.0, 100.0 * done / total) if total else 0.0
        if self._first[2] != total:  # what came before (a trainer that starts) says nothing of the speed
            self._first = (now, done, total)
        screen = terminal()
        if screen is not None and screen.live:
            if now - self._drawn >= DRAW_EVERY_SECONDS:
                self._drawn = now
                screen.bar(f"{self.name}  {bar(percent)}  {self._amount(now, done, total, text)}")
        elif now - self._logged >= (LINE_EVERY_SECONDS if screen else LOG_EVERY_SECONDS):
            self._logged = now
            get_run_logger().info("%s: %.0f %%, %s", self.name, percent, self._amount(now, done, total, text))
        if self.in_ui and now - self._shown >= UI_EVERY_SECONDS:
            self._shown = now
            self._show(percent, text)

    def _amount(self, now: float, done: float, total: float, text: str) -> str:
        """How much of how much, what the stage says of it, and the time left, judged by the time since the first
        report (an earlier run may have done a part)."""
        parts = [f"{done:,.0f} of {total:,.0f} {self.unit}".rstrip()] if total > 1 else []
        began, before, _ = self._first
        if done > before and done < total:
            parts.append(f"{duration((now - began) * (total - done) / (done - before))} left")
        return ", ".join([*parts, *([text] if text else [])])

    def _show(self, percent: float, text: str | None) -> None:
        if show(self.name, lambda: self._draw(percent, text)) is None:
            self._shown = time.monotonic() + QUIET_SECONDS

    def _draw(self, percent: float, text: str | None) -> UUID:
        if self._artifact is None:
            made = create_progress_artifact(progress=percent, description=text)
            self._artifact = cast(UUID, made)  # awaitable only in asynchronous code
        else:
            update_progress_artifact(self._artifact, progress=percent, description=text)
        return self._artifact


def bar(percent: float) -> str:
    """Per cent as a bar with the number behind it."""
    full = round(BAR_CELLS * percent / 100)
    return f"{'━' * full}{'─' * (BAR_CELLS - full)} {percent:3.0f} %"


def duration(seconds: float) -> str:
    """8 s, 2 min 5 s, 3 h 20 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
