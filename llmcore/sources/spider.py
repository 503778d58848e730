"""The crawler's own process (Scrapy's reactor cannot restart): `python -m llmcore.sources.spider SPEC.json`.

It fetches level by level in URL order and writes what it saw to `fetches.jsonl` and `bodies.bin` beside the
specification. Where a level holds more than max_pages leaves room for, the links that stand first on their pages are
taken, so that the same are cut each time, and a page with a hundred thousand links takes no other's place. It ends when
its standard input closes: it never outlives its parent.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from urllib.parse import urljoin, urlsplit

import scrapy
from scrapy import exceptions
from scrapy.crawler import AsyncCrawlerProcess
from scrapy.utils.gz import gunzip
from scrapy.utils.sitemap import Sitemap

from llmcore.sources.consent import Robots, training_opt_out
from llmcore.sources.resolver import PublicResolver, refused_addresses
from llmcore.sources.urls import clean_url, host_and_port, origin_of

REDIRECTS = 5  # RFC 9309, 2.3.1.2: at least five for robots.txt
ROBOTS_MAX_BYTES = 16 * 1024 * 1024  # read, of which consent.py parses the first half MiB
SITEMAP_BYTES = 50 * 1024 * 1024  # sitemaps.org: 50 MB uncompressed
BEAT_SECONDS = 5.0
HTML_TYPES = ("text/html", "application/xhtml+xml")
LEFT_OUT_ROWS = 1000  # of a level: addresses beyond max_pages that are listed one by one; the last tells of the rest
HEADER_BYTES = 4096  # of one header of an answer that are kept, and four times as many of all

Frontier = dict[str, tuple[int, int]]  # URL -> depth, and at which place of a page its link stands


class Crawl(scrapy.Spider):
    """One crawl, as the specification says. Every URL that was asked for leaves one line in fetches.jsonl."""

    name = "crawl"

    def __init__(self, spec: dict[str, Any], folder: Path, **settings: Any) -> None:
        super().__init__(**settings)
        self.spec, self.folder = spec, folder
        self.allowed = frozenset(spec["allowed_hosts"])
        self.token = spec["user_agent"].split("/")[0].split()[0]
        self.known: dict[str, dict[str, Any]] = spec["known"]
        self.robots: dict[str, Robots] = {}
        self.seen: set[str] = set()
        self.pages, self.recorded, self.chosen, self.finished = 0, 0, 0, False
        self.deadline = time.monotonic() + spec["max_seconds"]

    async def start(self) -> AsyncIterator[Any]:
        """The whole crawl; Scrapy's own scheduler has nothing to do."""
        try:
            with (
                (self.folder / "fetches.jsonl").open("w") as self.fetches,
                (self.folder / "bodies.bin").open("wb") as self.bodies,
            ):
                await self.crawl()
        except Exception as error:
            print(f"FAILED {' '.join(str(error).split()) or type(error).__name__}", flush=True)
            raise
        self.finished = True
        return
        yield

    async def crawl(self) -> None:
        """Level by level from the start URLs, the pages known from earlier crawls, and the sitemaps."""
        starts = [clean_url(url) for url in self.spec["start_urls"]]
        frontier: Frontier = {url: (0, 0) for url in starts}
        frontier |= {url: (row["depth"], 0) for url, row in self.known.items() if not row["gone"]}
        beat = asyncio.create_task(self.beat())
        try:
            if self.spec["sitemap"]:
                for origin in sorted({origin_of(url) for url in starts}):
                    frontier = {url: (0, 1) for url in await self.sitemap_urls(origin)} | frontier
            while frontier:
                frontier = await self.fetch_level(frontier)
        finally:
            beat.cancel()

    async def fetch_level(self, frontier: Frontier) -> Frontier:
        """Fetch all URLs, hosts side by side; returns the next level."""
        chosen = self.choose(frontier)
        origins = sorted({origin_of(url) for url in chosen} - self.robots.keys())
        self.robots |= dict(zip(origins, await asyncio.gather(*map(self.read_robots, origins)), strict=True))
        following: Frontier = {}
        queues: dict[str, list[str]] = {}
        for url in chosen:
            queues.setdefault(urlsplit(url).netloc, []).append(url)

        async def work(queue: Iterator[str]) -> None:
            for url in queue:
                depth = frontier[url][0]
                for place, link in enumerate(await self.fetch(url, depth)):
                    before = following.get(link, (depth + 1, place))
                    following[link] = min(depth + 1, before[0]), min(place, before[1])

        shared = [iter(urls) for urls in queues.values()]
        await asyncio.gather(*(work(queue) for queue in shared for _ in range(self.spec["concurrency"])))
        return {url: link for url, link in following.items() if link[0] <= self.spec["max_depth"]}

    def choose(self, frontier: Frontier) -> list[str]:
        """The URLs of a level that there is room for, in order; the rest is recorded as left out."""
        new = sorted(frontier.keys() - self.seen, key=lambda url: (frontier[url][1], url))
        self.seen |= frontier.keys()
        room = self.spec["max_pages"] - self.pages
        chosen, left_out = sorted(new[:room]), sorted(new[room:])
        self.chosen += len(chosen)
        reason = f"max_pages of {self.spec['max_pages']} reached"
        for url in left_out[:LEFT_OUT_ROWS]:
            more = len(left_out) - LEFT_OUT_ROWS if url == left_out[:LEFT_OUT_ROWS][-1] else 0
            told = f"{reason}; {more} addresses behind this one as well" if more > 0 else reason
            self.record(url, "failed", reason=told, depth=frontier[url][0])
        return chosen

    async def fetch(self, url: str, depth: int) -> list[str]:
        """Fetch one page and record what came of it; returns the links to follow."""
        if time.monotonic() > self.deadline:
            self.record(url, "failed", reason=f"max_seconds of {self.spec['max_seconds']:g} reached", depth=depth)
            return []
        refusal = self.robots[origin_of(url)].forbids(url, urlsplit(url).path or "/")
        if refusal:
            self.record(url, "forbidden", reason=refusal, depth=depth)
            return []
        before = self.known.get(url)
        self.pages += 1
        try:
            response = await self.download(url, conditional_headers(before), self.spec["max_bytes"])
        except Exception as error:
            outcome, reason = failure(error, url, self.spec["timeout"], self.spec["max_bytes"])
            self.record(url, outcome, reason=reason, depth=depth)
            return []
        told = self.recorded
        try:
            return self.judge(url, depth, response, before)
        except Exception as error:  # an answer that nobody foresaw costs its page, not the crawl
            if self.recorded == told:
                self.record(url, "failed", reason=f"unusable answer: {type(error).__name__}", depth=depth)
            return []

    def judge(self, url: str, depth: int, response: Any, before: dict[str, Any] | None) -> list[str]:
        """Record one answer; returns the links to follow."""
        headers = {
            name.decode("latin-1").lower(): [v.decode("latin-1") for v in values]
            for name, values in response.headers.items()
        }
        status = response.status
        facts: dict[str, Any] = {
            "status": status,
            "depth": depth,
            "etag": (headers.get("etag") or [None])[0],
            "last_modified": (headers.get("last-modified") or [None])[0],
        }
        if status == 304 and before:
            facts |= {name: facts[name] or before[name] for name in ("etag", "last_modified")}
            self.record(url, "unchanged", content_digest=before["content_digest"], **facts)
            return []
        if 300 <= status < 400 and "location" in headers:
            target = clean_url(urljoin(url, headers["location"][0]))
            within = self.is_allowed(target)
            self.record(url, "redirect" if within else "off_host", reason=target, **facts)
            return [target] if within else []
        if status in (404, 410) and before and not before["gone"]:
            self.record(url, "gone", reason=f"status {status}", **facts)
            return []
        if status != 200:
            self.record(url, "failed", reason=f"status {status}", **facts)
            return []
        body = response.body
        is_html = (headers.get("content-type") or [""])[0].split(";")[0].strip().lower() in HTML_TYPES
        refusal = training_opt_out(headers, body if is_html else b"", self.token)
        if refusal:
            self.record(url, "forbidden", reason=refusal, **facts)
            return []
        digest = hashlib.sha256(body).hexdigest()
        if before and before["content_digest"] == digest:
            self.record(url, "unchanged", content_digest=digest, **facts)
        else:
            offset = self.bodies.tell()
            self.bodies.write(body)
            reason = "changed" if before else "new"
            self.record(
                url,
                "fetched",
                reason=reason,
                content_digest=digest,
                offset=offset,
                length=len(body),
                headers=kept_headers(headers),
                **facts,
            )
        return self.links(response, depth) if is_html and self.spec["follow_links"] else []

    def links(self, response: Any, depth: int) -> list[str]:
        """The links of a page that lead to an allowed host, in their order; max_links of them at most."""
        found: dict[str, None] = {}
        places = response.xpath("//a/@href | //area/@href").getall()
        for number, href in enumerate(places):
            url = self.allowed_url(href.strip(), response.urljoin)
            if url and url not in found and len(found) == self.spec["max_links"]:
                reason = f"max_links of {len(found)} reached on {response.url}; {len(places) - number} links left out"
                self.record(url, "failed", reason=reason, depth=depth + 1)
                break
            if url:
                found[url] = None
        return list(found)

    def allowed_url(self, place: str, join: Callable[[str], str] = str) -> str | None:
        """The URL in its one spelling; None if it is none, or leads elsewhere."""
        try:
            url = clean_url(join(place))
        except ValueError:
            return None
        return url if self.is_allowed(url) else None

    def is_allowed(self, url: str) -> bool:
        """Only http(s) URLs of the hosts that the configuration names."""
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and parts.netloc in self.allowed

    async def download(self, url: str, headers: dict[str, str], max_bytes: int, slot: str | None = None) -> Any:
        """One request through Scrapy's downloader: retries, decompression, time and size limits, the host's delay."""
        request = scrapy.Request(
            url,
            headers=headers,
            dont_filter=True,
            meta={"download_slot": slot or urlsplit(url).netloc, "download_maxsize": max_bytes},
        )
        return await cast(Any, self.crawler.engine).download_async(request)

    async def read_robots(self, origin: str) -> Robots:
        """The origin's robots.txt; a network failure forbids everything (RFC 9309, 2.3.1.4). Sets the host's delay."""
        url, netloc = f"{origin}/robots.txt", urlsplit(origin).netloc
        try:
            for _ in range(REDIRECTS + 1):
                response = await self.download(url, {}, ROBOTS_MAX_BYTES, slot=f"robots {netloc}")
                if not (300 <= response.status < 400 and "Location" in response.headers):
                    break
                url = clean_url(response.urljoin(response.headers["Location"].decode("latin-1")))
        except Exception as error:
            return Robots(
                None,
                self.token,
                f"robots.txt unreachable: {failure(error, url, self.spec['timeout'], ROBOTS_MAX_BYTES)[1]}",
            )
        robots = Robots.from_response(response.status, response.body, self.token)
        delay = min(max(robots.delay, self.spec["min_delay"]), max(1.0, self.deadline - time.monotonic()))
        slots = cast(Any, self.crawler.engine).downloader.per_slot_settings
        slots[netloc] = {"delay": delay, "jitter": 0.0, "concurrency": self.spec["concurrency"]}
        return robots

    async def sitemap_urls(self, origin: str) -> list[str]:
        """Allowed pages that the origin's sitemaps name; sitemap indexes are followed."""
        if origin not in self.robots:
            self.robots[origin] = await self.read_robots(origin)
        waiting = self.robots[origin].sitemaps or [f"{origin}/sitemap.xml"]
        read: set[str] = set()
        found: set[str] = set()
        enough = self.spec["max_pages"]
        while waiting and len(read) < 1000 and len(found) <= enough and time.monotonic() < self.deadline:
            url = self.allowed_url(waiting.pop(0), lambda place: urljoin(origin, place))
            if url is None or url in read:
                continue
            read.add(url)
            if self.robots[origin].forbids(url, urlsplit(url).path):
                continue
            try:
                response = await self.download(url, {}, SITEMAP_BYTES)
                body = (
                    gunzip(response.body, max_size=SITEMAP_BYTES) if response.body[:2] == b"\x1f\x8b" else response.body
                )
                sitemap = Sitemap(body)
                places = [entry["loc"] for entry in sitemap if "loc" in entry]
            except Exception as error:
                self.logger.warning("sitemap %s: %s", url, error)
                continue
            if sitemap.type == "sitemapindex":
                waiting += sorted(places)
            else:
                found |= {url for url in map(self.allowed_url, places) if url}
        return sorted(found)

    def record(self, url: str, outcome: str, **facts: Any) -> None:
        """One line of fetches.jsonl, and a word to the parent."""
        line = {"url": url, "outcome": outcome, "fetched_at": datetime.now(UTC).isoformat(), **facts}
        self.fetches.write(json.dumps(line) + "\n")
        self.recorded += 1
        if self.recorded % 10 == 0:
            self.say()

    def say(self) -> None:
        """Tell the parent how far the crawl is."""
        print(f"PROGRESS {self.recorded} {max(self.recorded, self.chosen)}", flush=True)

    async def beat(self) -> None:
        """Say so even while a long Crawl-delay passes: the parent renews its lease by it."""
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            self.say()


