"""Crawl: fetch the pages of named hosts over HTTP, politely, into WARC.

Consent: robots.txt as RFC 9309 says (unreachable = forbidden), Crawl-delay, noai and TDM opt-outs (`consent.py`).
Only the named hosts are fetched, and only public addresses unless a host is allowed by name. Fetching happens in a
process of its own (`spider.py`, Scrapy).

A crawl is one generation: `raw/gNNN.warc.gz` holds what it fetched (in URL order), `fetches/gNNN.parquet` every URL
it asked for and what came of it. A refresh (role "previous") asks conditionally (RFC 9110, 13), keeps the earlier
files as they are and adds a generation with what is new or changed; when nothing is, it adds no raw file.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Literal, cast
from urllib.parse import urlsplit

import polars as pl
from pydantic import Field, field_validator

from llmcore.artifacts.params import Params
from llmcore.artifacts.shards import generation_name
from llmcore.artifacts.stage import Files, Run, Stage
from llmcore.errors import LlmcoreError, UsageError
from llmcore.sources.collect import next_generation
from llmcore.sources.urls import clean_url, host_and_port

FETCH_SCHEMA = pl.Schema(
    {
        "url": pl.String(),
        "outcome": pl.String(),  # fetched, unchanged, gone, forbidden, redirect, off_host, too_large, failed
        "status": pl.Int32(),  # of HTTP; null where no answer came
        "reason": pl.String(),  # fetched: new or changed; redirect: its target; otherwise why
        "fetched_at": pl.Datetime("us", "UTC"),
        "depth": pl.Int32(),  # links from a start URL
        "etag": pl.String(),
        "last_modified": pl.String(),
        "content_digest": pl.String(),  # SHA-256 of the body
    }
)

QUICKSTART_FORBIDDEN = ("/en/developer/",)
QUICKSTART_DELAY_SECONDS = 0.01


class CrawlParams(Params):
    """What to crawl, within which limits, and under whose name."""

    name: str = Field(
        "crawl", pattern=r"^[a-z0-9][a-z0-9_]*$", max_length=40, description="of the source, in lower case"
    )
    licence: str = Field("unknown", description="SPDX identifier of what the site publishes")
    start_urls: tuple[str, ...] = Field(min_length=1, description="where the crawl starts")
    allowed_hosts: tuple[str, ...] = Field(
        (), description="host[:port] that may be fetched; empty = those of start_urls"
    )
    sitemap: bool = Field(True, description="also start from the sitemaps that robots.txt names (or /sitemap.xml)")
    follow_links: bool = Field(True, description="follow links inside the allowed hosts")
    max_pages: int = Field(10_000, ge=1, description="pages asked for at most")
    max_links: int = Field(2_000, ge=1, description="links followed from one page at most, the first ones")
    max_depth: int = Field(20, ge=0, description="links away from a start URL at most")
    max_bytes: int = Field(8 * 1024 * 1024, ge=1, description="bytes of one page at most, after decompression")
    max_seconds: float = Field(6 * 3600.0, gt=0, description="seconds for the whole crawl")
    timeout: float = Field(30.0, gt=0, description="seconds for one page")
    concurrency: int = Field(4, ge=1, le=64, description="requests under way to one host")
    min_delay: float = Field(
        0.0, ge=0, description="seconds between two requests to a host, where robots.txt asks for less"
    )
    user_agent: str = Field(
        "llmcore/1.0", min_length=1, description="whom the sites see; robots.txt rules for its first word apply"
    )
    allow_private_hosts: tuple[str, ...] = Field(
        (), description="host[:port] that may be a private or loopback address"
    )
    serve: Literal["quickstart", "folder"] | None = Field(
        None, description="serve the bundled site (or a folder) at the first start URL"
    )
    snapshot: str = Field("first", description="label of this crawl: another label fetches again")

    @field_validator("start_urls")
    @classmethod
    def _http_only(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"{url!r} is no http(s) URL")
            if parts.username or parts.password:
                raise ValueError(f"a start URL on {parts.hostname} holds credentials; every record would show them")
        return urls


def crawl(inputs: Mapping[str, Files], params: CrawlParams, run: Run) -> dict[str, Any]:
    """Fetch one generation; `run.outside` may hold `serve_path` and `overlay`, folders of the site served meanwhile.

    Returns pages (in the corpus so far), new, changed, unchanged, gone, forbidden, failed.
    Raises LlmcoreError for a start URL that cannot be fetched and for a crawl that yields no page.
    """
    following, earlier = carry_earlier(inputs.get("previous"), run)
    known = known_pages(earlier)
    generation = generation_name(run.generation or following)
    with scratch_folder(run.scratch / "crawl") as folder, served(params, run.outside) as private:
        fetch_all(params, known, private, folder, run)
        fetches = read_fetches(folder / "fetches.jsonl")
        check_start_urls(params, fetches, refresh=bool(earlier))
        written = write_warc(fetches, folder / "bodies.bin", run.out / "raw" / f"{generation}.warc.gz")
    table = pl.DataFrame(fetches, schema=FETCH_SCHEMA)
    (run.out / "fetches").mkdir(exist_ok=True)
    table.write_parquet(run.out / "fetches" / f"{generation}.parquet", compression="zstd")
    if not written and not known:
        reasons = table.filter(pl.col("reason").is_not_null())["reason"].head(1).to_list()
        raise LlmcoreError(
            f"{params.start_urls[0]}: the crawl of {params.name!r} yields no page ({'; '.join(reasons) or 'no answer'})"
        )
    return metrics(pl.concat([*earlier, table]), table)


def metrics(everything: pl.DataFrame, now: pl.DataFrame) -> dict[str, int]:
    """Counts by outcome; pages: distinct URLs that the raw files hold."""
    count = dict(now.group_by("outcome").len().iter_rows())
    reasons = dict(now.filter(pl.col("outcome") == "fetched").group_by("reason").len().iter_rows())
    return {
        "pages": everything.filter(pl.col("outcome") == "fetched")["url"].n_unique(),
        "new": reasons.get("new", 0),
        "changed": reasons.get("changed", 0),
        "unchanged": count.get("unchanged", 0),
        "gone": count.get("gone", 0),
        "forbidden": count.get("forbidden", 0),
        "failed": count.get("failed", 0) + count.get("too_large", 0),
    }


def carry_earlier(previous: Files | None, run: Run) -> tuple[int, list[pl.DataFrame]]:
    """Carry an earlier crawl's files over as they are; returns the number of the next generation, and the fetch tables
    of the earlier ones, oldest first."""
    if previous is None:
        return 0, []
    run.carry("previous")
    tables = [table.cast(FETCH_SCHEMA) for _, table in previous.tables("fetches/")]
    return next_generation(previous.names("fetches/")), tables


def known_pages(fetches: list[pl.DataFrame]) -> dict[str, dict[str, Any]]:
    """URL -> etag, last_modified, content_digest, depth of the newest fetch, and whether the page is gone by now."""
    if not fetches:
        return {}
    history = pl.concat([table.with_columns(generation=pl.lit(number)) for number, table in enumerate(fetches)])
    held = history.filter(pl.col("outcome").is_in(["fetched", "unchanged", "gone"])).sort("url", "generation")
    newest = held.group_by("url", maintain_order=True).agg(
        pl.col("etag", "last_modified", "content_digest", "depth").filter(pl.col("outcome") != "gone").last(),
        gone=pl.col("outcome").last() == "gone",
    )
    return {row.pop("url"): row for row in newest.to_dicts()}


@contextmanager
def served(params: CrawlParams, outside: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Serve the site that the parameters name; yields the private host that this allows."""
    if params.serve is None:
        yield ()
        return
    from llmcore.quickstart import bundled
    from llmcore.sources.site import Site

    if params.serve == "folder" and "serve_path" not in outside:
        raise UsageError("serve: 'folder' needs serve_path, the folder of the site to serve")
    quickstart = params.serve == "quickstart"
    parts = urlsplit(params.start_urls[0])
    overlay = outside.get("overlay")
    site = Site(
        bundled("site.tar.xz") if quickstart else Path(outside["serve_path"]),
        parts.port or 80,
        host=str(parts.hostname),
        forbidden=QUICKSTART_FORBIDDEN if quickstart else (),
        crawl_delay=QUICKSTART_DELAY_SECONDS if quickstart else None,
        overlay=Path(overlay) if overlay else None,
    )
    with site:
        yield (host_and_port(params.start_urls[0]),)


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """An empty folder that is gone afterwards: a crawl that was cut off starts again, never from half a spool."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fetch_all(params: CrawlParams, known: Mapping[str, Any], private: tuple[str, ...], folder: Path, run: Run) -> None:
    """Run the spider to its end, passing its progress on; it dies with this process, and when this raises."""
    hosts = params.allowed_hosts or tuple(urlsplit(url).netloc.rpartition("@")[2].lower() for url in params.start_urls)
    spec = {**params.model_dump(mode="json"), "known": known, "allowed_hosts": sorted(set(hosts))}
    spec["private_hosts"] = sorted({*params.allow_private_hosts, *private})
    (folder / "spec.json").write_text(json.dumps(spec))
    with (folder / "errors.txt").open("wb") as errors:
        spider = subprocess.Popen(
            [sys.executable, "-m", "llmcore.sources.spider", str(folder / "spec.json")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    failure = ""
    with spider:
        try:
            for line in cast(IO[str], spider.stdout):
                word, _, rest = line.strip().partition(" ")
                if word == "PROGRESS":
                    done, total = rest.split()
                    run.progress(float(done), float(total), "pages")
                elif word == "FAILED":
                    failure = rest
        except BaseException:
            spider.kill()
            raise
    if spider.returncode:
        said = [f"exit code {spider.returncode}", *(folder / "errors.txt").read_text(errors="replace").split("\n")]
        last = [line.strip() for line in said if line.strip()][-1]
        raise LlmcoreError(f"{params.start_urls[0]}: the crawler stopped: {failure or last}")


def read_fetches(path: Path) -> list[dict[str, Any]]:
    """The spider's records in URL order."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["fetched_at"] = datetime.fromisoformat(row["fetched_at"])
    return sorted(rows, key=lambda row: (str(row["url"]), str(row["outcome"])))


