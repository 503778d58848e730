"""Who a process is, beyond its number, and how one ends with its parent."""

from __future__ import annotations

import os
import socket
import threading
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

PARENT_POLL_SECONDS = 2.0


@lru_cache(maxsize=1)
def machine() -> str:
    """This boot of this machine, and the process namespace: where a process number means anything."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    try:
        return f"{boot.read_text().strip()}:{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # no Linux
        return f"{psutil.boot_time():.0f}:{os.uname().nodename}"


def identity() -> dict[str, Any]:
    """What to write down so that others can ask `is_dead` later."""
    own = os.getpid()
    return {"machine": machine(), "host": socket.gethostname(), "pid": own, "process_started": _started(own)}


def is_dead(identity: dict[str, Any]) -> bool:
    """Whether that process has surely ended: it was on this very machine, and is no more. False if nobody can tell."""
    if identity.get("machine") != machine():
        return False
    try:
        return _started(identity["pid"]) != identity["process_started"]
    except psutil.Error:
        return False


def _started(pid: int) -> float | None:
    """When a process began, by a clock that nobody sets: ticks since boot. None if it is gone, or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        state, *rest = stat.rsplit(")", 1)[1].split()  # the name, in brackets, may hold anything
        return None if state in "ZX" else float(rest[18])
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    try:  # no Linux
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


def end_with_parent() -> None:
    """End this process when the one that started it is gone, however that died."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()
