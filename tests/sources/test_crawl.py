"""The crawler over real HTTP: what it may fetch, how fast, what it writes down, and what a refresh adds."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from fastwarc.warc import ArchiveIterator

from llmcore.errors import LlmcoreError
from llmcore.quickstart import bundled
from llmcore.sources.consent import Robots, refuses_ai, training_opt_out
from llmcore.sources.crawl import QUICKSTART_DELAY_SECONDS, CrawlParams, crawl
from llmcore.sources.site import Site, pages_of
from llmcore.sources.urls import clean_url, is_public
from tests.local_files import LocalFiles, LocalRun

PAGES = ("de/bind.html", "de/index.html", "ko/bind.html", "en/bind.html", "en/dso.html", "en/developer/API.html")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """A few pages of the bundled site as a folder, none of which links to another one but by its language list."""
    folder = tmp_path / "pages"
    for name, page in pages_of(bundled("site.tar.xz")).items():
        if name in PAGES:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(page.body)
    return folder


def private(site: Site, **changes: Any) -> CrawlParams:
    start = {"start_urls": (f"{site.url}de/bind.html",), "follow_links": False}
    return CrawlParams(**{**start, "allow_private_hosts": (f"127.0.0.1:{site.port}",), **changes})


def run_crawl(
    folder: Path, params: CrawlParams, previous: LocalRun | None = None, **outside: Any
) -> tuple[LocalRun, Any]:
    inputs = {"previous": LocalFiles(previous.out)} if previous else {}
    run = LocalRun(folder, outside=outside, inputs=inputs)
    return run, crawl(inputs, params, run)


def fetches(run: LocalRun, generation: str = "g000") -> dict[str, dict[str, Any]]:
    return {row["url"]: row for row in pl.read_parquet(run.out / f"fetches/{generation}.parquet").to_dicts()}


def warc_bodies(path: Path) -> dict[str, bytes]:
    return {r.headers["WARC-Target-URI"]: r.reader.read() for r in ArchiveIterator(str(path))}


@pytest.fixture(scope="module")
def crawled(tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalRun, Any, str]:
    """The bundled site crawled as the quickstart does, through its sitemap: (run, metrics, the site's URL)."""
    url = f"http://127.0.0.1:{free_port()}/"
    params = CrawlParams(start_urls=(f"{url}en/",), serve="quickstart", follow_links=False)
    return (*run_crawl(tmp_path_factory.mktemp("crawl"), params), url)


class TestTheBundledSite:
    def test_is_fetched_whole_but_for_what_robots_txt_forbids(self, crawled: tuple[LocalRun, Any, str]) -> None:
        run, metrics, url = crawled
        assert metrics == {
            "pages": 485,
            "new": 485,
            "changed": 0,
            "unchanged": 0,
            "gone": 0,
            "forbidden": 12,
            "failed": 0,
        }
        rows = fetches(run)
        assert rows[f"{url}en/developer/API.html"]["outcome"] == "forbidden"
        assert rows[f"{url}en/developer/API.html"]["reason"] == "robots.txt disallows it"
        assert rows[f"{url}en/"]["outcome"] == "redirect"

    def test_lies_in_the_archive_byte_for_byte_in_url_order(self, crawled: tuple[LocalRun, Any, str]) -> None:
        run, _, url = crawled
        bodies = warc_bodies(run.out / "raw/g000.warc.gz")
        served = {url + name: page.body for name, page in pages_of(bundled("site.tar.xz")).items()}
        assert list(bodies) == sorted(bodies)
        assert bodies == {name: body for name, body in served.items() if "/en/developer/" not in name}

    def test_is_asked_no_faster_than_its_crawl_delay(self, crawled: tuple[LocalRun, Any, str]) -> None:
        asked = [row["fetched_at"] for row in fetches(crawled[0]).values() if row["outcome"] in ("fetched", "redirect")]
        assert (max(asked) - min(asked)).total_seconds() >= 0.95 * QUICKSTART_DELAY_SECONDS * (len(asked) - 2)

    def test_leaves_only_archives_and_fetch_tables(self, crawled: tuple[LocalRun, Any, str]) -> None:
        assert LocalFiles(crawled[0].out).names() == ["fetches/g000.parquet", "raw/g000.warc.gz"]
        assert not list(crawled[0].scratch.iterdir())


class TestARefresh:
    def test_adds_only_what_is_new_or_changed(self, pages: Path, tmp_path: Path) -> None:
        with Site(pages) as site:
            first, _ = run_crawl(tmp_path / "first", private(site))
            port, url = site.port, site.url
        overlay = tmp_path / "overlay"
        (overlay / "en").mkdir(parents=True)
        (overlay / "en/bind.html").write_bytes((pages / "en/bind.html").read_bytes() + b"<p>One line more.</p>")
        (overlay / "en/added.html").write_text("<html><body><p>A page that is new.</p></body></html>")
        (overlay / "removed.txt").write_text("ko/bind.html\n")
        with Site(pages, port, overlay=overlay) as site:
            second, metrics = run_crawl(tmp_path / "second", private(site), first)
            third, quiet = run_crawl(tmp_path / "third", private(site), second)

        assert metrics == {"pages": 7, "new": 1, "changed": 1, "unchanged": 4, "gone": 1, "forbidden": 0, "failed": 0}
        assert list(warc_bodies(second.out / "raw/g001.warc.gz")) == [f"{url}en/added.html", f"{url}en/bind.html"]
        rows = fetches(second, "g001")
        assert (rows[f"{url}en/bind.html"]["outcome"], rows[f"{url}en/bind.html"]["reason"]) == ("fetched", "changed")
        assert (rows[f"{url}en/added.html"]["outcome"], rows[f"{url}en/added.html"]["reason"]) == ("fetched", "new")
        assert (rows[f"{url}ko/bind.html"]["outcome"], rows[f"{url}ko/bind.html"]["status"]) == ("gone", 404)
        assert (rows[f"{url}de/bind.html"]["outcome"], rows[f"{url}de/bind.html"]["status"]) == ("unchanged", 304)
        for name in LocalFiles(first.out).names():
            assert (second.out / name).read_bytes() == (first.out / name).read_bytes()

        assert quiet == {"pages": 7, "new": 0, "changed": 0, "unchanged": 6, "gone": 0, "forbidden": 0, "failed": 0}
        assert LocalFiles(third.out).names("raw/") == LocalFiles(second.out).names("raw/")

    def test_finds_an_unchanged_page_by_its_content_where_the_server_knows_no_conditions(self, tmp_path: Path) -> None:
        with routes({"/": page("the same")}) as (url, host):
            params = CrawlParams(start_urls=(url,), allow_private_hosts=(host,), sitemap=False)
            first, _ = run_crawl(tmp_path / "first", params)
            _, metrics = run_crawl(tmp_path / "second", params, first)
        assert (metrics["unchanged"], metrics["changed"]) == (1, 0)


class TestConsent:
    def test_an_unreachable_robots_txt_forbids_everything(self, tmp_path: Path) -> None:
        with (
            routes({"/": page("text"), "/robots.txt": (503, {}, b"")}) as (url, host),
            pytest.raises(LlmcoreError, match=r"cannot be crawled: robots.txt unreachable: status 503"),
        ):
            run_crawl(tmp_path, CrawlParams(start_urls=(url,), allow_private_hosts=(host,), sitemap=False))

    def test_pages_that_refuse_training_are_not_kept(self, tmp_path: Path) -> None:
        links = "".join(f'<a href="/{name}">x</a>' for name in ("header", "meta", "tdm", "usage", "other", "plain"))
        answers = {
            "/": page(links),
            "/header": page("a", {"X-Robots-Tag": "noai, noimageai"}),
            "/meta": page('<meta content="noai" name=robots>'),
            "/tdm": page("c", {"TDM-Reservation": "1"}),
            "/usage": page("d", {"Content-Usage": "train-ai=n"}),
            "/other": page("e", {"X-Robots-Tag": "otherbot: noai"}),
            "/plain": page("f", {"X-Robots-Tag": "noindex"}),
        }
        with routes(answers) as (url, host):
            params = CrawlParams(start_urls=(url,), allow_private_hosts=(host,), sitemap=False)
            run, metrics = run_crawl(tmp_path, params)
        assert (metrics["pages"], metrics["forbidden"]) == (3, 4)
        forbidden = [row["url"].removeprefix(url) for row in fetches(run).values() if row["outcome"] == "forbidden"]
        assert forbidden == ["header", "meta", "tdm", "usage"]

    def test_robots_txt_is_read_as_rfc_9309_says(self) -> None:
        text = b"User-agent: *\nDisallow: /a\nAllow: /a/b\nCrawl-delay: 1.5\nUser-agent: llmcore\nDisallow: /\n"
        for status, token, url, verdict in (
            (200, "other", "http://h/a/x", "robots.txt disallows it"),
            (200, "other", "http://h/a/b", None),
            (200, "llmcore", "http://h/c", "robots.txt disallows it"),
            (404, "llmcore", "http://h/c", None),
            (403, "llmcore", "http://h/c", None),
            (500, "llmcore", "http://h/c", "robots.txt unreachable: status 500"),
            (429, "llmcore", "http://h/c", "robots.txt unreachable: status 429"),
        ):
            assert Robots.from_response(status, text, token).forbids(url, url[8:]) == verdict, (status, token, url)
        assert Robots.from_response(200, text, "other").delay == 1.5

    def test_signals_against_training_in_robots_txt_count_for_their_part(self) -> None:
        text = b"User-agent: *\nAllow: /\nContent-Usage: /essays/ train-ai=n\n"
        robots = Robots.from_response(200, text, "llmcore")
        assert robots.forbids("http://h/essays/x", "/essays/x") is not None
        assert robots.forbids("http://h/news/x", "/news/x") is None
        signal = Robots.from_response(200, b"User-Agent: *\nContent-Signal: search=yes, ai-train=no\n", "llmcore")
        assert signal.forbids("http://h/", "/") == "robots.txt: content-signal: search=yes, ai-train=no"

    def test_a_directive_for_another_robot_is_not_ours(self) -> None:
        assert refuses_ai("noindex, NoAI", "llmcore")
        assert refuses_ai("llmcore: noai", "llmcore")
        assert not refuses_ai("otherbot: noindex, noai", "llmcore")
        assert training_opt_out({}, b"<html><body>noai robots</body></html>", "llmcore") is None


class TestWhereItMayGo:
    def test_private_addresses_are_refused_unless_allowed_by_name(self, pages: Path, tmp_path: Path) -> None:
        with (
            Site(pages) as site,
            pytest.raises(LlmcoreError, match=r"private address 127.0.0.1; name it in allow_private_hosts"),
        ):
            run_crawl(tmp_path, private(site, allow_private_hosts=()))

    def test_a_name_that_resolves_to_a_private_address_is_refused_too(self, tmp_path: Path) -> None:
        with routes({"/": page("secret")}) as (inner, _), routes({"/x": page("y")}) as (_, _):
            inside = inner.replace("127.0.0.1", "localhost")
            with routes({"/": page(f'<a href="{inside}">x</a>'), "/go": (302, {"Location": inside}, b"")}) as (
                url,
                host,
            ):
                params = CrawlParams(
                    start_urls=(url, f"{url}go"),
                    allowed_hosts=(host, inside.split("/")[2]),
                    allow_private_hosts=(host,),
                    sitemap=False,
                )
                run, metrics = run_crawl(tmp_path, params)
        row = fetches(run)[inside]
        assert (row["outcome"], metrics["pages"]) == ("forbidden", 1)
        assert "robots.txt unreachable" in row["reason"] and "private address" in row["reason"]

    def test_other_hosts_are_never_followed(self, tmp_path: Path) -> None:
        answers = {
            "/": page('<a href="http://elsewhere.example/">x</a><a href="/go">y</a><a href="mailto:a@b">z</a>'),
            "/go": (301, {"Location": "http://elsewhere.example/there"}, b""),
        }
        with routes(answers) as (url, host):
            params = CrawlParams(start_urls=(url,), allow_private_hosts=(host,), sitemap=False)
            run, _ = run_crawl(tmp_path, params)
        rows = fetches(run)
        assert rows.keys() == {url, f"{url}go"}
        assert (rows[f"{url}go"]["outcome"], rows[f"{url}go"]["reason"]) == (
            "off_host",
            "http://elsewhere.example/there",
        )

    def test_of_large_headers_some_are_kept(self, tmp_path: Path) -> None:
        large = {f"X-{number:02d}": "v" * 3000 for number in range(20)} | {"X-Huge": "v" * 16_000}
        with routes({"/": page("words", large)}) as (url, host):
            run, _ = run_crawl(tmp_path, CrawlParams(start_urls=(url,), allow_private_hosts=(host,), sitemap=False))
        assert warc_bodies(run.out / "raw/g000.warc.gz")[url].endswith(b"words</body></html>")

    def test_an_answer_that_is_no_sense_costs_its_page_and_not_the_crawl(self, tmp_path: Path) -> None:
        sitemap = b"<urlset><url><loc>http://[x/</loc></url><url><loc>/good</loc></url></urlset>"
        answers = {
            "/": page('<a href="/redirect">x</a><a href="/encoded">y</a><a href="http://[z">z</a><a href="/last"></a>'),
            "/redirect": (302, {"Location": "http://[x"}, b""),
            "/encoded": (200, {"Content-Type": "text/html", "Content-Encoding": "UTF-8"}, b"<a href='/more'>m</a>"),
            "/last": page("the last words"),
            "/robots.txt": (200, {"Content-Type": "text/plain"}, b"Sitemap: http://[x/\nSitemap: /sitemap.xml\n"),
            "/sitemap.xml": (200, {"Content-Type": "text/xml"}, sitemap),
        }
        with routes(answers) as (url, host):
            run, _ = run_crawl(tmp_path, CrawlParams(start_urls=(url,), allow_private_hosts=(host,)))
        rows = fetches(run)
        assert rows[f"{url}redirect"]["outcome"] == "failed"
        assert rows[f"{url}last"]["outcome"] == "fetched"

    def test_credentials_and_strange_names_are_refused(self) -> None:
        with pytest.raises(ValueError, match="holds credentials"):
            CrawlParams(start_urls=("http://user:secret@example.org/",))
        with pytest.raises(ValueError, match="name"):
            CrawlParams(start_urls=("http://example.org/",), name="example.org")

    @pytest.mark.parametrize(
        ("address", "public"),
        [
            *[(address, True) for address in ("8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808")],
            *[(address, False) for address in ("127.0.0.1", "10.1.2.3", "0.0.0.0", "169.254.169.254", "100.64.0.1")],
            *[(address, False) for address in ("::1", "fe80::1%eth0", "fd00::1", "224.0.0.1", "2002:7f00:1::")],
            *[(address, False) for address in ("::ffff:127.0.0.1", "64:ff9b::7f00:1")],
        ],
    )
    def test_what_counts_as_public(self, address: str, public: bool) -> None:
        assert is_public(address) == public


class TestLimits:
    def test_size_time_pages_and_depth_are_bounded(self, tmp_path: Path) -> None:
        answers = {
            "/": page('<a href="/big">b</a><a href="/slow">s</a><a href="/one">1</a>'),
            "/big": page("x" * 10_000),
            "/slow": (200, {"Content-Type": "text/html", "X-Wait": "5"}, b"late"),
            "/one": page('<a href="/two">2</a>'),
            "/two": page('<a href="/three">3</a>'),
        }
        with routes(answers) as (url, host):
            allowed = {"start_urls": (url,), "allow_private_hosts": (host,), "sitemap": False}
            run, _ = run_crawl(tmp_path / "a", CrawlParams(**allowed, max_bytes=5000, timeout=0.5, max_depth=2))
            few, _ = run_crawl(tmp_path / "b", CrawlParams(**allowed, max_pages=2))
        outcomes = {name.removeprefix(url): (row["outcome"], row["reason"]) for name, row in fetches(run).items()}
        assert outcomes["big"] == ("too_large", "more than 5000 bytes")
        assert outcomes["slow"] == ("failed", "no answer within 0.5 s")
        assert outcomes["two"][0] == "fetched" and "three" not in outcomes
        assert [row["outcome"] for row in fetches(few).values()] == ["fetched", "fetched", "failed", "failed"]

    def test_a_page_of_a_hundred_thousand_links_takes_no_other_pages_room(self, tmp_path: Path) -> None:
        flood = "".join(f'<a href="/a{number:06d}">x</a>' for number in range(100_000))
        few = "".join(f'<a href="/page/{number}">x</a>' for number in range(30))
        answers = {
            "/": page('<a href="/flood">f</a><a href="/index">i</a>'),
            "/flood": page(flood),
            "/index": page(few),
        }
        answers |= {f"/page/{number}": page(f"words {number}") for number in range(30)}
        with routes(answers) as (url, host):
            params = CrawlParams(start_urls=(url,), allow_private_hosts=(host,), sitemap=False, max_pages=63)
            run, metrics = run_crawl(tmp_path, params)
        rows = fetches(run)
        assert metrics["pages"] == 33 and all(f"{url}page/{number}" in rows for number in range(30))
        asked = [name for name, row in rows.items() if row["status"] == 404]
        assert asked == [f"{url}a{number:06d}" for number in range(30)], "what stands first on the page"
        assert len(rows) < 1100
        assert rows[f"{url}a002000"]["reason"] == f"max_links of 2000 reached on {url}flood; 98000 links left out"
        (last,) = [row["reason"] for row in rows.values() if "as well" in str(row["reason"])]
        assert last == "max_pages of 63 reached; 970 addresses behind this one as well"

    def test_a_start_url_that_nobody_answers_is_one_clear_line(self, tmp_path: Path) -> None:
        port = free_port()
        params = CrawlParams(start_urls=(f"http://127.0.0.1:{port}/",), allow_private_hosts=("127.0.0.1",))
        with pytest.raises(
            LlmcoreError, match=rf"start_urls: http://127.0.0.1:{port}/ cannot be crawled: .*refuses"
        ) as caught:
            run_crawl(tmp_path, params)
        assert "\n" not in str(caught.value)

    def test_a_start_url_that_leads_elsewhere_says_where(self, tmp_path: Path) -> None:
        with (
            routes({"/": (301, {"Location": "http://www.example/"}, b"")}) as (url, host),
            pytest.raises(LlmcoreError, match=r"it redirects to http://www.example/; name that host in allowed_hosts"),
        ):
            run_crawl(tmp_path, CrawlParams(start_urls=(url,), allow_private_hosts=(host,), sitemap=False))

    def test_a_busy_port_is_one_clear_line(self, pages: Path) -> None:
        with (
            Site(pages) as site,
            pytest.raises(LlmcoreError, match=r"start_urls: .*another one"),
            Site(pages, site.port, port_wait=0),
        ):
            pass


class TestACrawlThatIsCutOff:
    def test_leaves_nothing_and_no_spider(self, pages: Path, tmp_path: Path) -> None:
        class Lost(LocalRun):
            def progress(self, done: float, total: float, text: str = "") -> None:
                raise LlmcoreError("the lease was lost")

        answers = {"/": page("".join(f'<a href="/{n}">x</a>' for n in range(200)))} | {
            f"/{n}": page(str(n)) for n in range(200)
        }
        with routes(answers) as (url, host), pytest.raises(LlmcoreError, match="the lease was lost"):
            run = Lost(tmp_path)
            crawl({}, CrawlParams(start_urls=(url,), allow_private_hosts=(host,), sitemap=False), run)
        assert not LocalFiles(run.out).names() and not LocalFiles(run.scratch).names()
        assert not spiders(tmp_path)

    def test_whose_spider_is_killed_is_one_clear_line(self, tmp_path: Path) -> None:
        class Killing(LocalRun):
            def progress(self, done: float, total: float, text: str = "") -> None:
                for spider in spiders(tmp_path):
                    os.kill(spider, signal.SIGKILL)

        answers = {"/": page("".join(f'<a href="/{n}">x</a>' for n in range(50)))}
        with routes(answers) as (url, host), pytest.raises(LlmcoreError, match=r"the crawler stopped: exit code -9"):
            run = Killing(tmp_path)
            crawl({}, CrawlParams(start_urls=(url,), allow_private_hosts=(host,), sitemap=False, min_delay=0.05), run)
        assert not LocalFiles(run.out).names()

    def test_by_kill_9_takes_the_spider_along(self, tmp_path: Path) -> None:
        script = (
            "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
            "from tests.local_files import LocalRun; from llmcore.sources.crawl import crawl, CrawlParams\n"
            "crawl({}, CrawlParams(start_urls=(sys.argv[2],), allow_private_hosts=('127.0.0.1',), sitemap=False,"
            " min_delay=60), LocalRun(Path(sys.argv[3])))\n"
        )
        with routes({"/": page('<a href="/next">x</a>')}) as (url, _):
            arguments = [str(Path(__file__).parents[2]), url, str(tmp_path)]
            parent = subprocess.Popen([sys.executable, "-c", script, *arguments], cwd=Path(__file__).parents[2])
            assert within(30, lambda: spiders(tmp_path)), "the spider never started"
            parent.kill()
            parent.wait()
            assert within(10, lambda: not spiders(tmp_path)), "the spider outlived its parent"
        assert not LocalFiles(tmp_path / "out").names()


def test_the_site_answers_conditional_requests(pages: Path) -> None:
    def ask(url: str, **headers: str) -> tuple[int, Mapping[str, str]]:
        request = urllib.request.Request(
            url, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, answer.headers
        except urllib.error.HTTPError as error:
            return error.code, error.headers

    with Site(pages) as site:
        url = f"{site.url}de/bind.html"
        status, headers = ask(url)
        assert status == 200
        assert ask(url, If_None_Match=f'"other", W/{headers["ETag"]}')[0] == 304
        assert ask(url, If_None_Match='"other"', If_Modified_Since=headers["Last-Modified"])[0] == 200
        assert ask(url, If_Modified_Since=headers["Last-Modified"])[0] == 304
        assert ask(url, If_Modified_Since="Thu, 01 Jan 1970 00:00:00 GMT")[0] == 200
        assert ask(url, If_Modified_Since="yesterday")[0] == 200
        assert ask(f"{site.url}../../etc/passwd")[0] == 404
        assert "Disallow" not in urllib.request.urlopen(f"{site.url}robots.txt").read().decode()


def test_one_url_has_one_spelling() -> None:
    assert clean_url("HTTP://user:x@Example.COM:80/a b/?q=é#top") == "http://example.com/a%20b/?q=%C3%A9"
    assert clean_url("https://example.com") == "https://example.com/"
    assert clean_url(clean_url("http://h:8080/%7Ex?a=b&c")) == clean_url("http://h:8080/%7Ex?a=b&c")


Answer = tuple[int, Mapping[str, str], bytes]


def page(body: str, headers: Mapping[str, str] | None = None) -> Answer:
    return 200, {"Content-Type": "text/html", **(headers or {})}, f"<html><body>{body}</body></html>".encode()


@contextmanager
def routes(answers: Mapping[str, Answer]) -> Iterator[tuple[str, str]]:
    """A server that gives exactly these answers, 404 for everything else; (its URL, its host:port)."""

    class Routes(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = answers.get(self.path, (404, {}, b""))
            time.sleep(float(headers.get("X-Wait", 0)))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Routes)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def spiders(folder: Path) -> list[int]:
    """Process ids of the spiders that work below a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"llmcore.sources.spider" in command and str(folder).encode() in command[-2]:
            found.append(int(entry.parent.name))
    return found


def within(seconds: float, condition: Any) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        threading.Event().wait(0.05)
    return False


def test_parameters_name_the_wrong_url() -> None:
    with pytest.raises(ValueError, match="'ftp://x' is no http"):
        CrawlParams(start_urls=("ftp://x",))
    assert json.loads(CrawlParams(start_urls=("http://x/",)).model_dump_json())["max_pages"] == 10_000
