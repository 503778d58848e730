"""A run ends in what it has to say, not in a traceback."""

from __future__ import annotations

import logging
import queue
from contextlib import suppress
from typing import Any

import httpx
from prefect.events.worker import EventsWorker

from llmcore.errors import LlmcoreError

SEND_SECONDS = 15.0


class OneLine(logging.Filter):
    """Takes the traceback off what says all in its message: a LlmcoreError, a Prefect server that does not answer."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], (LlmcoreError, httpx.HTTPError)):
            record.msg, record.args = f"{record.exc_info[1]}", ()
            record.exc_info = record.exc_text = None
        return True


def without_tracebacks() -> None:
    """For the loggers with which Prefect reports failed flow and task runs, and task states it could not send."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(OneLine())
    logging.getLogger("prefect._internal.concurrency").addFilter(_no_whole_event)


def _no_whole_event(record: logging.LogRecord) -> bool:
    """Not the two thousand characters of an event that was not sent, behind the line that says that none can be."""
    return not str(record.msg).endswith("failed to process item %r")


def forget_unsent_events() -> None:
    """Let the states of tasks reach the server; where they do not, forget them, or the process could not end.

    Prefect sends them from a queue, and asks a server that has gone for seven seconds for each of them.
    """
    workers: list[Any] = list(EventsWorker._instances.values())  # type: ignore[misc]
    EventsWorker.drain_all(timeout=SEND_SECONDS)
    for worker in workers:
        with suppress(queue.Empty):
            while True:
                worker._queue.get_nowait()
        worker._queue.put_nowait(None)  # the end, which was behind them
