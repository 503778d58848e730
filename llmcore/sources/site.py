"""A small web site on loopback: the bundled pages (or a folder's) over real HTTP.

What it answers to: ETag and Last-Modified on every page, 304 to If-None-Match and If-Modified-Since (RFC 9110), a
robots.txt (RFC 9309) that forbids one part and sets a Crawl-delay, and a sitemap.xml. An overlay folder changes, adds
or (by a line in its `removed.txt`) removes pages, so that a refresh has something to find.
"""

from __future__ import annotations

import errno
import hashlib
import tarfile
import threading
import time
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote, unquote, urlsplit
from xml.sax.saxutils import escape

from llmcore.errors import LlmcoreError, UsageError

PORT_WAIT_SECONDS = 60.0

TYPES = {
    ".html": "text/html",  # no charset: the pages name theirs, and not all are UTF-8
    ".htm": "text/html",
    ".txt": "text/plain; charset=UTF-8",
    ".xml": "application/xml",
    ".css": "text/css",
    ".js": "text/javascript",
    ".png": "image/png",
    ".pdf": "application/pdf",
}


@dataclass(frozen=True)
class Page:
    """One file of the site. modified: seconds since 1970."""

    body: bytes
    modified: int

    @cached_property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.body).hexdigest()[:32]}"'


class Site:
    """Serve `root` (a folder or a tar archive, possibly compressed) on http://host:port/ while the `with` block runs.

    forbidden:   paths that robots.txt disallows, e.g. ("/en/developer/",), where the root has no robots.txt of its own.
    crawl_delay: seconds between two requests that robots.txt asks for.
    overlay:     folder whose files replace or add pages; the paths listed in its `removed.txt` answer 404.
    port:        0 = any free one. Raises LlmcoreError when it stays busy for `port_wait` seconds.
    """

    def __init__(
        self,
        root: Path,
        port: int = 0,
        *,
        host: str = "127.0.0.1",
        forbidden: tuple[str, ...] = (),
        crawl_delay: float | None = None,
        overlay: Path | None = None,
        port_wait: float = PORT_WAIT_SECONDS,
    ) -> None:
        self.host, self.port, self.port_wait = host, port, port_wait
        self.pages = pages_of(root)
        if overlay is not None:
            self.pages = overlaid(self.pages, overlay)
        self.robots = robots_txt(forbidden, crawl_delay)
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        """The site's address, with a slash at the end."""
        return f"http://{self.host}:{self.port}/"

    def __enter__(self) -> Self:
        self._server = self._listen()
        self.port = self._server.server_port
        generated = {"sitemap.xml": sitemap_xml(self.url, sorted(self.pages))}
        generated["robots.txt"] = f"{self.robots}\nSitemap: {self.url}sitemap.xml\n".encode()
        for name, body in generated.items():
            self.pages.setdefault(name, Page(body, 0))
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="site", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def _listen(self) -> ThreadingHTTPServer:
        handler = type("SiteRequest", (_Request,), {"pages": self.pages})
        deadline = time.monotonic() + self.port_wait
        while True:
            try:
                server = _Server((self.host, self.port), handler)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or time.monotonic() >= deadline:
                    raise LlmcoreError(
                        f"start_urls: cannot serve the site on {self.host}:{self.port} ({error.strerror}); "
                        "stop what uses that port or name another one in the crawl source's start_urls"
                    ) from error
                time.sleep(0.2)
            else:
                return server


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    allow_reuse_address = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no news."""


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    pages: dict[str, Page] = {}  # noqa: RUF012 (set per site in a subclass)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: the crawler's fetch table is the log."""

    def _answer(self, with_body: bool) -> None:
        name = unquote(urlsplit(self.path).path).lstrip("/")
        page = self.pages.get(name)
        if page is None and (not name or name.endswith("/") or f"{name}/index.html" in self.pages):
            index = f"{name.rstrip('/')}/index.html".lstrip("/")
            if index in self.pages:
                self._send(301, b"", {"Location": f"/{quote(index)}"}, with_body)
                return
        if page is None:
            self._send(
                404, b"<html><body><h1>Not Found</h1></body></html>\n", {"Content-Type": TYPES[".html"]}, with_body
            )
            return
        headers = {"ETag": page.etag, "Last-Modified": formatdate(page.modified, usegmt=True)}
        if self._unchanged(page):
            self._send(304, b"", headers, with_body=False)
            return
        headers["Content-Type"] = TYPES.get(Path(name).suffix.lower(), "application/octet-stream")
        self._send(200, page.body, headers, with_body)

    def _unchanged(self, page: Page) -> bool:
        tags = self.headers.get("If-None-Match")
        if tags is not None:  # RFC 9110, 13.1.3: If-Modified-Since counts only without If-None-Match
            return tags.strip() == "*" or page.etag in [tag.strip().removeprefix("W/") for tag in tags.split(",")]
        since = self.headers.get("If-Modified-Since")
        if since is None:
            return False
        try:
            return page.modified <= parsedate_to_datetime(since).timestamp()
        except ValueError:
            return False

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 304:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)


def pages_of(root: Path) -> dict[str, Page]:
    """Every file of a folder or tar archive by its relative name."""
    if root.is_dir():
        return {
            path.relative_to(root).as_posix(): Page(path.read_bytes(), int(path.stat().st_mtime))
            for path in sorted(root.rglob("*"))
            if path.is_file()
        }
    try:
        with tarfile.open(root) as tar:
            entries = [(entry, tar.extractfile(entry)) for entry in tar.getmembers() if entry.isfile()]
            return {
                entry.name.removeprefix("./"): Page(file.read(), int(entry.mtime)) for entry, file in entries if file
            }
    except (OSError, tarfile.TarError, EOFError) as error:
        raise UsageError(f"serve: {root} is neither a folder nor a tar archive of pages ({error})") from error


def overlaid(pages: dict[str, Page], overlay: Path) -> dict[str, Page]:
    """The pages with an overlay folder's files in place, and without those that its removed.txt lists."""
    if not overlay.is_dir():
        raise UsageError(f"overlay: {overlay} is not a folder")
    changed = pages_of(overlay)
    removed = changed.pop("removed.txt", None)
    merged = {**pages, **changed}
    for name in removed.body.decode().split() if removed else ():
        merged.pop(name.lstrip("/"), None)
    return merged


def robots_txt(forbidden: tuple[str, ...], crawl_delay: float | None) -> str:
    """RFC 9309 rules for every robot."""
    lines = ["User-agent: *", *(f"Disallow: {path}" for path in forbidden)]
    if crawl_delay is not None:
        lines.append(f"Crawl-delay: {crawl_delay}")
    return "\n".join(lines) + "\n"


def sitemap_xml(url: str, names: list[str]) -> bytes:
    """A sitemap of all HTML pages (sitemaps.org 0.9)."""
    entries = "".join(
        f"<url><loc>{escape(url + quote(name))}</loc></url>\n" for name in names if name.endswith((".html", ".htm"))
    )
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{entries}</urlset>\n'
    ).encode()