TRANSFER_HEADERS = frozenset(
    {"content-encoding", "content-length", "transfer-encoding", "connection", "keep-alive", "set-cookie"}
)


def kept_headers(headers: Mapping[str, list[str]]) -> list[list[str]]:
    """What of an answer's headers is kept, by name; others' readers take no more than some ten kilobytes."""
    kept: list[list[str]] = []
    room = 4 * HEADER_BYTES
    for name in sorted(headers, key=lambda name: (name != "content-type", name)):
        for value in headers[name]:
            size = len(name) + len(value)
            if name not in TRANSFER_HEADERS and size <= min(room, HEADER_BYTES):
                kept.append([name, value])
                room -= size
    return sorted(kept, key=lambda header: header[0])


def conditional_headers(before: dict[str, Any] | None) -> dict[str, str]:
    """If-None-Match and If-Modified-Since for a page that an earlier crawl holds."""
    if not before or before["gone"]:
        return {}
    headers = {"If-None-Match": before["etag"], "If-Modified-Since": before["last_modified"]}
    return {name: value for name, value in headers.items() if value}


def failure(error: Exception, url: str, timeout: float, max_bytes: int) -> tuple[str, str]:
    """(outcome, reason) of a request that got no usable answer; the reason holds no address of memory and no time."""
    host = host_and_port(url)
    if isinstance(error, exceptions.DownloadCancelledError):
        return "too_large", f"more than {max_bytes} bytes"
    if isinstance(error, exceptions.DownloadTimeoutError):
        return "failed", f"no answer within {timeout:g} s"
    if host in refused_addresses:
        return (
            "forbidden",
            f"{host} is the private address {refused_addresses[host]}; name it in allow_private_hosts to allow it",
        )
    if isinstance(error, exceptions.CannotResolveHostError):
        return "failed", f"the name {urlsplit(url).hostname} has no address"
    if isinstance(error, exceptions.DownloadConnectionRefusedError):
        return "failed", f"{host} refuses the connection"
    return "failed", f"{type(error).__name__}"


