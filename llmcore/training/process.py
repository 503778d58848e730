"""The trainer as a process: started, found at work, watched, asked to stop, ended.

It runs in its own session, so that a signal to whoever started the pipeline reaches it only through here. It holds a
lock on the scratch folder as long as it lives (inherited, so there is no gap while it starts): a parent that comes back
after a crash finds the lock taken and goes on watching that trainer, and two can never write one scratch.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmcore.training.faults import LOG, forget_faults
from llmcore.training.heartbeat import HEARTBEAT
from llmcore.training.params import TrainParams
from llmcore.training.spec import STOPPED

POLL_SECONDS = 0.1
WATCH_SECONDS = 5.0
GRACE_SECONDS = 25.0  # for the checkpoint of a trainer told to stop; Prefect kills what takes longer than 30
# glibc gives large blocks back to the system after each use, and every step pays for fresh pages (measured: 5,170
# tokens/s against 6,080 on 2 threads; huge pages gain nothing beyond that)
KEEP_MEMORY = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776"


class Trainer:
    """The one trainer of a scratch folder: started here, or found at work. Leaving with an error stops it."""

    def __init__(self, scratch: Path, spec: Path, params: TrainParams, module: str) -> None:
        """module: what is run, with the spec as its argument."""
        self.scratch = scratch
        self.process: subprocess.Popen[bytes] | None = None
        self.lock: int | None = _try_lock(scratch)
        self._left = threading.Event()
        if self.lock is not None:
            for stale in ("trainer.pid", HEARTBEAT):
                (scratch / stale).unlink(missing_ok=True)
            forget_faults(scratch)
            self.process = self._start(spec, params, module)

    def _start(self, spec: Path, params: TrainParams, module: str) -> subprocess.Popen[bytes]:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={params.processes}"]
        command = [sys.executable, *(torchrun if params.processes > 1 else ()), "-m", module, str(spec)]
        # threads before torch is loaded: a pool sized otherwise gives sums in another order. Spin briefly: threads that
        # never do lose a third on an idle machine, those that spin for long stand still on a busy one (docs/log.md)
        fixed = {
            "OMP_NUM_THREADS": str(params.threads),
            "MKL_NUM_THREADS": str(params.threads),
            "OMP_DYNAMIC": "FALSE",
            "MKL_DYNAMIC": "FALSE",
            "GOMP_SPINCOUNT": "100000",
            "PYTHONHASHSEED": "0",
        }
        given = {"GLIBC_TUNABLES": KEEP_MEMORY} | os.environ
        with (self.scratch / LOG).open("wb") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**given, **fixed},
                pass_fds=(self.lock,) if self.lock is not None else (),
            )

    def _watch(self) -> None:
        """Show the trainer that somebody is there, also while a slow store takes a checkpoint."""
        while True:
            with suppress(OSError):
                (self.scratch / "watched").touch()
            if self._left.wait(WATCH_SECONDS):
                return

    def __enter__(self) -> Trainer:
        threading.Thread(target=self._watch, daemon=True, name="trainer-watch").start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._left.set()
        if kind is not None and self.alive():
            self.stop()
        if self.lock is not None:
            os.close(self.lock)

    @property
    def exit_code(self) -> int:
        """Of one that ended; a trainer that was found at work, and not started here, counts as stopped."""
        return self.process.returncode if self.process is not None else STOPPED

    def alive(self) -> bool:
        if self.process is not None:
            return self.process.poll() is None
        found = _try_lock(self.scratch)
        if found is None:
            return True
        os.close(found)
        return False

    def stop(self) -> None:
        """Ask for a checkpoint, wait for it, and end what is still there after GRACE_SECONDS."""
        deadline = time.monotonic() + GRACE_SECONDS
        asked = False
        while self.alive():
            asked = asked or self._signal(signal.SIGTERM)
            if time.monotonic() > deadline:
                self.kill()
                return
            time.sleep(POLL_SECONDS)

    def kill(self) -> None:
        """End it and what it started, at once; returns when they are gone."""
        while self.alive():
            self._signal(signal.SIGKILL)
            time.sleep(POLL_SECONDS)

    def _signal(self, number: int) -> bool:
        pid = self.process.pid if self.process is not None else _read_pid(self.scratch)
        if pid is None:  # found at work, and still starting
            return False
        # the group holds nothing but the trainer, or torchrun, which passes SIGTERM on by itself, and with which the
        # processes that it started die (trainer.py)
        with suppress(ProcessLookupError):
            (os.killpg if number == signal.SIGKILL else os.kill)(pid, number)
        return True


def _try_lock(scratch: Path) -> int | None:
    """The lock's descriptor, or None while a trainer holds it."""
    descriptor = os.open(scratch / "trainer.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _read_pid(scratch: Path) -> int | None:
    try:
        return int(json.loads((scratch / "trainer.pid").read_text())["pid"])
    except (OSError, ValueError, KeyError):
        return None
