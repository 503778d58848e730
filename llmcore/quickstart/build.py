"""Make the bundled files again: `python -m llmcore.quickstart.build RAW [TARGET]`.

RAW holds `sotu/*.json`, `site/httpd/<language>/**.html`, `benchmarks/*.jsonl` and `licences/*`. The same RAW gives
the same bytes.
"""

from __future__ import annotations

import hashlib
import html
import io
import json
import lzma
import re
import shutil
import sys
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from llmcore.quickstart import FOLDER

ARCHIVE_DATE = "2026-01-15T12:00:00Z"
ARCHIVE_HOST = "http://mirror.example/httpd"
SITE_DATE = 1_767_225_600  # 2026-01-01T00:00:00Z, every page's Last-Modified

EXACT = 14  # pages of the archive that are on the site already, byte for byte
NEAR = 14  # pages of the archive with a few sentences changed

PII_TEXT = """
<p>The mirror has been kept by a small group of volunteers since the first release of the server, and this page says
how to reach them. Most questions are answered in the manual, so please read the chapter on your module before you
write to anybody.</p>
<p>If a page looks damaged, send a mail to jane.mirror@example.org or to
webmaster+mirror@mirror.example.net and quote the address of the page. The person on duty will answer within two days.
Please do not send passwords or private keys in such a message.</p>
<p>In urgent cases you can also call the desk at
+1 202-456-1414 between nine in the morning and five in the afternoon, or leave a message under (212) 736-5000 at any
other time. Somebody will call you back as soon as the machine has been looked at.</p>
<p>The master copy is served
from 198.51.100.23 and the public resolver that we use is 8.8.8.8, while the second machine has the address
2001:db8:85a3::8a2e:370:7334 and is only used when the first one is down. Both are watched by a program that was
written by one of the volunteers, and it sends a report every night.</p>
<p>Gifts to the group are welcome. They are
paid into the account GB82 WEST 1234 5698 7654 32, or by card: the test card number 4111 1111 1111 1111 must never be
used for a real payment. A receipt is sent to the address that you give us.</p>
"""


def build(raw: Path, target: Path) -> None:
    """Write every bundled file below `target` from the raw material below `raw`."""
    for folder in ("sotu", "site/httpd", "benchmarks", "licences"):
        if not (raw / folder).is_dir():
            raise SystemExit(f"{raw / folder} is missing: the first argument is the folder of the raw material")
    target.mkdir(parents=True, exist_ok=True)
    addresses(raw / "sotu").write_parquet(target / "sotu.parquet", compression="zstd", compression_level=22)
    (target / "site.tar.xz").write_bytes(site(raw / "site/httpd"))
    (target / "archive.warc.gz").write_bytes(archive(raw))
    for name in ("benchmarks", "licences"):
        (target / name).mkdir(exist_ok=True)
        for path in sorted((raw / name).iterdir()):
            shutil.copyfile(path, target / name / path.name)


def addresses(folder: Path) -> pl.DataFrame:
    """233 State of the Union addresses, whole: text, url (a stable name), year, name, party."""
    rows = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    for row in rows:
        row["url"] = f"sotu/{row['year']}-{re.sub(r'[^a-z]+', '-', row['name'].lower()).strip('-')}"
    table = pl.DataFrame(rows, schema_overrides={"year": pl.Int32}).sort("url")
    return table.select("text", "url", "year", "name", "party")


