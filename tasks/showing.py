"""What the Prefect UI shows is worth no run: where it cannot be shown, a warning says so, and the work goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from prefect.logging import get_run_logger
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

T = TypeVar("T")
RETRIES = 2  # seconds, for a server that is busy; Prefect's five would hold the work up for a minute each time


def show(what: str, artifact: Callable[[], T]) -> T | None:
    """Make or change an artifact of the UI; None if that failed."""
    try:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: RETRIES}):
            return artifact()
    except Exception as error:  # days of training must not end because the server is away
        get_run_logger().warning("%s: cannot be shown: %s", what, error)
        return None
