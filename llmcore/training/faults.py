"""What ended a trainer, in one line with the mend: written by the trainer's processes, read by who started them.

Each process that fails writes `fault-RANK.json`. One that is killed writes nothing, and under torchrun the others then
fail for want of it: so torchrun's own account of exit codes, in the log, is asked first.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmcore.errors import LlmcoreError, NoSpaceError, UsageError
from llmcore.training.marker import FOLDER, markers
from llmcore.training.params import TrainParams
from llmcore.training.spec import STOPPED

LOG = "trainer.log"
TORCHRUNS_CODES = re.compile(r"^\s*exitcode\s*: (-?\d+)", re.MULTILINE)
TORCHRUNS_OWN = re.compile(r"^(?:\[rank\d+\]:)?[EWI]\d{4} [^\n]*\btorch/distributed/")  # a line of torchrun's own log
RANK = re.compile(r"^\[rank\d+\]: ?")  # that torch puts before a process's traceback
ERROR = re.compile(r"^(?:[\w.]+\.)?\w*(?:Error|Exception|Interrupt)\b")
TORCHRUN_STOPPED = re.compile(r"SignalException: Process \d+ got signal: 15")
FULL_BYTES = 1 << 20
STOPS = {0, STOPPED, -signal.SIGTERM}


class OutOfMemoryError(LlmcoreError):
    """A trainer's process found no memory."""


def forget_faults(scratch: Path) -> None:
    for path in scratch.glob("fault-*.json"):
        path.unlink(missing_ok=True)


def write_fault(scratch: Path, error: Exception) -> None:
    """Leave one line for who reads `fault_of`; nothing that goes wrong here hides the error."""
    words = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = words[0] if words else ""
    known = isinstance(error, LlmcoreError)
    content = {
        "time": time.time(),
        "known": known,
        "memory": isinstance(error, OutOfMemoryError),
        "code": error.exit_code if isinstance(error, LlmcoreError) else LlmcoreError.exit_code,
        "line": first if known else f"{type(error).__name__}: {first}",
    }
    path = scratch / f"fault-{os.environ.get('RANK', '0')}.json"
    with suppress(OSError):
        path.write_text(json.dumps(content), encoding="utf-8")


def fault_of(scratch: Path, code: int, params: TrainParams, key: str) -> LlmcoreError | None:
    """What a trainer that ended with this exit code died of; None for one that is done or was stopped from outside."""
    log = _log(scratch)
    codes = {code}
    if params.processes > 1 and code not in STOPS:
        codes = {int(found) for found in TORCHRUNS_CODES.findall(log)} or {code}
        if TORCHRUN_STOPPED.search(log):
            codes = {STOPPED}
    if codes <= STOPS:
        return None
    if -signal.SIGKILL in codes:
        return LlmcoreError(f"train: the trainer was killed (out of memory?); {_mend(scratch, params, key)}")
    crash = min(codes - STOPS)
    read = filter(None, (_read(path) for path in scratch.glob("fault-*.json")))
    faults = sorted(read, key=lambda fault: (not fault["known"], fault["time"]))
    # of a process that crashed the others say only that they lost it; one that aborts may be such a one itself
    if faults and (faults[0]["known"] or crash >= 0 or crash == -signal.SIGABRT):
        fault = faults[0]
        if fault["memory"]:
            return LlmcoreError(f"train: out of memory ({fault['line']}); {_mend(scratch, params, key)}")
        kind = UsageError if fault["code"] == UsageError.exit_code else LlmcoreError
        return kind(fault["line"] if fault["line"].startswith("train") else f"train: {fault['line']}")
    if shutil.disk_usage(scratch).free < FULL_BYTES:  # no room for a fault's line either
        return NoSpaceError(f"train: no space left in {scratch}; free some and run again")
    last = _last_words(log, params.processes > 1, crash < 0)
    if crash < 0:
        name = signal.Signals(-crash).name
        return LlmcoreError(
            f"train: the trainer crashed ({name}; its last line: {last}); {_mend(scratch, params, key)}"
        )
    return LlmcoreError(f"train: exit code {crash}: {last}")


def _last_words(log: str, torchrun: bool, crashed: bool) -> str:
    """The line that says best what happened: of several processes the first error of one, before torchrun's account; of
    one that crashed, what was said before the others lost it."""
    lines = log.splitlines()
    if torchrun and crashed:
        lines = log.partition("Traceback (most recent call last)")[0].rpartition("\n")[0].splitlines()
    if torchrun:
        lines = lines[: next((number for number, line in enumerate(lines) if TORCHRUNS_OWN.match(line)), len(lines))]
    said = [RANK.sub("", line).strip() for line in lines]
    errors = [line for line in said if ERROR.match(line)] if torchrun else []
    return next(iter(errors), next((line for line in reversed(said) if line), "it said nothing"))


def _mend(scratch: Path, params: TrainParams, key: str) -> str:
    lower = "train.micro_batch" if params.micro_batch > 1 else "train.width, train.layers or pack.window"
    # another micro-batch is another recipe; only the same shape can take the checkpoint over
    saved = bool(markers(scratch / FOLDER))
    if params.micro_batch > 1:
        return f"lower {lower} and run again" + (f" with --resume {key[:12]}" if saved else "")
    return f"lower {lower} and run again" + (", which begins anew" if saved else "")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _log(scratch: Path) -> str:
    try:
        return (scratch / LOG).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
