"""The text of one HTML page, and a process that gives it for page after page: `python -m llmcore.text.page_text`.

Extractors run native code that can hang or crash on odd pages; in a process of their own both cost one page.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import IO, Self, cast

LENGTH = struct.Struct("<q")  # before each message: its bytes; -1 = the parser refuses the page


def main_text(html: str, main_content: bool = True, skip_elements: Sequence[str] = ()) -> str:
    """The page's text, paragraphs, headings and list items on lines of their own; "" if it has none."""
    from resiliparse.extract.html2text import extract_plain_text

    return extract_plain_text(
        html,
        main_content=main_content,
        alt_texts=False,
        skip_elements=list(skip_elements) or None,
    ).strip()


class PageTexts:
    """`main_text` in a worker process, which is killed and replaced when it takes over `timeout` seconds or crashes."""

    def __init__(self, timeout: float, main_content: bool, skip_elements: Sequence[str]) -> None:
        self.timeout = timeout
        options = {"main_content": main_content, "skip_elements": list(skip_elements), "timeout": 2 * timeout + 5}
        self.options = json.dumps(options)
        self.worker: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def text(self, html: str) -> str:
        """The page's text. Raises TimeoutError if it takes too long, ValueError if it cannot be parsed."""
        worker = self._started()
        page = html.encode()
        try:
            stdin = cast(IO[bytes], worker.stdin)
            stdin.write(LENGTH.pack(len(page)))
            stdin.write(page)
            stdin.flush()
            deadline = time.monotonic() + self.timeout
            (length,) = LENGTH.unpack(self._read(LENGTH.size, deadline))
            if length < 0:
                raise ValueError("the parser refuses the page")
            return self._read(length, deadline).decode()
        except TimeoutError:
            self._stop()
            raise
        except (OSError, EOFError) as error:
            self._stop()
            raise ValueError("the parser crashed") from error

    def _started(self) -> subprocess.Popen[bytes]:
        if self.worker is None:
            command = [sys.executable, "-m", "llmcore.text.page_text", self.options]
            self.worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._read(1, time.monotonic() + 60)  # it is ready: its start does not count as the first page's time
        return self.worker

    def _read(self, size: int, deadline: float) -> bytes:
        stdout = cast(IO[bytes], cast("subprocess.Popen[bytes]", self.worker).stdout).fileno()
        parts = bytearray()
        while len(parts) < size:
            ready, _, _ = select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            part = os.read(stdout, size - len(parts))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)

    def _stop(self) -> None:
        if self.worker is not None:
            self.worker.kill()
            for pipe in (self.worker.stdin, self.worker.stdout):
                with contextlib.suppress(OSError):  # what was still to be written to a dead worker
                    cast(IO[bytes], pipe).close()
            self.worker.wait()
            self.worker = None


def work(options: dict[str, object]) -> None:
    """Answer pages from standard input on standard output until the input ends."""
    pages, texts, seconds = sys.stdin.buffer, sys.stdout.buffer, cast(float, options.pop("timeout"))
    main_text("<p>ready</p>")
    texts.write(b"\1")
    texts.flush()
    while header := pages.read(LENGTH.size):
        (length,) = LENGTH.unpack(header)
        html = pages.read(length).decode()
        signal.setitimer(signal.ITIMER_REAL, seconds)  # ends even a hanging parser whose parent is gone
        try:
            text = main_text(html, **options).encode()  # type: ignore[arg-type]
            texts.write(LENGTH.pack(len(text)))
            texts.write(text)
        except Exception:
            texts.write(LENGTH.pack(-1))
        signal.setitimer(signal.ITIMER_REAL, 0)
        texts.flush()


if __name__ == "__main__":
    work(json.loads(sys.argv[1]))
