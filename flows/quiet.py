"""A run ends in what it has to say, not in a traceback."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas import filters
from prefect.client.schemas.objects import TERMINAL_STATES
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL

from llmcore.errors import LlmcoreError

RECORD_SECONDS = 20.0


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


def until_recorded(task: str) -> None:
    """Inside a flow: wait until the temporary server has written down that a task named like `task` ended.

    It writes task states once a second and in order; stopped before that, it loses them with a long traceback.
    """
    if PREFECT_API_URL.value():
        return  # that server outlives the run
    ended = filters.TaskRunFilter(
        name=filters.TaskRunFilterName(like_=task),
        state=filters.TaskRunFilterState(type=filters.TaskRunFilterStateType(any_=list(TERMINAL_STATES))),
    )
    this = filters.FlowRunFilter(id=filters.FlowRunFilterId(any_=[UUID(flow_run.id)]))
    until = time.monotonic() + RECORD_SECONDS
    with suppress(httpx.HTTPError), get_client(sync_client=True) as client:
        while not client.read_task_runs(flow_run_filter=this, task_run_filter=ended, limit=1):
            if time.monotonic() > until:
                return
            time.sleep(0.2)
