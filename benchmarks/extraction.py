"""Main-text extractors on five labelled sites: words of the content kept, words from elsewhere, pages a second.

`python benchmarks/extraction.py [--folder DIR] [--pages N]` prints one JSON line. The sites are manuals that Debian
packages carry (fetched into DIR with `apt-get download`) and the bundled one. What is content, a rule a site says: its
content elements, without what in these is the site's. Peers run beside ours, on the same pages, in the same process.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import polars as pl
from lxml import html

from llmcore.quickstart import bundled
from llmcore.schema import DOCUMENT_SCHEMA, document_id
from llmcore.sources.encodings import decode
from llmcore.sources.site import pages_of
from llmcore.text.clean import CleanParams, cleaned
from llmcore.text.extract import ExtractParams
from llmcore.text.page_text import main_text
from llmcore.text.site_lines import LearnParams, learn
from llmcore.text.trim import TrimParams, trim
from tests.local_files import LocalFiles, LocalRun

WORD = re.compile(r"\w*[^\W\d]\w*")  # with a letter: some extractors number the items of a list
NO_TEXT = "//script | //style | //head | //noscript | //template | //button | //input | //select | //textarea"
MOST_BYTES = 400_000  # a larger page (an index of thousands of lines) would be most of its site's words


def has(name: str) -> str:
    """XPath: the element has this class."""
    return f"contains(concat(' ', normalize-space(@class), ' '), ' {name} ')"


@dataclass(frozen=True)
class Site:
    """package, pages: where it comes from; content: XPath of the content; elsewhere: of what in there is none."""

    name: str
    package: str
    pages: str
    content: str
    elsewhere: str


SITES = (
    Site(
        "Debian handbook",
        "debian-handbook",
        "usr/share/doc/debian-handbook/html/en-US/*.html",
        "//body",
        f"//*[{has('docnav')} or @id='banner' or @id='title']",
    ),
    Site(
        "LibreOffice help",
        "libreoffice-help-en-us",
        "usr/share/libreoffice/help/en-US/text/**/*.html",
        "//*[@id='DisplayArea']",
        "",
    ),
    Site(
        "SQLite",
        "sqlite3-doc",
        "usr/share/doc/sqlite3/**/*.html",
        "//body",
        f"/html/body/div[@class='nosearch'] | //*[{has('fancy_toc')}] | //p[contains(., 'page last modified')]",
    ),
    Site(
        "Bash guide",
        "abs-guide",
        "usr/share/doc/abs-guide/html/*.html",
        "//body",
        f"//*[{has('NAVHEADER')} or {has('NAVFOOTER')}]",
    ),
    Site(
        "Apache httpd",
        "",
        "",
        "//*[@id='page-content']",
        "//*[@id='quickview' or @id='comments_section']"
        f" | //*[{has('up')} or {has('top')} or {has('toplang')} or {has('bottomlang')}]",
    ),
)


def fetched(package: str, folder: Path) -> tuple[Path, str]:
    """The unpacked package, and the digest of its file."""
    archives = sorted(folder.glob(f"{package}_*.deb"))
    if not archives:
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True, capture_output=True)
        archives = sorted(folder.glob(f"{package}_*.deb"))
    unpacked = folder / archives[-1].stem
    if not unpacked.exists():
        subprocess.run(["dpkg-deb", "-x", archives[-1], unpacked], check=True)
    return unpacked, hashlib.sha256(archives[-1].read_bytes()).hexdigest()


def bodies(site: Site, folder: Path) -> tuple[list[bytes], str]:
    """All pages of a site, in order of their digests, and the digest of where they come from."""
    if site.package:
        root, digest = fetched(site.package, folder)
        found = [path.read_bytes() for path in root.glob(site.pages) if path.is_file() and not path.is_symlink()]
    else:
        found = [page.body for page in pages_of(bundled("site.tar.xz")).values()]
        digest = hashlib.sha256(bundled("site.tar.xz").read_bytes()).hexdigest()
    right = {body for body in found if len(body) <= MOST_BYTES}
    return sorted(right, key=lambda body: hashlib.sha256(body).digest()), digest


def content_words(page: str, site: Site) -> Counter[str]:
    """What the site's rule calls content."""
    tree = html.document_fromstring(page.encode(), parser=html.HTMLParser(encoding="utf-8"))
    for path in filter(None, (NO_TEXT, site.elsewhere)):
        for element in tree.xpath(path):
            if element.getparent() is not None:
                element.drop_tree()
    return Counter(word for part in tree.xpath(site.content) for word in WORD.findall(" ".join(part.itertext())))


