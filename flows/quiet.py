"""A run ends in what it has to say, not in a traceback."""

from __future__ import annotations

import logging

from llmcore.errors import LlmcoreError


class OneLine(logging.Filter):
    """Takes the traceback off records of a LlmcoreError: its message says all that is to be said."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], LlmcoreError):
            record.msg, record.args = f"{record.exc_info[1]}", ()
            record.exc_info = record.exc_text = None
        return True


def without_tracebacks() -> None:
    """For the loggers with which Prefect reports failed flow and task runs."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(OneLine())
