"""Temporary folders of work under way, which say whose they are, so that those of killed processes can be found."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llmcore.artifacts import processes
from llmcore.artifacts.disk import is_full
from llmcore.errors import NoSpaceError

PREFIX = "llmcore-"
OWNER = "owner.json"
WORK = "work"
INSIDE = {OWNER, WORK}
ABANDONED_SECONDS = 24 * 3600.0


@contextmanager
def working_folder() -> Iterator[Path]:
    """A temporary folder that goes with its context. A full disk below it is one clear line."""
    home = Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        sign(home)
        inside = home / WORK
        inside.mkdir()
        yield inside
    except OSError as error:
        if is_full(error):
            raise NoSpaceError(f"no space left in {home.parent}: free some or set TMPDIR, then run again") from error
        raise
    finally:
        shutil.rmtree(home, ignore_errors=True)


def sign(folder: Path) -> None:
    """Say that a temporary folder, whose name begins with PREFIX, is this process's."""
    (folder / OWNER).write_text(json.dumps(processes.identity()))


def remove_abandoned() -> None:
    """Remove the temporary folders on this machine whose process is gone.

    One that does not say whose it is, because the process died as it began or as it cleaned up, goes after a day.
    """
    for home in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            if _is_abandoned(home):
                shutil.rmtree(home, ignore_errors=True)


def _is_abandoned(home: Path) -> bool:
    try:
        return processes.is_dead(json.loads((home / OWNER).read_text()))
    except (FileNotFoundError, ValueError):
        ours = re.fullmatch(PREFIX + r"[a-z0-9_]{8}", home.name) and {path.name for path in home.iterdir()} <= INSIDE
        return bool(ours) and time.time() - home.stat().st_mtime > ABANDONED_SECONDS
