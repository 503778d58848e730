"""Tables for people, JSON for programs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

# what moves the cursor, colours, or turns the direction of writing: a text must not write over what stands beside it
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def print_json(data: Any) -> None:
    print(json.dumps(data, indent=1, ensure_ascii=False, default=str))


def print_table(columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    names = list(columns)
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*("" if row.get(name) is None else short(row[name]) for name in names))
    # piped output is for other programs: never cut it at a guessed width
    Console(width=None if sys.stdout.isatty() else 400, markup=False, highlight=False, emoji=False).print(table)


def visible(text: str) -> str:
    """A text from outside as a terminal may show it: control characters as �, all but tabs and line ends."""
    return UNPRINTABLE.sub("�", text.replace("\r\n", "\n"))


def short(value: Any) -> str:
    text = visible(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= 1000 else text[:999] + "…"
