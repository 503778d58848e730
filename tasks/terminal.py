"""What a run started by the `llmcore` command writes on standard error: lines, and on a terminal a bar below them.

A run says what it has to say through Prefect's loggers, so that the UI has it too. Here the same records are shown as a
person at a terminal wants them: what flows, tasks and stages say, without time stamps and run names; of what Prefect
says of itself the warnings alone; and what ends the run once, as the command's last line.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import prefect

PREFECT = str(Path(prefect.__file__).parent)
RUNS = ("prefect.flow_runs", "prefect.task_runs")
ERASE = "\r\x1b[2K"
YELLOW, RED, PLAIN = "\x1b[33m", "\x1b[31m", "\x1b[0m"


class Terminal(logging.Handler):
    """A log handler over a text stream. live: the stream is a terminal, on which a line can be drawn anew."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.live = stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
        self._coloured = self.live and not os.environ.get("NO_COLOR")
        self._stream = stream
        self._bar = ""

    def emit(self, record: logging.LogRecord) -> None:
        if _is_of_prefect_alone(record):
            return
        text = record.getMessage()
        if record.exc_info and record.exc_info[0] is not None:
            text = f"{text}\n{logging.Formatter().formatException(record.exc_info)}"
        if record.levelno >= logging.WARNING:
            word, colour = ("warning", YELLOW) if record.levelno < logging.ERROR else ("error", RED)
            text = f"{word}: {text}"
            text = f"{colour}{text}{PLAIN}" if self._coloured else text
        self._write(f"{ERASE if self._bar else ''}{text}\n{self._bar}")

    def bar(self, text: str) -> None:
        """Draw the last line anew; "" takes it away. Nothing where the stream is no terminal."""
        if self.live:
            self.acquire()  # as `handle` does before it calls `emit`
            try:
                self._bar = text[: shutil.get_terminal_size().columns - 1]
                self._write(f"{ERASE}{self._bar}")
            finally:
                self.release()

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # whoever read it has gone; the work has not
            self._bar = ""


def terminal() -> Terminal | None:
    """The one that shows this process's run; None in a worker's, whose log goes to the server."""
    return _shown[-1] if _shown else None


@contextmanager
def on_terminal() -> Iterator[Terminal]:
    """Show on standard error what is logged, in place of Prefect's own handlers for it."""
    shown = Terminal(sys.stderr)
    loggers = [logging.getLogger(), logging.getLogger("prefect._internal")]
    before = [logger.handlers[:] for logger in loggers]
    for logger in loggers:
        logger.handlers = [shown]
    _shown.append(shown)
    try:
        yield shown
    finally:
        _shown.remove(shown)
        shown.bar("")
        for logger, handlers in zip(loggers, before, strict=True):
            logger.handlers = handlers


_shown: list[Terminal] = []


def _is_of_prefect_alone(record: logging.LogRecord) -> bool:
    """What Prefect says of its own doings: that runs begin and end; and how one failed, which the command says too."""
    if not record.pathname.startswith(PREFECT):
        return False
    return record.levelno < logging.WARNING or record.name in RUNS