def site(folder: Path) -> bytes:
    """The pages as a tar archive, xz, in name order and with one date."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(folder.rglob("*.html")):
            entry = tarfile.TarInfo(path.relative_to(folder).as_posix())
            entry.size, entry.mtime, entry.mode = path.stat().st_size, SITE_DATE, 0o644
            tar.addfile(entry, io.BytesIO(path.read_bytes()))
    return lzma.compress(packed.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def archive(raw: Path) -> bytes:
    """A small WARC: copies and near-copies of the site's pages, and a page for each thing later stages must find."""
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    out = io.BytesIO()
    writer = WARCWriter(out, gzip=True, warc_version="WARC/1.1")

    def write(url: str, status: str, content_type: str, body: bytes, kind: str = "response") -> None:
        digest = hashlib.sha256(f"{kind} {url}".encode() + body).digest()
        record = writer.create_warc_record(
            url,
            kind,
            payload=io.BytesIO(body),
            http_headers=StatusAndHeaders(
                status, [("Content-Type", content_type), ("Content-Length", str(len(body)))], protocol="HTTP/1.1"
            ),
            warc_headers_dict={
                "WARC-Date": ARCHIVE_DATE,
                "WARC-Record-ID": f"<urn:uuid:{uuid.UUID(bytes=digest[:16], version=4)}>",
            },
        )
        writer.write_record(record)

    html_type = "text/html; charset=UTF-8"
    for url, page in sorted(archived_pages(raw)):
        write(url, "200 OK", html_type, page)
    write(
        f"{ARCHIVE_HOST}/en/missing.html", "404 Not Found", html_type, b"<html><body><h1>Not Found</h1></body></html>"
    )
    write(f"{ARCHIVE_HOST}/en/moved.html", "301 Moved Permanently", html_type, b"")
    write(f"{ARCHIVE_HOST}/style/manual.css", "200 OK", "text/css", b"#page-content { margin: 0 }\n")
    return out.getvalue()


def archived_pages(raw: Path) -> Iterator[tuple[str, bytes]]:
    """(URL, HTML) of every page of the archive that is a document."""
    folder = raw / "site/httpd"
    candidates = [
        path for path in sorted((folder / "en/mod").glob("mod_*.html")) if 12_000 < path.stat().st_size < 40_000
    ]
    chosen = candidates[:: max(1, len(candidates) // (EXACT + NEAR))][: EXACT + NEAR]
    for number, path in enumerate(chosen):
        name = path.relative_to(folder).as_posix()
        page = path.read_bytes()
        if number % 2 == 0:
            yield f"{ARCHIVE_HOST}/{name}", page
        else:
            yield f"{ARCHIVE_HOST}/2025/{name}", slightly_changed(page, number)
    yield f"{ARCHIVE_HOST}/practice/questions.html", page_of("Questions to practise on", questions(raw / "benchmarks"))
    yield f"{ARCHIVE_HOST}/contact.html", page_of("How to reach the people of this mirror", PII_TEXT)


def slightly_changed(page: bytes, number: int) -> bytes:
    """The page with one sentence more, before its last paragraph: a near-duplicate, not an exact one."""
    content, languages, rest = page.partition(b'<div class="bottomlang">')
    before, mark, after = content.rpartition(b"<p>")
    note = (
        f"<p>This copy was checked by the mirror's volunteers, who made {number} small remarks on it last year.</p>\n"
    )
    return before + note.encode() + mark + after + languages + rest


def questions(folder: Path) -> str:
    """Benchmark questions word for word, as an article that no other filter objects to: decontamination's canary."""
    lines = (folder / "gsm8k.jsonl").read_text("utf-8").splitlines()
    asked = [json.loads(line)["prompt"] for line in lines[:12]]
    intro = (
        "These are questions that a teacher of this school has put to the class over the last years. Each of them can "
        "be answered with a pencil and some patience, and none of them needs more than the first term taught."
    )
    return "\n".join(f"<p>{html.escape(text, quote=False)}</p>" for text in [intro, *asked])


def page_of(title: str, body: str) -> bytes:
    """A whole HTML page in the site's frame: navigation first, then the content."""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><title>{title}</title></head><body id="manual-page">'
        '<div id="page-header"><p class="menu"><a href="./index.html">Index</a> | '
        '<a href="./contact.html">Contact</a></p></div>'
        f'<div id="page-content"><h1>{title}</h1>\n{body}\n</div>'
        '<div id="footer"><p class="menu"><a href="./index.html">Index</a></p></div></body></html>\n'
    ).encode()


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit("usage: python -m llmcore.quickstart.build RAW [TARGET]")
    build(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else FOLDER)