def settings(spec: dict[str, Any]) -> dict[str, Any]:
    """Scrapy's settings: everything that follows, stores or guesses by itself is off."""
    return {
        "CONCURRENT_REQUESTS": 0,  # no limit in all: each host has its own
        "CONCURRENT_REQUESTS_PER_DOMAIN": spec["concurrency"],
        "COOKIES_ENABLED": False,
        "DEFAULT_REQUEST_HEADERS": {"Accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.1"},
        "DNS_RESOLVER": PublicResolver,
        "TWISTED_DNS_RESOLVER": PublicResolver,
        "DOWNLOAD_DELAY": spec["min_delay"],
        "DOWNLOAD_DELAY_JITTER": 0.0,
        "DOWNLOAD_MAXSIZE": spec["max_bytes"],
        "DOWNLOAD_TIMEOUT": spec["timeout"],
        "DOWNLOAD_WARNSIZE": 0,
        "HTTPPROXY_ENABLED": False,  # a proxy would connect to addresses that nobody checked
        "LOG_LEVEL": "ERROR",
        "METAREFRESH_ENABLED": False,
        "PRIVATE_HOSTS": spec["private_hosts"],
        "REDIRECT_ENABLED": False,
        "RETRY_TIMES": 2,
        "ROBOTSTXT_OBEY": False,  # consent.py does, with RFC 9309's meaning of an unreachable file
        "TELNETCONSOLE_ENABLED": False,
        "USER_AGENT": spec["user_agent"],
    }


def end_with_parent() -> None:
    """Leave at once when standard input closes, which is when the parent is gone, however it went."""

    def watch() -> None:
        os.read(sys.stdin.fileno(), 1)  # not sys.stdin.read(): its lock would hang the interpreter's end
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(path: Path) -> None:
    """Crawl as the specification file says; its folder gets fetches.jsonl and bodies.bin."""
    end_with_parent()
    logging.getLogger("scrapy").setLevel(logging.ERROR)
    spec = json.loads(path.read_text())
    process = AsyncCrawlerProcess(settings(spec))
    crawler = process.create_crawler(Crawl)
    process.crawl(crawler, spec=spec, folder=path.parent)
    process.start()
    if not (isinstance(crawler.spider, Crawl) and crawler.spider.finished):
        raise SystemExit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
