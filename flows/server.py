"""The temporary Prefect server of a run for which none is configured: started here, ended here, never left behind.

It is a process of its own on a free port of the loopback interface, with its database in a temporary folder. It ends
when its standard input does, which is when the run ends in whatever way, and takes the folder with it.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from llmcore.artifacts import working
from llmcore.artifacts.memory import cache_folder
from llmcore.errors import LlmcoreError

START_SECONDS = 180.0  # on a busy machine; ten seconds otherwise
STOP_SECONDS = 10.0
PREFIX = f"{working.PREFIX}server-"
PR_SET_PDEATHSIG = 1


@contextmanager
def server_for_a_run() -> Iterator[Server | None]:
    """Inside the context PREFECT_API_URL names a server: the user's own (then this yields None), or a temporary one.

    The temporary one answers only after `Server.wait`, so that other work can be done while it starts.
    """
    from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

    if PREFECT_API_URL.value():
        yield None
        return
    working.remove_abandoned()  # of killed runs, and of servers that were killed together with theirs
    server = Server()
    try:
        # nobody will look at the logs in its database; the variable is for processes that the flow starts
        with (
            temporary_settings({PREFECT_API_URL: server.api, PREFECT_LOGGING_TO_API_ENABLED: False}),
            _environment({"PREFECT_API_URL": server.api, "PREFECT_LOGGING_TO_API_ENABLED": "false"}),
        ):
            log = logging.getLogger("prefect.flow_runs")
            log.addFilter(_links_nowhere)
            try:
                yield server
            finally:
                log.removeFilter(_links_nowhere)
    finally:
        server.stop()


class Server:
    """A Prefect server process; begins to start when made."""

    def __init__(self) -> None:
        import prefect

        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        working.sign(self.folder)
        self._template = _template(prefect.__version__)
        with suppress(OSError):
            shutil.copyfile(self._template, self._database)
        # bound here and handed over: nobody can take the port meanwhile, and early requests wait instead of failing
        with socket.create_server(("127.0.0.1", 0)) as listening, self._log.open("wb") as log:
            self.api = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flows.server", str(self.folder), str(listening.fileno())],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._settings(),
                pass_fds=[listening.fileno()],
                start_new_session=True,  # Ctrl-C is for the flow, which still has to say how it ended
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self) -> None:
        """Until it answers. LlmcoreError if it does not start."""
        try:
            with urllib.request.urlopen(f"{self.api}/health", timeout=START_SECONDS):
                pass
        except OSError as error:
            self._template.unlink(missing_ok=True)  # should it be to blame, the next run makes it anew
            said = self._log.read_text(errors="replace").strip().splitlines()
            raise LlmcoreError(
                f"the temporary Prefect server did not start: {said[-1] if said else error}; "
                "run again, or start one (`prefect server start`) and set PREFECT_API_URL"
            ) from error
        self._keep_template()

    def stop(self) -> None:
        """End the process and remove what it wrote."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _database(self) -> Path:
        return self.folder / "prefect.db"

    @property
    def _log(self) -> Path:
        return self.folder / "server.log"

    def _settings(self) -> dict[str, str]:
        """The environment without the user's own Prefect settings, which are for a server that stays."""
        others = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        return others | {
            "PREFECT_HOME": str(self.folder),
            "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{self._database}",
            "PREFECT_API_DATABASE_MIGRATE_ON_START": str(not self._database.exists()).lower(),
            "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_LOGGING_SERVER_LEVEL": "ERROR",
            "DO_NOT_TRACK": "1",
        }

    def _keep_template(self) -> None:
        """Keep the empty database for the next run, which need not make its tables anew (half of the start)."""
        if self._template.exists():
            return
        part = self._template.with_name(f"{self._template.name}.{os.getpid()}")
        with suppress(OSError, sqlite3.Error):
            part.parent.mkdir(parents=True, exist_ok=True)
            try:
                with closing(sqlite3.connect(self._database)) as made, closing(sqlite3.connect(part)) as kept:
                    made.backup(kept)
                os.replace(part, self._template)
            finally:
                part.unlink(missing_ok=True)


def _template(version: str) -> Path:
    return cache_folder() / "prefect" / f"{version}.db"


def _links_nowhere(record: logging.LogRecord) -> bool:
    """Not the line with a run's address in the UI, which this server does not have."""
    return not record.getMessage().startswith("View at ")


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _serve(folder: Path, listening: int) -> None:
    """What the process does: serve until standard input ends."""
    signal.signal(signal.SIGHUP, lambda *_: _leave(folder))
    if sys.platform == "linux":  # a worker process of the run may hold the other end of our standard input open
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGHUP)
    threading.Thread(target=_leave_at_end_of_input, args=(folder,), daemon=True).start()
    os.chdir(folder)  # settings files of the user's folder are not for this server
    import uvicorn
    from prefect.server.api.server import create_app

    server = uvicorn.Server(uvicorn.Config(create_app(ephemeral=True, final=True), log_level="error", lifespan="on"))
    server.run(sockets=[socket.socket(fileno=listening)])


def _leave_at_end_of_input(folder: Path) -> None:
    sys.stdin.buffer.read()
    _leave(folder)


def _leave(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), int(sys.argv[2]))
