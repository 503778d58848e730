"""Suspend in Prefect's UI is handled as Cancel is: at once, wherever the work stands, and nothing of it is lost.

Prefect itself notices a suspension only between two tasks. Here the main thread is woken by a signal, as it is when a
run is cancelled: a trainer writes its checkpoint and leaves, worker processes end. The run stays `Suspended`; resumed,
it begins anew, finds what was made, and training goes on from its checkpoint.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from prefect.context import FlowRunContext
from prefect.exceptions import Pause, TerminationSignal

SIGNAL = signal.SIGUSR1
LOOK_SECONDS = 0.5


class Suspended(TerminationSignal):
    """Raised in the main thread; tasks end as they do when a run is cancelled."""

    def __init__(self) -> None:
        super().__init__(SIGNAL)


@contextmanager
def heeding_suspension() -> Iterator[None]:
    """Inside it a suspension of this flow run ends the work, in Prefect's own `Pause`."""
    context = FlowRunContext.get()
    if context is None or threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread alone; here Prefect's own look between two tasks has to do
        return
    request, left = context.flow_run_suspension_request, threading.Event()
    main = threading.get_ident()

    def watch() -> None:
        while not left.wait(LOOK_SECONDS):
            if request.is_requested():
                signal.pthread_kill(main, SIGNAL)
                return

    before = signal.signal(SIGNAL, _raise)
    watcher = threading.Thread(target=watch, daemon=True, name="suspension-watch")
    watcher.start()
    try:
        try:
            yield
        finally:
            signal.signal(SIGNAL, signal.SIG_IGN)
            left.set()
            watcher.join()
            signal.signal(SIGNAL, before)
    except Suspended as error:
        raise Pause(state=request.get_state()) from error


def _raise(number: int, frame: FrameType | None) -> None:
    raise Suspended
