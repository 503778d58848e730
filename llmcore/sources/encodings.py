"""Bytes to text, as browsers read them.

A charset's label means what the WHATWG Encoding Standard says: Shift_JIS is cp932, euc-kr cp949, gb2312 gb18030,
latin-1 cp1252. The standard's labels are resiliparse's table; which of Python's codecs decodes each, w3lib's.
"""

from __future__ import annotations

import re
from contextlib import suppress
from functools import lru_cache

# Python's text codecs that are no charset of a document; w3lib itself refuses UTF-7, in which plain text spells markup
NOT_CHARSETS = frozenset(
    {"unicode-escape", "raw-unicode-escape", "unicode_escape", "raw_unicode_escape", "idna", "punycode", "undefined"}
)
# Python's iso2022_jp lacks the half-width katakana that the standard's decoder reads.
WIDER = {"iso2022_jp": "iso2022_jp_ext", "iso2022_jp_1": "iso2022_jp_ext"}
WIDE = ("utf-16", "utf-32")
JAPANESE_ESCAPES = (b"\x1b$B", b"\x1b$@", b"\x1b$(D", b"\x1b(I")
KANJI = re.compile(rb"\x1b(?:\$[@B](?P<kanji>(?:[!-~]{2})*)|\(I(?P<kana>[!-_]*)|\([BJ])")
REPLACEMENT = "\ufffd"
DAMAGED_SHARE = 0.1  # of the characters beyond ASCII; what is not in an encoding at all has more


def decode(body: bytes, charset: str | None = None, html: bool = False) -> str:
    """Text of some bytes: by their mark, as UTF-8 if they are, else by what HTTP, the HTML or uchardet says.

    UTF-8 first: bytes of another encoding are hardly ever valid UTF-8, while servers often name a wrong charset. An
    encoding counts if nearly all bytes are valid in it, and the rest becomes U+FFFD: one bad byte must not turn a page
    into another alphabet. In an encoding that is named, one bad byte is always forgiven.
    """
    from w3lib.encoding import read_bom, to_unicode

    marked, mark = read_bom(body)
    if marked and mark:
        return body[len(mark) :].decode(marked, "replace")
    if body.isascii() and b"\0" not in body:
        return _escaped(body)
    said = encoding_of(charset)
    if said and said.startswith(WIDE) and b"\0" in body:
        return body.decode(said, "replace")  # whose letters are valid UTF-8 too, each with a NUL beside it
    text = _read(body, "utf-8", allowed=0)
    for name in (said, _said_inside(body) if text is None and html else None):
        if text is None and name:
            text = _read(body, name, allowed=1)
    return to_unicode(body, _detected(body)) if text is None else text


@lru_cache(maxsize=256)
def encoding_of(label: str | None) -> str | None:
    """Name of Python's codec for a charset's label; None if it is no charset's."""
    from resiliparse.parse.encoding import map_encoding_to_html5
    from w3lib.encoding import resolve_encoding

    for name in (label, map_encoding_to_html5(label, fallback_utf8=False)) if label else ():
        try:
            found = resolve_encoding(name) if name else None
            if found and found not in NOT_CHARSETS:
                "a".encode(found)  # LookupError: compression and the like are codecs too, but not of text
                return WIDER.get(found, found)
        except (LookupError, ValueError):
            continue
    return None


def _said_inside(body: bytes) -> str | None:
    """The charset that a page's own head declares."""
    from w3lib.encoding import html_body_declared_encoding

    said = encoding_of(html_body_declared_encoding(body))
    # as the standard has it: a declaration that can be read in ASCII stands in no wider encoding
    return "utf-8" if said and said.startswith(WIDE) else said


def _detected(body: bytes) -> str:
    from resiliparse.parse.encoding import detect_encoding

    return encoding_of(detect_encoding(body)) or "utf-8"


def _read(body: bytes, encoding: str, allowed: int) -> str | None:
    """The text, U+FFFD for what is not in the encoding; None if that is more than `allowed` and DAMAGED_SHARE."""
    from w3lib.encoding import to_unicode

    try:
        return body.decode(encoding)
    except UnicodeDecodeError:
        text = to_unicode(body, encoding)
    lost = text.count(REPLACEMENT)
    sound = sum(not character.isascii() for character in text) - lost
    return text if lost <= max(allowed, sound * DAMAGED_SHARE) else None


def _escaped(body: bytes) -> str:
    """ASCII, unless escapes say that it is ISO-2022-JP, whose bytes are all ASCII."""
    if any(escape in body for escape in JAPANESE_ESCAPES):
        with suppress(UnicodeDecodeError):
            return body.decode("iso2022_jp_ext")
        with suppress(UnicodeDecodeError):
            return KANJI.sub(_as_cp932, body).decode("cp932")
    return body.decode("ascii")


def _as_cp932(found: re.Match[bytes]) -> bytes:
    """One run of ISO-2022-JP as cp932, which also has NEC's characters (①, ㈱) that Python's codec of it lacks."""
    if found["kana"]:
        return bytes(byte | 0x80 for byte in found["kana"])
    kanji, out = found["kanji"] or b"", bytearray()
    for row, cell in zip(kanji[::2], kanji[1::2], strict=True):
        lead = (row - 0x21) // 2 + 0x81
        trail = cell + 0x7E if row % 2 == 0 else cell + 0x1F + (cell >= 0x60)
        out += bytes((lead if lead <= 0x9F else lead + 0x40, trail))
    return bytes(out)
