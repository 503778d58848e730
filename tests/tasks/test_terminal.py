"""What a run writes on a terminal, and what where there is none."""

from __future__ import annotations

import io
import logging
import os
import pty
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import pytest
from prefect import flow_engine
from prefect.logging import disable_run_logger

from tasks import progress
from tasks.progress import ProgressBar, bar, duration
from tasks.terminal import ERASE, on_terminal, terminal


@contextmanager
def screen() -> Iterator[tuple[int, TextIO]]:
    """A real terminal: where to read what was written on it, and a stream to write to."""
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream:
        yield master, stream
    os.close(master)


def shown(master: int) -> str:
    return os.read(master, 65536).decode().replace("\r\n", "\n")


def test_a_bar_tells_amount_and_time_left_and_lines_go_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(progress, "DRAW_EVERY_SECONDS", 0.0)
    with screen() as (master, stream), monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        with on_terminal(), ProgressBar("train", "model", in_ui=False) as shows:
            shows.report(20, 80, "loss 5.100")
            assert shown(master) == f"{ERASE}train  {bar(25)}  20 of 80 steps, loss 5.100"
            shows.report(40, 80, "loss 4.900")
            line = f"train  {bar(50)}  40 of 80 steps, 0 s left, loss 4.900"
            assert shown(master) == f"{ERASE}{line}"
            logging.getLogger("llmcore.training").warning("no step for %d s", 9)
            assert shown(master) == f"{ERASE}warning: no step for 9 s\n{line}"
        assert shown(master) == ERASE, "nothing of it stays"
    assert terminal() is None


def test_a_line_is_not_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    with screen() as (master, stream), monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        with on_terminal() as shows:
            shows.bar("x" * 200)
            assert shown(master) == f"{ERASE}{'x' * 39}"


def test_without_a_terminal_there_are_lines_and_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    log = logging.getLogger("told")
    monkeypatch.setattr(log, "level", logging.INFO)
    monkeypatch.setattr(progress, "get_run_logger", lambda: log)
    with on_terminal(), ProgressBar("crawl manual", in_ui=False) as shows:
        shows.report(1, 8, "pages")
        assert stream.getvalue() == "", "occasional lines, not one at once"
        monkeypatch.setattr(progress, "LINE_EVERY_SECONDS", 0.0)
        shows.report(2, 8, "pages")
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("crawl manual: 25 %, 2 of 8, ") and line.endswith(" left, pages")


def test_of_prefect_itself_only_warnings_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with on_terminal():
        for name, level, text in (
            ("prefect.client", logging.INFO, "hello"),
            ("prefect.client", logging.WARNING, "the server is slow"),
            ("prefect.flow_runs", logging.ERROR, "Finished in state Failed"),
        ):
            logging.getLogger().handle(_record(str(flow_engine.__file__), name, level, text))
        logging.getLogger().handle(_record(__file__, "prefect.flow_runs", logging.ERROR, "said by a flow"))
    assert stream.getvalue() == "warning: the server is slow\nerror: said by a flow\n"


def _record(path: str, name: str, level: int, text: str) -> logging.LogRecord:
    return logging.LogRecord(name, level, path, 1, text, (), None)


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.4, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (3600, "1 h 0 min"), (90_000, "25 h 0 min")]
)
def test_durations(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_a_report_that_cannot_be_shown_stops_nothing() -> None:
    with disable_run_logger(), on_terminal(), ProgressBar("train", in_ui=False) as shows:
        shows.report(0, 0)
