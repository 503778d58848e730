"""Main-text extractors on the bundled site: speed, words of the content kept, navigation let through.

`python benchmarks/extract.py` prints one JSON line an extractor. Truth: the page's #page-content without its language
list, side bar and comment form; navigation: page header, path, footer, language list and side bar.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable

from lxml import html

from llmcore.quickstart import bundled
from llmcore.sources.formats import decode
from llmcore.sources.site import pages_of
from llmcore.text.page_text import main_text

OUTSIDE = (
    "//*[@id='page-header' or @id='path' or @id='footer' or @id='quickview' or @id='comments_section']",
    "//*[contains(concat(' ', @class, ' '), ' up ') or contains(concat(' ', @class, ' '), ' top ')]",
    "//*[contains(@class, 'toplang') or contains(@class, 'bottomlang')]",
)


def plain(text: str) -> str:
    """Letters and digits only, one space apart, for finding a line wherever an extractor puts it."""
    return " " + " ".join(re.findall(r"\w+", text)) + " "


def truth(page: str) -> tuple[Counter[str], set[str]]:
    """(words of the content, navigation blocks that the content does not hold as well) of one page of the site."""
    tree = html.fromstring(page)
    for element in tree.xpath("//script | //style | //head"):
        element.drop_tree()
    navigation: set[str] = set()
    for path in OUTSIDE:
        for element in tree.xpath(path):
            navigation |= {plain(block.text_content()) for block in element.xpath(".//p | .//li")}
            element.drop_tree()
    content = " ".join(tree.xpath("//*[@id='page-content']")[0].itertext())
    return Counter(content.split()), {block for block in navigation if len(block) > 5 and block not in plain(content)}


def extractors() -> dict[str, Callable[[str], str]]:
    """Name -> page to text."""
    import trafilatura
    from resiliparse.extract.html2text import extract_plain_text

    return {
        "llmcore": lambda page: main_text(page),
        "resiliparse, main_content": lambda page: extract_plain_text(page, main_content=True),
        "resiliparse, all text": lambda page: extract_plain_text(page),
        "trafilatura": lambda page: trafilatura.extract(page, deduplicate=False) or "",
        "trafilatura, no fallback": lambda page: trafilatura.extract(page, deduplicate=False, no_fallback=True) or "",
    }


def main() -> None:
    """Run them all over the site."""
    pages = [decode(page.body, html=True) for _, page in sorted(pages_of(bundled("site.tar.xz")).items())][::5]
    truths = [truth(page) for page in pages]
    for name, extract in extractors().items():
        began = time.perf_counter()
        texts = [extract(page) for page in pages]
        seconds = time.perf_counter() - began
        kept = told = let = lines = foreign = words = empty = 0
        for text, (content, navigation) in zip(texts, truths, strict=True):
            found = Counter(text.split())
            kept, told = kept + (found & content).total(), told + content.total()
            foreign, words = foreign + (found - content).total(), words + found.total()
            flat = plain(text)
            let, lines = let + sum(block in flat for block in navigation), lines + len(navigation)
            empty += not text.strip()
        figures = {
            "extractor": name,
            "pages": len(pages),
            "pages_per_second": round(len(pages) / seconds, 1),
            "content_words_kept": round(kept / told, 4),
            "words_not_of_the_content": round(foreign / max(words, 1), 4),
            "navigation_blocks_kept": round(let / lines, 4),
            "empty": empty,
        }
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
