"""Copies of the checkpoints in the store, so that a lost machine costs minutes of training, not the run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from llmcore.artifacts.stage import Run
from llmcore.errors import LeaseLostError
from llmcore.training.marker import FOLDER, markers

KEEP_SECONDS = 60.0  # between two copies
FIRST_RETRY_SECONDS = 5.0  # after a copy that failed; then twice that, and so on
LAST_RETRY_SECONDS = 120.0
LONG_SECONDS = 60.0  # that a copy takes: worth a word, for the store itself waits outages out

log = logging.getLogger(__name__)


class Keeper:
    """Copies scratch to the store whenever it holds a newer checkpoint, from a thread of its own.

    A copy that fails, for whatever reason, is a warning and is tried again: the training goes on meanwhile.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.kept = ""  # the newest checkpoint that a copy has taken
        self.error: BaseException | None = None  # of the last copy; None if it went well
        self._since = time.monotonic()  # of the last copy that went well
        self._began: float | None = None  # of the copy under way
        self._failures = 0
        self._ended = threading.Event()
        self._hurry = threading.Event()
        self._deadline = 0.0
        self._thread = threading.Thread(target=self._keep, daemon=True, name="checkpoint-keeper")
        self._thread.start()

    @property
    def trouble(self) -> str:
        """For how long no copy succeeded, and why; "" while all is well."""
        error, began, now = self.error, self._began, time.monotonic()
        if error is not None:
            return f"no checkpoint copied for {now - self._since:.0f} s: {error}"
        if began is not None and now - began > LONG_SECONDS:
            return f"copying a checkpoint for {now - began:.0f} s"
        return ""

    def finish(self, seconds: float, newest: bool, tell: Callable[[], None] = lambda: None) -> None:
        """End the copying, waiting for at most so many seconds; `trouble` says what was left undone.

        tell: called every second of it.
        newest: copy what was not copied yet. Without it only a copy under way is waited for, or, where the last one
        failed, until the store takes one: what follows needs it too.
        """
        self._deadline = time.monotonic() + seconds
        if newest:
            self._hurry.set()
        self._ended.set()
        while self._thread.is_alive() and time.monotonic() < self._deadline:
            self._thread.join(min(1.0, seconds))
            tell()
        if self._thread.is_alive():
            self.error = self.error or TimeoutError(f"the copy took more than {seconds:.0f} s")

    def _keep(self) -> None:
        while not self._ended.wait(self._pause()):
            if self._copy():
                continue
            if isinstance(self.error, LeaseLostError):  # whoever took over copies; the watch will notice
                return
        while self._failures or self._hurry.is_set():
            if self._copy() or isinstance(self.error, LeaseLostError):
                return
            rest = self._deadline - time.monotonic()
            if rest <= 0:
                return
            time.sleep(min(self._pause(), rest))

    def _pause(self) -> float:
        if not self._failures:
            return KEEP_SECONDS
        return min(FIRST_RETRY_SECONDS * 2.0 ** min(self._failures - 1, 30), LAST_RETRY_SECONDS)

    def _copy(self) -> bool:
        found = markers(self.run.scratch / FOLDER)
        newest = found[0].name if found else ""
        if newest == self.kept and not self._failures:
            return True
        self._began = time.monotonic()
        try:
            self.run.keep_scratch()
        except Exception as error:
            self.error = error
            self._failures += 1
            log.warning("%s; trying again", self.trouble)
            return False
        finally:
            self._began = None
        if self._failures:
            log.warning("checkpoints are copied again, after %.0f s", time.monotonic() - self._since)
        self.kept, self.error, self._failures, self._since = newest, None, 0, time.monotonic()
        return True
