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
from tests import s3_server
from tests.delaying_proxy import proxy
from tests.prefect_server import running, wait_for
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
    long = TINY_TRAINING | {"steps": 100_000}

    def run(execution: dict[str, float], *words: str) -> subprocess.CompletedProcess[str]:
        config = small_config(tmp_path, train=long, execution=execution)
        command = [sys.executable, "-m", "llmcore.cli", "run", str(config), *words]
        return subprocess.run(command, env=prefect_server, capture_output=True, text=True)

    assert run({}, "--until", "pack").returncode == 0
    done = run({"timeout_seconds": 8})
    assert done.returncode == 1
    assert "llmcore: train: not done within execution.timeout_seconds (8)" in done.stderr
    heartbeats = list(tmp_path.glob("store/runs/*/scratch/**/heartbeat.json"))
    assert heartbeats and not [child for child in psutil.process_iter() if str(tmp_path) in " ".join(command_of(child))]


@pytest.mark.slow
def test_a_run_outlasts_a_store_that_is_away(
    tmp_path: Path, moto_server: dict[str, str], prefect_server: dict[str, str]
) -> None:
    with s3_server.in_environment(moto_server):
        store = s3_server.make_bucket("outlasted")
    hasty = {"retries": 100, "retry_seconds": 0.1}
    config = small_config(tmp_path, store=f"{store}/x", execution=hasty)
    port = int(moto_server["AWS_ENDPOINT_URL"].rsplit(":", 1)[1])
    log = tmp_path / "run.log"
    with proxy(port) as between:
        env = prefect_server | moto_server | {"LLMCORE_CACHE": str(tmp_path / "cache"), "LLMCORE_OUTAGE_SECONDS": "1"}
        env |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{between.port}"}
        command = [sys.executable, "-m", "llmcore.cli", "run", str(config), "--until", "split"]
        with running(command, log, env) as run:
            wait_for(lambda: "\nextract " in log.read_text(), "the moment to cut")
            between.away = True
            wait_for(lambda: "trying again in " in log.read_text(), "the step that is tried again")
            between.away = False
            run.wait()
    assert run.returncode == 0, log.read_text()
    assert "stopped after split" in log.read_text()


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
