"""Which elements of a page are the site's instead of the page's: they are taken out of its tree.

Method: elements that HTML, ARIA or their class or id call navigation, header, footer, search and the like, after
resiliparse's main-content rules (Bevendorff et al. 2018), with two differences. A rule about names takes no element
that reads as prose (LINKED, MOST_TEXT), and no element is taken for where it lies: lists and boxes in the body stay.

Collections of resiliparse are sliced before they are walked: an index costs it as much as the whole collection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

# what is no text of the page whatever it is called
OUTSIDE = (
    "nav, iframe, dialog, template, button, select, textarea, [hidden], [aria-hidden=true], [role=navigation], "
    "[role=banner], [role=contentinfo], [role=search], [role=menu], [role=menubar], [role=alert], [role=dialog], "
    '[style*="display:none"], [style*="display: none"], [style*="visibility:hidden"]'
)
# the site's, unless they belong to an article or hold the page's title
PERIPHERAL = "header, footer, aside"
ARTICLES = "main, article, section, [role=main], [role=article]"
NAMED = re.compile(
    r"""(?ix) (?:^|[\s_-]) (?:
        (?:[a-z]+-?)?nav (?:bar|igation|header|footer|links|list|menu)? | breadcrumbs? | menu(?:bar)? | mainmenu
      | pager | pagination | masthead | (?:page|site|global)-?(?:header|footer) | footer | top-?bar
      | cookies? | consent | shar(?:e|ing) | social | search(?:-?(?:box|bar|form))? | skip(?:-?(?:link|to|nav))?
      | (?:top|bottom)-?lang | lang(?:uage)?s?-?(?:list|links|switch(?:er)?|select(?:or)?|picker|menu|bar)
      | ads? | advert(?:s|isement)? | banner | promo(?:ted)? | newsletter | popup | modal | lightbox
      | hidden | invisible | display-none | sr-only | visually-hidden
    ) (?:$|[\s_-])"""
)
BLOCKS = frozenset({"center", "div", "dl", "form", "li", "ol", "p", "section", "table", "tbody", "td", "tr", "ul"})
LINKED = 0.3  # of an element's text in links: below that, and above FEW characters, it is prose
FEW = 500
MOST_TEXT = 0.5  # of the page's text: an element that holds more is the page


def outside(body: Any) -> Iterator[Any]:
    """Elements that are no text of the page by what HTML and ARIA say."""
    yield from body.query_selector_all(OUTSIDE)[:]
    for element in body.query_selector_all(PERIPHERAL)[:]:
        title = element.tag == "header" and element.query_selector("h1") is not None
        if not title and element.parent.closest(ARTICLES) is None:
            yield element


def named_outside(body: Any) -> Iterator[Any]:
    """Block elements that are the site's by their class or id, and do not read as prose."""
    most = MOST_TEXT * len(body.text or "")
    for element in body.query_selector_all("[class], [id]")[:]:
        names = f"{element.getattr('class', '')} {element.getattr('id', '')}"
        if element.tag in BLOCKS and NAMED.search(names) and not _prose(element, most):
            yield element


def take_out(elements: Iterable[Any], keep: str) -> None:
    """Remove elements from their tree, but for what `keep`, a list of CSS selectors, matches."""
    for element in list(elements):
        if not keep:
            _remove(element)
        elif element.closest(keep) is None:
            _remove_around(element, keep)


def characters(text: str) -> int:
    """Characters but white space and the bullets that an extractor writes."""
    return sum(map(len, text.split())) - text.count("•")


def linked_characters(element: Any) -> int:
    """How many of them are in links."""
    return sum(characters(link.text or "") for link in element.query_selector_all("a[href]")[:])


def _prose(element: Any, most: float) -> bool:
    size = len(element.text or "")
    if size > most:
        return True
    return size > FEW and linked_characters(element) < LINKED * size


def _remove_around(element: Any, keep: str) -> None:
    if element.query_selector(keep) is None:
        _remove(element)
        return
    for child in element.child_nodes[:]:
        if not hasattr(child, "query_selector"):
            _remove(child)
        elif not child.matches(keep):
            _remove_around(child, keep)


def _remove(node: Any) -> None:
    if node.parent is not None:
        node.parent.remove_child(node)
