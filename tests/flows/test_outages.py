"""What the network broke is tried again with growing pauses; everything else passes at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from prefect.logging import disable_run_logger

from flows.outages import outlast
from llmcore.errors import LlmcoreError, OutageError, UnreachableError, UsageError
from llmcore.planning.config import Execution
from tests.small import TINY_TRAINING, small_config

HASTY = Execution(retries=3, retry_seconds=0.001)


def failing(*errors: Exception) -> list[Exception]:
    return list(errors)


def work(errors: list[Exception]) -> str:
    if errors:
        raise errors.pop(0)
    return "done"


def test_a_step_outlasts_outages() -> None:
    errors = failing(OutageError("s3 is away"), UnreachableError("no answer"), OutageError("s3 is busy"))
    with disable_run_logger():
        assert outlast(HASTY, "train", lambda: work(errors)) == "done"


def test_it_gives_up_after_its_retries_with_the_last_error() -> None:
    errors = failing(*(OutageError(f"away {n}") for n in range(9)))
    with disable_run_logger(), pytest.raises(OutageError, match="away 3"):
        outlast(HASTY, "train", lambda: work(errors))


@pytest.mark.parametrize("error", [LlmcoreError("damaged"), UsageError("no such key"), ValueError("a defect")])
def test_what_is_wrong_is_not_tried_again(error: Exception) -> None:
    errors = failing(error, OutageError("never reached"))
    with disable_run_logger(), pytest.raises(type(error)):
        outlast(HASTY, "train", lambda: work(errors))
    assert len(errors) == 1


def test_an_address_that_may_be_wrong_is_a_wrong_call() -> None:
    assert UnreachableError("x").exit_code == UsageError.exit_code
    assert OutageError("x").exit_code == LlmcoreError.exit_code


@pytest.mark.slow
def test_a_step_that_takes_too_long_ends_in_one_line(tmp_path: Path, prefect_server: dict[str, str]) -> None:
    config = small_config(tmp_path, train=TINY_TRAINING | {"steps": 100_000}, execution={"timeout_seconds": 8})
    command = [sys.executable, "-m", "llmcore.cli", "run", str(config)]
    done = subprocess.run(command, env=prefect_server, capture_output=True, text=True)
    assert done.returncode == 1
    assert "llmcore: train: not done within execution.timeout_seconds (8)" in done.stderr
    heartbeats = list(tmp_path.glob("store/runs/*/scratch/**/heartbeat.json"))
    assert heartbeats and not [child for child in psutil.process_iter() if str(tmp_path) in " ".join(command_of(child))]


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
