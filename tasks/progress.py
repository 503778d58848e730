"""A stage's progress in the log and, as a progress bar, in the Prefect UI."""

from __future__ import annotations

import time
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger

from tasks.showing import show

UI_EVERY_SECONDS = 2.0
LOG_EVERY_SECONDS = 10.0
QUIET_SECONDS = 60.0  # after a report that could not be shown


class ProgressBar:
    """Made when the first report comes, updated every few seconds, full when the work ends well."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._artifact: UUID | None = None
        self._shown = self._logged = 0.0

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: Any) -> None:
        if kind is None and self._artifact is not None:
            self._show(100.0, None)

    def report(self, done: float, total: float, text: str = "") -> None:
        now = time.monotonic()
        percent = min(100.0, 100.0 * done / total) if total else 0.0
        if now - self._shown >= UI_EVERY_SECONDS:
            self._shown = now
            self._show(percent, text)
        if now - self._logged >= LOG_EVERY_SECONDS:
            self._logged = now
            get_run_logger().info("%s %.0f %% %s", self.name, percent, text)

    def _show(self, percent: float, text: str | None) -> None:
        if show(self.name, lambda: self._draw(percent, text)) is None:
            self._shown = time.monotonic() + QUIET_SECONDS

    def _draw(self, percent: float, text: str | None) -> UUID:
        if self._artifact is None:
            made = create_progress_artifact(progress=percent, key=self._key(), description=text)
            self._artifact = cast(UUID, made)  # awaitable only in asynchronous code
        else:
            update_progress_artifact(self._artifact, progress=percent, description=text)
        return self._artifact

    def _key(self) -> str:
        return "progress-" + "".join(letter if letter.isalnum() else "-" for letter in self.name.lower())
