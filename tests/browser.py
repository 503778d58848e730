"""A real browser: Debian's Chromium, headless, spoken to over its DevTools protocol.

Tests that look at a page with it install it themselves where they may, and skip, saying why, where it cannot be had.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from tests.prefect_server import running, wait_for

PROGRAM = "chromium"
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
    "--window-size=1400,1000",
)
WAIT_SECONDS = 60.0


class Page:
    """One tab. Errors of its scripts are errors here."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._number = 0
        for domain in ("Page", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv(timeout=WAIT_SECONDS))
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer}"
                result: dict[str, Any] = answer["result"]
                return result

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def ask(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str, what: str) -> None:
        """Until a JavaScript expression is true."""
        try:
            wait_for(lambda: self.ask(condition), what, WAIT_SECONDS)
        except TimeoutError as error:
            raise AssertionError(f"{error}; the page says:\n{self.text()}") from error

    def text(self) -> str:
        """What a reader sees as text."""
        return str(self.ask("document.body ? document.body.innerText : ''"))

    def wait_text(self, words: str) -> None:
        self.wait(f"document.body && document.body.innerText.includes({json.dumps(words)})", repr(words))

    def fill(self, label: str, words: str) -> None:
        """Put words into the field whose label begins with this word, in place of what it holds, as keys would."""
        found = f"[...document.querySelectorAll('label')].find(e => e.innerText.split(' ')[0] === {json.dumps(label)})"
        self.ask(f"(e => {{ e.focus(); e.select(); }})(document.getElementById({found}.htmlFor))")
        self.call("Input.insertText", text=words)

    def click(self, script: str) -> None:
        """On the middle of the element that an expression names."""
        place = self.ask(
            f"(e => {{ e.scrollIntoView({{block: 'center'}}); const r = e.getBoundingClientRect();"
            f" return [r.x + r.width / 2, r.y + r.height / 2]; }})({script})"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def screenshot(self, path: Path, width: int = 1400, height: int = 1000) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def page() -> Iterator[Page]:
    """A tab of a browser of its own."""
    _install()
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as folder:
        profile = Path(folder) / "profile"
        command = [PROGRAM, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        with running(command, Path(folder) / "browser.log", {**os.environ, "HOME": folder}):
            port = profile / "DevToolsActivePort"
            wait_for(lambda: port.is_file() and port.read_text().count("\n") == 1, "start of the browser")
            number = port.read_text().splitlines()[0]
            ask = urllib.request.Request(f"http://127.0.0.1:{number}/json/new?about:blank", method="PUT")
            with urllib.request.urlopen(ask, timeout=30) as answer:
                address = json.load(answer)["webSocketDebuggerUrl"]
            with connect(address, max_size=None) as socket:
                yield Page(socket)


def _install() -> None:
    if shutil.which(PROGRAM):
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        pytest.skip(f"no browser: {PROGRAM} is not installed, and only root can install Debian's package")
    with (Path(tempfile.gettempdir()) / "llmcore-test-apt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test process may be at it
        for words in (["update"], ["install", "-y", "--no-install-recommends", PROGRAM]):
            done = subprocess.run(["apt-get", *words], capture_output=True, text=True, timeout=500)
            if done.returncode:
                pytest.skip(f"no browser: apt-get {words[0]} failed: {done.stderr.strip().splitlines()[-1:]}")
