"""A small TCP proxy on loopback that makes a server far away, unreachable or broken, for tests and benchmarks.

with delaying_proxy(port, 0.05) as other_port: ...      each request takes 50 ms longer
with proxy(port) as between: between.away = True; ...   connections are refused an answer
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

CHUNK = 1 << 16


class Proxy:
    """Passes bytes on; `port` is its own.

    seconds:   added to each request, that is, whenever a client speaks after the server did.
    away:      while true, whatever is sent or connects is cut off.
    cuts:      so many answers are cut off within their body, which is what follows their first CUT_AT bytes.
    forget:    a request header to take away, e.g. b"If-None-Match".
    requests:  how many there were; most_at_once: how many of them waited for an answer together.
    """

    CUT_AT = 2000

    def __init__(self, target_port: int, seconds: float = 0.0, forget: bytes = b"") -> None:
        self.target_port = target_port
        self.seconds = seconds
        self.forget = forget
        self.away = False
        self.cuts = 0
        self.requests = self.most_at_once = self._waiting = 0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.away = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in list(self._open):
            _close(end)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.away:
                _close(client)
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self.target_port))
            except OSError:
                _close(client)
                continue
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open |= {client, server}
            Connection(self, client, server)

    def count(self, change: int) -> None:
        with self._lock:
            self._waiting += change
            self.requests += change > 0
            self.most_at_once = max(self.most_at_once, self._waiting)

    def ended(self, end: socket.socket) -> None:
        self._open.discard(end)
        _close(end)


class Connection:
    """One client and the server, each in a thread that passes on what it says."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self.proxy = proxy
        self.client = client
        self.server = server
        self.asking = False  # between a request and the beginning of its answer
        self.answered = 0  # bytes of the answer
        for pump in (self._ask, self._answer):
            threading.Thread(target=pump, daemon=True).start()

    def _ask(self) -> None:
        with suppress(OSError):
            while (data := self.client.recv(CHUNK)) and not self.proxy.away:
                if not self.asking:
                    self.asking, self.answered = True, 0
                    self.proxy.count(1)
                    time.sleep(self.proxy.seconds)
                if self.proxy.forget:
                    data = data.replace(self.proxy.forget, b"X-Forgotten")
                self.server.sendall(data)
        self._end()

    def _answer(self) -> None:
        with suppress(OSError):
            while (data := self.server.recv(CHUNK)) and not self.proxy.away:
                if self.asking:
                    self.asking = False
                    self.proxy.count(-1)
                self.answered += len(data)
                if self.proxy.cuts and self.answered > self.proxy.CUT_AT:
                    self.proxy.cuts -= 1
                    self.client.sendall(data[: self.proxy.CUT_AT])
                    break
                self.client.sendall(data)
        self._end()

    def _end(self) -> None:
        if self.asking:
            self.asking = False
            self.proxy.count(-1)
        self.proxy.ended(self.client)
        self.proxy.ended(self.server)


def _close(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


@contextmanager
def proxy(target_port: int, seconds: float = 0.0, forget: bytes = b"") -> Iterator[Proxy]:
    between = Proxy(target_port, seconds, forget)
    try:
        yield between
    finally:
        between.close()


@contextmanager
def delaying_proxy(target_port: int, seconds: float) -> Iterator[int]:
    """The port of a proxy before `target_port` that makes each request take `seconds` longer."""
    with proxy(target_port, seconds) as between:
        yield between.port