def extractors() -> dict[str, Callable[[str], str]]:
    """Name -> page to text; trafilatura where it can be imported (its justext needs lxml_html_clean unsaid)."""
    from resiliparse.extract.html2text import extract_plain_text

    options = ExtractParams().of_a_page()
    found: dict[str, Callable[[str], str]] = {
        "llmcore": lambda page: main_text(page, **options).text,
        "resiliparse main": lambda page: extract_plain_text(page, main_content=True, alt_texts=False),
        "resiliparse all": lambda page: extract_plain_text(page, alt_texts=False),
    }
    with suppress(ImportError):
        import trafilatura

        found["trafilatura"] = lambda page: trafilatura.extract(page, deduplicate=False) or ""
        found["trafilatura, recall"] = lambda page: (
            trafilatura.extract(page, deduplicate=False, favor_recall=True) or ""
        )
    return found


def measured(pages: list[str], truths: list[Counter[str]], extract: Callable[[str], str]) -> dict[str, float]:
    """Shares over all words of the pages, and pages a second on one core."""
    began = time.process_time()
    texts = [extract(page) for page in pages]
    seconds = time.process_time() - began
    return {**shares(texts, truths), "pages_per_second": round(len(pages) / seconds, 1)}


def trimmed(texts: list[str], folder: Path) -> list[str]:
    """What clean and trim leave of a site's pages, whose repeated lines were learned from these."""
    told = json.dumps({"extracted_from": "text/html"})
    rows = [
        (document_id("site", text, str(n)), text, "site", str(n), "unknown", None, None, None, told)
        for n, text in enumerate(texts)
    ]
    documents = pl.DataFrame(rows, schema=DOCUMENT_SCHEMA, orient="row")
    documents = documents.with_columns(text=cleaned(documents["text"], CleanParams())[0])
    (folder / "in/kept").mkdir(parents=True)
    documents.write_parquet(folder / "in/kept/g000-site-00000.parquet")
    run = LocalRun(folder / "run")
    learn({"documents": LocalFiles(folder / "in")}, LearnParams(), run)
    left = trim(documents, TrimParams(min_characters=1), site_lines=LocalFiles(run.out)).outputs
    kept = {url: text for url, text in left["kept"].select("url", "text").iter_rows()}
    return [kept.get(str(n), "") for n in range(len(texts))]


def shares(texts: list[str], truths: list[Counter[str]]) -> dict[str, float]:
    """Words of the content that are in the texts, and words of the texts that are not of the content."""
    kept = foreign = words = 0
    for text, truth in zip(texts, truths, strict=True):
        found = Counter(WORD.findall(text))
        kept, foreign, words = kept + (found & truth).total(), foreign + (found - truth).total(), words + found.total()
    return {
        "kept": round(kept / sum(truth.total() for truth in truths), 4),
        "elsewhere": round(foreign / max(words, 1), 4),
    }


def main() -> None:
    """Measure all of them on all sites."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--folder", type=Path, help="where the packages are, or are fetched to")
    arguments.add_argument("--pages", type=int, default=100, help="of each site, the same ones every time")
    given = arguments.parse_args()
    peers = ("resiliparse", "trafilatura", "lxml")
    told: dict[str, object] = {"benchmark": "extraction", "versions": {name: version(name) for name in peers}}
    sites = told["sites"] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for site in SITES:
            found, digest = bodies(site, given.folder or Path(temporary))
            pages = [decode(body, html=True) for body in found[: given.pages]]
            labelled = [(page, words) for page in pages if (words := content_words(page, site))]
            pages, truths = [page for page, _ in labelled], [words for _, words in labelled]
            figures = {name: measured(pages, truths, extract) for name, extract in extractors().items()}
            texts = [extractors()["llmcore"](page) for page in pages]
            with tempfile.TemporaryDirectory() as work:
                figures["llmcore, clean and trim"] = shares(trimmed(texts, Path(work)), truths)
            sites[site.name] = {"sha256": digest, "of": len(found), "pages": len(pages), **figures}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