def check_start_urls(params: CrawlParams, fetches: list[dict[str, Any]], refresh: bool) -> None:
    """A first crawl must reach every start URL; a refresh may find one down for a while."""
    if refresh:
        return
    outcomes = {row["url"]: row for row in fetches}
    for url in params.start_urls:
        row = outcomes.get(clean_url(url))
        if row is None or row["outcome"] in ("failed", "too_large", "off_host", "forbidden"):
            reason = row["reason"] if row else "it was not asked for"
            if row and row["outcome"] == "off_host":
                reason = f"it redirects to {reason}; name that host in allowed_hosts, or start there"
            raise LlmcoreError(f"start_urls: {url} cannot be crawled: {reason}")


def write_warc(fetches: list[dict[str, Any]], bodies: Path, path: Path) -> int:
    """One response record a fetched page, in URL order; returns how many. No page, no file."""
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    fetched = [row for row in fetches if row["outcome"] == "fetched"]
    if not fetched:
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as out, bodies.open("rb") as spool:
        writer = WARCWriter(out, gzip=True, warc_version="WARC/1.1")
        for row in fetched:
            spool.seek(row["offset"])
            headers = [(name, value) for name, value in row["headers"]] + [("Content-Length", str(row["length"]))]
            identity = hashlib.sha256(f"{row['url']} {row['content_digest']}".encode()).digest()[:16]
            record = writer.create_warc_record(
                row["url"],
                "response",
                payload=io.BytesIO(spool.read(row["length"])),
                http_headers=StatusAndHeaders(f"{row['status']} OK", headers, protocol="HTTP/1.1"),
                warc_headers_dict={
                    "WARC-Date": row["fetched_at"].strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                    "WARC-Record-ID": f"<urn:uuid:{uuid.UUID(bytes=identity, version=4)}>",
                },
            )
            writer.write_record(record)
    return len(fetched)


def data(params: CrawlParams) -> dict[str, Path]:
    """The bundled site, where that is what is crawled."""
    from llmcore.quickstart import bundled

    return {"site.tar.xz": bundled("site.tar.xz")} if params.serve == "quickstart" else {}


STAGE = Stage(
    "crawl",
    version=2,
    role="fetch",
    params=CrawlParams,
    function="llmcore.sources.crawl:crawl",
    data="llmcore.sources.crawl:data",
)
