"""Encodings: what browsers read, read the same way, and damage that costs a character instead of a page."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcore.sources.encodings import decode
from tests.sources.test_ingest import run_ingest, write_warc

JAPANESE = "①日本語の文書です。髙橋さんの説明、ﾊﾝｶｸも㈱も。"
KOREAN = "쀍똠방각하와 펲시콜라, 햏햏한 하루"
CHINESE = "朱镕基同志的讲话，這是繁體字，€5"


@pytest.mark.parametrize(
    ("label", "python", "text"),
    [
        ("Shift_JIS", "cp932", JAPANESE),
        ("x-sjis", "cp932", JAPANESE),
        ("windows-31j", "cp932", JAPANESE),
        ("euc-kr", "cp949", KOREAN),
        ("ks_c_5601-1987", "cp949", KOREAN),
        ("windows-949", "cp949", KOREAN),
        ("gb2312", "gb18030", CHINESE),
        ("gbk", "gb18030", CHINESE),
        ("x-gbk", "gb18030", CHINESE),
        ("Big5", "big5hkscs", "繁體中文，香港嘅字"),
        ("x-x-big5", "big5", "繁體中文"),
        ("latin-1", "cp1252", "It’s “quoted” – 5 €"),
        ("iso-8859-1", "cp1252", "It’s “quoted” – 5 €"),
        ("US-ASCII", "cp1252", "It’s “quoted” – 5 €"),
        ("iso-8859-9", "cp1254", "Türkçe ğüşiöç – “İstanbul”"),
        ("TIS-620", "cp874", "ภาษาไทย…"),
        ("iso-8859-8-i", "iso8859-8", "שלום עולם"),
        ("koi8-u", "koi8-u", "Привіт, їжак"),
        ("dos-874", "cp874", "ภาษาไทย"),
        ("iso-2022-jp", "iso2022_jp_ext", "日本語の文書です。"),
        ("utf-16le", "utf-16-le", JAPANESE),
    ],
)
def test_a_label_means_what_browsers_take_it_for(label: str, python: str, text: str) -> None:
    page = f"<html><head><title>t</title></head><body>{text}</body></html>"
    assert decode(page.encode(python), label, html=True) == page


@pytest.mark.parametrize(
    ("label", "python", "text"),
    [("Shift_JIS", "cp932", JAPANESE), ("euc-kr", "cp949", KOREAN), ("gb2312", "gb18030", CHINESE)],
)
def test_a_page_names_its_own(label: str, python: str, text: str) -> None:
    for head in (f"<meta charset={label}>", f'<meta http-equiv="Content-Type" content="text/html; charset={label}">'):
        page = f"<html><head>{head}</head><body>{text}</body></html>"
        assert decode(page.encode(python), None, html=True) == page
    page = f'<?xml version="1.0" encoding="{label}"?><html><body>{text}</body></html>'
    assert decode(page.encode(python), None, html=True) == page


def test_iso_2022_jp_is_told_by_its_escapes() -> None:
    text = "This is ASCII, and then 日本語の文書です。"
    assert decode(text.encode("iso2022_jp")) == text
    terminal = "red \x1b[31mtext\x1b[0m, a lone \x1b$ and \x1b(B"
    assert decode(terminal.encode()) == terminal, "what is no ISO-2022-JP stays ASCII"


def test_iso_2022_jp_may_hold_what_only_windows_knows() -> None:
    windows = b"No. \x1b$B-!F|K\\8l-j\x1b(B, \x1b(I\x31\x32\x1b(J end"  # as mail programs write it
    assert decode(windows) == "No. ①日本語㈱, ｱｲ end"
    assert decode(b"\x1b$Bnothing of the kind") == "\x1b$Bnothing of the kind"


@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_decides(mark: str) -> None:
    assert decode(JAPANESE.encode(mark), "iso-8859-1") == JAPANESE


def test_one_bad_byte_in_utf_8_stays_utf_8() -> None:
    page = (
        "<html><head><meta charset=utf-8></head><body>Ein größerer Text über Bäume, éà. {} Schöne Grüße</body></html>"
    )
    before, after = (part.encode() for part in page.split("{}"))
    for charset in ("utf-8", "UTF8", None):
        assert decode(before + b"\xff" + after, charset, html=True) == page.replace("{}", "\ufffd")
    plain = "naïve façade, cliché, déjà vu, über, smörgåsbord, jalapeño, crème brûlée, piñata, Škoda"
    assert decode(plain.encode() + b"\xe2\x80") == plain + "\ufffd", "cut off inside a character, and undeclared"


def test_one_bad_byte_in_a_named_charset_costs_one_character() -> None:
    body = (KOREAN * 20).encode("cp949") + b"\xff" + " 끝".encode("cp949")
    assert decode(body, "euc-kr") == KOREAN * 20 + "\ufffd" + " 끝"


def test_latin_1_that_is_declared_utf_8_is_latin_1() -> None:
    text = "Ça va très bien, une journée d'été à la plage où l'eau était fraîche, déjà."
    assert decode(text.encode("latin-1"), "utf-8") == text


@pytest.mark.parametrize(
    "label", ["utf-7", "unicode_escape", "idna", "punycode", "hex", "zip", "undefined", "a\0b", "é", ""]
)
def test_what_is_no_charset_is_not_taken_for_one(label: str) -> None:
    assert decode(rb"caf\u00e9 +AGE- xn--caf-dma", label) == r"caf\u00e9 +AGE- xn--caf-dma"


def test_ingest_reads_them(tmp_path: Path) -> None:
    bodies = [
        ("http://h/1", "200 OK", "text/html; charset=Shift_JIS", f"<p>{JAPANESE}</p>".encode("cp932")),
        ("http://h/2", "200 OK", "text/plain; charset=euc-kr", KOREAN.encode("cp949")),
        ("http://h/3", "200 OK", "text/plain", "日本語の文書です。".encode("iso2022_jp")),
        ("http://h/4", "200 OK", "text/plain; charset=utf-8", "größer ".encode() * 9 + b"\xe9" + " über".encode()),
    ]
    (tmp_path / "x").write_bytes(write_warc(bodies))
    documents, _ = run_ingest(tmp_path / "x", "warc")
    expected = [f"<p>{JAPANESE}</p>", KOREAN, "日本語の文書です。", "größer " * 9 + "\ufffd über"]
    assert documents["text"].to_list() == expected


@given(
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\ufeff\x1b")),
    st.sampled_from([None, "utf-8", "latin-1", "Shift_JIS", "euc-kr", "gb2312", "nonsense"]),
)
def test_utf_8_is_utf_8_whatever_is_said(text: str, charset: str | None) -> None:
    assert decode(text.encode(), charset) == text


@given(
    st.binary(), st.one_of(st.none(), st.text(max_size=12), st.sampled_from(["utf-16", "iso-2022-jp", "hz", "big5"]))
)
def test_any_bytes_become_text(body: bytes, charset: str | None) -> None:
    for html in (False, True):
        assert isinstance(decode(body, charset, html), str)
