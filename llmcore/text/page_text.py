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
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, Self, cast

from llmcore.text import page_shape
from llmcore.text.main_content import characters, linked_characters, named_outside, outside, take_out

HEADER = struct.Struct("<qq?")  # of an answer: bytes of the text (-1: the parser refuses the page), visible, whole
LENGTH = struct.Struct("<q")  # of a question: bytes of the page


@dataclass(frozen=True)
class PageText:
    """What was found on a page.

    text:    paragraphs, headings, list items and rows of tables on lines of their own; "" if there is none.
    visible: characters of all visible text.
    whole:   the main part was too small a share of the text, which is therefore all there but for navigation.
    """

    text: str
    visible: int
    whole: bool = False


def main_text(
    html: str,
    main_content: bool = True,
    skip_elements: Sequence[str] = (),
    keep_elements: Sequence[str] = (),
    min_share: float = 0.0,
) -> PageText:
    """The page's text.

    skip_elements, keep_elements: CSS selectors; what the latter match stays whatever else is left out.
    min_share: least share of the text without navigation, header and footer that the main part must have to count;
               links that are left out with what is named navigation count as part of it.
    """
    from resiliparse.parse.html import HTMLTree

    tree = HTMLTree.parse(page_shape.unmarked(html))
    if tree.body is None:
        return PageText("", 0)
    page_shape.mark(tree)
    visible, keep = _plain(tree), ", ".join(keep_elements)
    for selector in skip_elements:
        take_out(tree.body.query_selector_all(selector)[:], keep)
    if not main_content:
        return PageText(_plain(tree) if skip_elements else visible, len(visible))
    take_out(outside(tree.body), keep)
    without, linked = _plain(tree), linked_characters(tree.body)
    take_out(named_outside(tree.body), keep)
    main = _plain(tree)
    lost = characters(without) - characters(main) - (linked - linked_characters(tree.body))
    whole = lost > (1 - min_share) * characters(without)
    return PageText(without if whole else main, len(visible), whole)


def check_selector(selector: str) -> None:
    """Raises ValueError if it is no CSS selector."""
    from resiliparse.parse.html import HTMLTree
    from resiliparse.parse.html.exception import CSSParserException

    try:
        cast(Any, HTMLTree.parse("<p></p>")).document.query_selector(selector)
    except CSSParserException:
        raise ValueError(f"{selector!r} is not a CSS selector") from None


def _plain(tree: Any) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    return page_shape.shaped(extract_plain_text(tree, alt_texts=False)).strip("\n").rstrip()


class PageTexts:
    """`main_text` in a worker process, which is killed and replaced when it takes over `timeout` seconds or crashes.

    options: of `main_text`.
    """

    def __init__(self, timeout: float, **options: Any) -> None:
        self.timeout = timeout
        self.options = json.dumps({**options, "timeout": 2 * timeout + 5})
        self.worker: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def text(self, html: str) -> PageText:
        """The page's text. Raises TimeoutError if it takes too long, ValueError if it cannot be parsed."""
        worker = self._started()
        page = html.encode()
        try:
            stdin = cast(IO[bytes], worker.stdin)
            stdin.write(LENGTH.pack(len(page)))
            stdin.write(page)
            stdin.flush()
            deadline = time.monotonic() + self.timeout
            length, visible, whole = HEADER.unpack(self._read(HEADER.size, deadline))
            if length < 0:
                raise ValueError("the parser refuses the page")
            return PageText(self._read(length, deadline).decode(), visible, whole)
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
            page = main_text(html, **options)  # type: ignore[arg-type]
            text = page.text.encode()
            texts.write(HEADER.pack(len(text), page.visible, page.whole))
            texts.write(text)
        except Exception:
            texts.write(HEADER.pack(-1, 0, False))
        signal.setitimer(signal.ITIMER_REAL, 0)
        texts.flush()


if __name__ == "__main__":
    work(json.loads(sys.argv[1]))
