"""The shape of code and tables, carried through an extractor that makes lines of everything.

Marks are put into the page's tree before its text is taken, and read in the text: a row of a table becomes one line
with a tab between its cells, and a block of code keeps its indentation where the extractor would indent its first line.
"""

from __future__ import annotations

import re
from typing import Any

# noncharacters: no page's text may hold them (Unicode 23.7)
ROW, CELL, END, CODE = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3"
MARKS = f"[{ROW}{CELL}{END}{CODE}]"
WHOLE_ROW = re.compile(f"{ROW}([^{ROW}{END}]*){END}[ \t]*")
CODE_START = re.compile(f"(?m)^ +{CODE}")
# a row that holds these, or is longer, lays out a page
LAYOUT = "table, pre, h1, h2, h3, h4, h5, h6"
ROW_CHARACTERS = 2000


def unmarked(html: str) -> str:
    """The page without characters that are marks here."""
    return re.sub(MARKS, "", html) if any(mark in html for mark in (ROW, CELL, END, CODE)) else html


def mark(tree: Any) -> None:
    """Put marks around the rows of tables of data and before blocks of code."""
    for code in tree.body.query_selector_all("pre")[:]:
        code.insert_before(tree.create_text_node(CODE), code.first_child)
    for row in tree.body.query_selector_all("tr")[:]:
        cells = [cell for cell in row.children[:] if cell.tag in ("td", "th")]
        if len(cells) > 1 and row.query_selector(LAYOUT) is None and len(row.text or "") <= ROW_CHARACTERS:
            for number, cell in enumerate(cells):
                cell.insert_before(tree.create_text_node(CELL if number else ROW), cell.first_child)
            cells[-1].append_child(tree.create_text_node(END))


def shaped(text: str) -> str:
    """The text that an extractor made of a marked page: rows on lines of their own, code as it was, no marks."""
    if ROW in text:
        text = WHOLE_ROW.sub(_row, text)
    if CODE in text:
        text = CODE_START.sub("", text)
    return re.sub(MARKS, "", text)


def _row(found: re.Match[str]) -> str:
    return "\t".join(" ".join(cell.split()) for cell in found[1].split(CELL)).rstrip("\t")
