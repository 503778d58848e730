"""Telephone numbers: Google's libphonenumber, asked only where seven digits stand together, and what is believed of it.

`phonenumbers.PhoneNumberMatcher` reads a text character by character in Python, once for each region; that was two
thirds of the stage's time. `windows` finds by two regular expressions what the matcher can cross in one candidate:
digits, and between them punctuation and the letters of "extension". A candidate never reaches from one such cluster
into another, and what the matcher looks at around a candidate (the character before, brackets and plus signs that lead
it, the character after) is in the window. So the matcher finds in the windows every match of seven digits or more that
it finds in the text.

Not every match is a telephone number. Where a word such as "phone" stands before it, or "+" begins it, it is believed;
else only where it doesn't look like a number of another kind.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

from llmcore.text.pii_context import phone_is_named

# `_VALID_PUNCTUATION` of phonenumbers: what may stand between the digits of a number, four at most in a row.
PUNCTUATION = "-xX‐-―−ー－-／ \u00a0\u00ad\u200b\u2060\u3000()（）．\\[\\]/~⁓∼～［］."
# Readable by Python's and by polars' regular expressions. Fewer digits are no telephone number here.
EVIDENCE = rf"\d(?:[{PUNCTUATION}]{{0,4}}\d){{6}}"
# What else may stand before the digits of an extension ("ext. 5", "доб. 5", ";ext=5"), in both cases and in what Python
# takes for their other case; more would do no harm.
_EXTENSION = ";=\\t,:#＃?extnsioóaEXTNSIOÓAдобДОБｅｘｔｎｉＥＸＴＮＩ\u0301ſıİᲁᲂ"
_CLUSTER = re.compile(rf"\d(?:[{PUNCTUATION}{_EXTENSION}]*\d)*")
_EVIDENCE = re.compile(EVIDENCE)
_LEAD = 11  # at most two of "(", "[", "+" with four characters of punctuation each, and the character before those
_TRAIL = 2  # "#" after an extension, and the character after it

OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|\d\d?)"
ADDRESS = re.compile(rf"{OCTET}(?:\.{OCTET}){{3}}")
NEVER = re.compile(
    rf"""
      ^(?:1[5-9]|20)\d\d\D{{1,3}}(?:1[5-9]|20)\d\d(?:\D|$)          # years
    | ^(?:1[5-9]|20)\d\d([-/.])(?:0?[1-9]|1[0-2])\1(?:[0-2]?\d|3[01])(?:\D|$)  # a date
    | ^0[xX]\d                                                     # a number in base 16
    | (?<![\d.+]){OCTET}(?:\.{OCTET}){{3}}(?!\.?\d)                # an IP address
    | ^(?:2147483647|2147483648|4294967295|4294967296)$            # the ends of 32 bits
    """,
    re.VERBOSE,
)
# Ways of writing that few other numbers share: they need no word before them.
WRITTEN = re.compile(
    r"""
      ^(?:1[-. ]{0,2})?\([2-9]\d\d\)\ ?[-.]?\d{3}[-. ]\d{4}(?!\d)        # (212) 555-0142
    | ^(?:1[-. ])?[2-9]\d\d([-.])\d{3}\1\d{4}(?!\d)                      # 212-555-0142
    | ^\(?0\d(?:([ .-])\d\d)(?:\2\d\d){3}$                               # 01 70 18 99 00
    | ^0\d{2,4}[/-]\d[\d -]{4,}$                                         # 0171/2345678
    | ^(?:\(0\d{1,5}\)[ /-]?|0\d{1,4}\ )\d[\d -]{4,}$                    # (0171) 2345678, 0171 2345678
    """,
    re.VERBOSE,
)
DOUBTFUL = re.compile(
    r"""
      ^\d+$                                        # without any separator
    | ^\d+[.,]\d+$                                 # a decimal
    | \s[-–—]\s | \s\s | \t                        # columns of a table, or a range
    | \d{5,}\s+\d{5,} | \d{7,}\s+\d | \d\s+\d{7,}  # columns too
    | ^\d{4}[-/.]\d\d?[-/.]\d\d?(?:\D|$)           # a date
    | ^\d{1,3}(?:[ .]\d{3}){2,}$                   # a number in groups of three
    | \d\.\d\d?\s                                  # amounts in a row
    | /                                            # a network or a path
    | ^\d{1,2}\s                                   # a list number before it
    """,
    re.VERBOSE,
)
JOINED_AFTER = re.compile(r"[.,:/%-]?\d|[%_]")
JOINED_BEFORE = re.compile(r"[$£€#=/.,_-]$|\d[:\s]$")
BYTES_BEFORE = re.compile(r"(?:\b[0-9a-f]{4,8}:\s+|(?:\b[0-9a-f]{2}\s){3})$", re.IGNORECASE)  # a dump in base 16
BYTES_AFTER = re.compile(r"(?:\s[0-9a-f]{2}\b){3}", re.IGNORECASE)
# Clusters of which no part is believed without a word before it: one number without separators, a decimal, amounts, of
# which only two together have seven digits.
AMOUNT = r"\d{1,3}(?:,\d{3})+(?:\.\d\d)?"
DOUBTFUL_IN = re.compile(rf"\d+|\d+[.,]\d+|{AMOUNT}(?:[ \t-]+{AMOUNT})*")
# The same, whatever stands before: an IP address; a date with a time, of which only the year begins seven digits; a
# number in base 16.
NEVER_IN = re.compile(
    rf"{OCTET}(?:\.{OCTET}){{3}}|0[xX]\d+|(?:1[5-9]|20)\d\d-(?:0[1-9]|1[0-2])-[0-3]\d(?:[ T]\d\d(?::\d\d)*)?"
)
COLUMNS = re.compile(r"[1-9]\d*(?:[ \t]+[1-9]\d*)+")
PLUS_BEFORE = re.compile(r"[+＋]")


# Language -> where numbers without a country code may be from, beside Presidio's regions. Their rules let nearly any
# eight or nine digits pass, so they count only behind a word such as "phone".
REGIONS = {
    "ar": "EG SA AE MA",
    "bg": "BG",
    "ca": "ES",
    "cs": "CZ",
    "da": "DK",
    "de": "AT CH",
    "el": "GR CY",
    "es": "ES MX AR CO CL PE",
    "fa": "IR",
    "fi": "FI",
    "fr": "BE CH",
    "hr": "HR",
    "hu": "HU",
    "id": "ID",
    "it": "IT CH",
    "ja": "JP",
    "ko": "KR",
    "ms": "MY",
    "nl": "NL BE",
    "no": "NO",
    "pl": "PL",
    "pt": "PT",
    "ro": "RO",
    "ru": "RU",
    "sk": "SK",
    "sl": "SI",
    "sr": "RS",
    "sv": "SE",
    "th": "TH",
    "tr": "TR",
    "uk": "UA",
    "ur": "PK",
    "vi": "VN",
    "zh": "CN TW HK",
}
LOCAL_SCORE = 0.05  # raised to 0.4 by a context word, as Presidio's weakest patterns are


def numbers(
    text: str, regions: tuple[str, ...], leniency: int, language: str, prefilter: bool = True
) -> Iterator[tuple[int, int, bool]]:
    """(start, end, local) of believed numbers: of the regions, and local ones of where the language is spoken.

    prefilter: ask the matcher about windows, not about the whole text, which changes nothing but the time.
    """
    known: set[tuple[int, int]] = set()
    others = tuple(region for region in REGIONS.get(language, "").split() if region not in regions)
    for local, asked in enumerate((regions, others)):
        for start, end in matches(text, asked, leniency, language if prefilter else None):
            if (start, end) not in known and is_phone(text, start, end, language):
                known.add((start, end))
                yield start, end, bool(local)


def matches(text: str, regions: tuple[str, ...], leniency: int, language: str | None) -> list[tuple[int, int]]:
    """Where the matcher finds a number of one of the regions, or one with "+"; each place once, in order.

    language: look in windows only, and there only where something may be believed; None: look everywhere.
    """
    if not regions or language is None:
        return list(_matched(text, regions, leniency))
    found: set[tuple[int, int]] = set()
    for start, end in windows(text, language):
        found.update((start + first, start + last) for first, last in _matched(text[start:end], regions, leniency))
    return sorted(found)


def windows(text: str, language: str = "") -> Iterator[tuple[int, int]]:
    """Ranges of a text that hold every match of seven digits or more, but of clusters in which none is believed."""
    for cluster in _CLUSTER.finditer(text):
        first, last = cluster.span()
        if last - first < 7 or not _EVIDENCE.search(text, first, last) or _hopeless(text, first, last, language):
            continue
        start = first
        while start > max(0, first - _LEAD) and not text[start - 1].isdecimal():
            start -= 1
        yield start, min(len(text), last + _TRAIL)


def _hopeless(text: str, first: int, last: int, language: str) -> bool:
    """Whether `is_phone` refuses all that the matcher can find in a cluster."""
    if NEVER_IN.fullmatch(text, first, last):
        return not PLUS_BEFORE.search(text, max(0, first - _LEAD), first)
    if not DOUBTFUL_IN.fullmatch(text, first, last) and not _are_columns(text[first:last]):
        return False
    return not PLUS_BEFORE.search(text, max(0, first - _LEAD), first) and not phone_is_named(
        text, first, last, language
    )


def _are_columns(cluster: str) -> bool:
    """Whether a cluster is numbers apart, any neighbours among them too long to be groups of one (see `DOUBTFUL`)."""
    if not COLUMNS.fullmatch(cluster):
        return False
    lengths = [len(group) for group in cluster.split()]
    return all(max(pair) > 6 or min(pair) > 4 for pair in pairwise(lengths))


def is_phone(text: str, start: int, end: int, language: str) -> bool:
    """Whether a match is believed, from how it is written and what stands around it."""
    value, before, after = text[start:end], text[max(0, start - 2) : start], text[end : end + 2]
    bare = value.lstrip("([（［")
    if NEVER.search(bare) or _in_address(text, start, end):
        return False
    if value[0] in "+＋" or before.endswith(("+", "＋")) or phone_is_named(text, start, end, language):
        return True
    if JOINED_AFTER.match(after) or JOINED_BEFORE.search(before):
        return False
    if BYTES_BEFORE.search(text, max(0, start - 12), start) or BYTES_AFTER.match(text, end):
        return False
    return bool(WRITTEN.search(value)) or not DOUBTFUL.search(bare)


def _in_address(text: str, start: int, end: int) -> bool:
    """Whether the match is part of what has the form of an IPv4 address."""
    before = re.search(r"[\d.]*$", text[max(0, start - 16) : start])
    after = re.match(r"[\d.]*", text[end : end + 16])
    assert before is not None and after is not None
    return bool(ADDRESS.fullmatch((before[0] + text[start:end] + after[0]).strip(".")))


@lru_cache(maxsize=4096)  # one number often stands on every page of a site
def _matched(window: str, regions: tuple[str, ...], leniency: int) -> tuple[tuple[int, int], ...]:
    from phonenumbers import PhoneNumberMatcher

    found = {(one.start, one.end) for region in regions for one in PhoneNumberMatcher(window, region, leniency)}
    return tuple(sorted(found))
