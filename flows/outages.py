"""What the network broke is tried again; what is wrong stays wrong."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from prefect.logging import get_run_logger
from prefect.task_engine import TaskRunTimeoutError

from llmcore.errors import LlmcoreError, OutageError
from llmcore.planning.config import Execution

T = TypeVar("T")
LONGEST_PAUSE_SECONDS = 600.0


def outlast(execution: Execution, what: str, work: Callable[[], T]) -> T:
    """Do the work; after an OutageError wait and do it again, each time after twice the pause. Other errors pass.

    The whole of a step is tried again, not its task alone, because the flow asks the store too. Nothing is done twice:
    what was committed is found, a training goes on from its checkpoint.
    """
    attempt = 0
    while True:
        try:
            return work()
        except OutageError as error:
            if attempt == execution.retries:
                raise
            pause = min(execution.retry_seconds * 2**attempt, LONGEST_PAUSE_SECONDS) * random.uniform(1.0, 1.3)
            attempt += 1
            get_run_logger().warning(
                "%s: %s; trying again in %.0f s (%d of %d)", what, error, pause, attempt, execution.retries
            )
        except TaskRunTimeoutError as error:
            limit = execution.timeout_seconds
            raise LlmcoreError(
                f"{what}: not done within execution.timeout_seconds ({limit:g}); raise it and run again"
            ) from error
        time.sleep(pause)
