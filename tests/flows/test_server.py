"""The temporary server: there while a run needs it, gone however the run ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from flows.server import Server
from llmcore.artifacts import working
from tests.prefect_server import PREFECT, answers, environment, free_port, running, wait_for
from tests.small import small_config

pytestmark = pytest.mark.slow
LLMCORE = [sys.executable, "-m", "llmcore.cli"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An installation without a server of its own, whose temporary files lie in `tmp_path/tmp`."""
    (tmp_path / "tmp").mkdir()
    return environment(tmp_path) | {"TMPDIR": str(tmp_path / "tmp")}


def servers(run: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return [child for child in psutil.Process(run.pid).children() if "flows.server" in child.cmdline()]
    except psutil.Error:
        return []


def left(home: dict[str, str]) -> list[str]:
    return sorted(path.name for path in Path(home["TMPDIR"]).glob("llmcore-server-*"))


def starting(folder: Path) -> bool:
    return True


def at_work(folder: Path) -> bool:
    return any(folder.glob("store/artifacts/*/*.json"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("moment", [starting, at_work])
def test_it_goes_with_the_run_that_is_killed(
    number: signal.Signals, moment: Callable[[Path], bool], tmp_path: Path, home: dict[str, str]
) -> None:
    config = small_config(tmp_path)
    with running([*LLMCORE, "run", str(config)], tmp_path / "run.log", home) as run:
        wait_for(lambda: servers(run) and moment(tmp_path), "the moment to kill")
        (server,) = servers(run)
        os.kill(run.pid, number)
        wait_for(lambda: not psutil.pid_exists(server.pid), "end of the server")
        wait_for(lambda: left(home) == [], "removal of its folder")


def test_a_run_without_a_server_of_the_users_own_says_nothing_of_one(tmp_path: Path, home: dict[str, str]) -> None:
    command = [*LLMCORE, "run", str(small_config(tmp_path)), "--until", "split"]
    done = subprocess.run(command, env=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("stopped after split")
    for word in ("Traceback", " server", "telemetry", "http://"):
        assert word not in done.stderr + done.stdout
    assert left(home) == []
    assert not (tmp_path / "prefect" / "prefect.db").exists(), "the user's own database is for the user's own server"


def test_a_configuration_that_is_wrong_leaves_no_server(tmp_path: Path, home: dict[str, str]) -> None:
    command = [*LLMCORE, "run", str(small_config(tmp_path)), "--until", "tea"]
    done = subprocess.run(command, env=home, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("llmcore: --until: no stage 'tea'")
    assert left(home) == []


def test_folders_of_the_dead_are_collected_and_those_of_the_living_stay(
    tmp_path: Path, home: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", home["TMPDIR"])
    monkeypatch.setattr("tempfile.tempdir", None)
    living = Server()
    try:
        both = "os.kill(s.pid, 9); os.kill(os.getpid(), 9)"
        kill_both = f"import os; from flows.server import Server; s = Server(); {both}"
        subprocess.run([sys.executable, "-c", kill_both], env=home)
        assert len(left(home)) == 2
        working.remove_abandoned()
        assert left(home) == [living.folder.name]
        living.wait()
    finally:
        living.stop()
    assert left(home) == []


def test_a_server_that_is_configured_is_used(prefect_server: dict[str, str]) -> None:
    ask = "from flows.server import server_for_a_run\nwith server_for_a_run() as server:\n    assert server is None"
    subprocess.run([sys.executable, "-c", ask], env=prefect_server, check=True)


def test_a_server_that_dies_does_not_end_the_run(tmp_path: Path) -> None:
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    (tmp_path / "theirs").mkdir()
    theirs = environment(tmp_path / "theirs")
    command = [*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with running(command, tmp_path / "server.log", theirs) as server:
        wait_for(lambda: answers(f"{api}/health"), "start of the server")
        log = tmp_path / "run.log"
        env = environment(tmp_path, api) | {"PREFECT_CLIENT_MAX_RETRIES": "1"}  # the patience of its last words
        with running([*LLMCORE, "run", str(small_config(tmp_path))], log, env) as run:
            wait_for(lambda: at_work(tmp_path), "the moment to kill")
            os.killpg(server.pid, signal.SIGKILL)
            run.wait()
    said = log.read_text()
    assert run.returncode == 0, said
    assert any(line.startswith("model ") for line in said.splitlines()), said
    assert "cannot be shown" in said
    assert "Traceback" not in said
