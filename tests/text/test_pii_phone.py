"""Telephone numbers: nothing that libphonenumber finds gets lost, and other numbers are not taken for one."""

from __future__ import annotations

import re

import phonenumbers
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from presidio_analyzer.predefined_recognizers import PhoneRecognizer

from llmcore.text import pii_phone
from llmcore.text.pii import PiiParams
from tests.text.test_pii import masked

REGIONS = tuple(PhoneRecognizer.DEFAULT_SUPPORTED_REGIONS)
PHONES = PiiParams(entities=("PHONE_NUMBER",))

FOUND = [
    ("en", "Tel:2125550147", "Tel:<PHONE_NUMBER>"),
    ("en", "Call me at 2125550147 tonight.", "Call me at <PHONE_NUMBER> tonight."),
    ("en", "Ask 1 (800) 555-0199 for a form.", "Ask <PHONE_NUMBER> for a form."),
    ("en", "https://example.org/dial?tel=2125550147&x=1", "https://example.org/dial?tel=<PHONE_NUMBER>&x=1"),
    ("en", "https://example.org/dial?phone_number=2125550147", "https://example.org/dial?phone_number=<PHONE_NUMBER>"),
    ("en", "<a href='tel:+12125550147'>", "<a href='tel:<PHONE_NUMBER>'>"),
    ("en", "You can call 2125550147 until six.", "You can call <PHONE_NUMBER> until six."),
    ("en", "My number is 2125550147.", "My number is <PHONE_NUMBER>."),
    ("en", "mobile 2125550147, 2125550148", "mobile <PHONE_NUMBER>, <PHONE_NUMBER>"),
    ("de", "Büro 0171/2345678, Montag bis Freitag", "Büro <PHONE_NUMBER>, Montag bis Freitag"),
    ("de", "Rufnummer 01712345678", "Rufnummer <PHONE_NUMBER>"),
    ("fr", "Renseignements au 01 70 18 99 00.", "Renseignements au <PHONE_NUMBER>."),
    ("fr", "01 70 18 99 00", "<PHONE_NUMBER>"),
    ("fr", "Tél. 0170189900", "Tél. <PHONE_NUMBER>"),
    ("fr", "Téléphone : 0170189900", "Téléphone : <PHONE_NUMBER>"),
    ("ja", "電話2125550147です", "電話<PHONE_NUMBER>です"),
    ("ru", "Телефон: 2125550147", "Телефон: <PHONE_NUMBER>"),
    ("hi", "फ़ोन 2125550147", "फ़ोन <PHONE_NUMBER>"),
    ("ar", "هاتف: 2125550147", "هاتف: <PHONE_NUMBER>"),
]
OTHER = [
    "The largest number is 2147483647.",
    "a number between -2147483648 and 2147483647, or to 4294967295",
    "They call it with 2147483647 and recall 2125550147.",
    "The cancelled orders 2125550147 and 2125550148",
    "Its number 192.168.1.104 and its phone 192.168.1.104 are one.",
    "Call 10.20.30.40 or 192.168.101.104.",
    "Filesystem 1K-blocks Used Available Use% Mounted on\n/dev/sda1 103081248 12345678 85463524 13% /",
    "/dev/sda1       171719880 156892144   6081692  97% /\nudev             7915324          0   7915324   0% /dev",
    "-rw-r--r-- 1 root root 2125550147 2024-05-06 07:08 a\n-rw-r--r-- 1 root root 2024561111 2023-01-02 10:11 b",
    "Phone calls 2015-2016 and on 2024-05-06.",
    "user_id_2125550147 and brk(0x002170120)",
    "| 0000: 02 23 44 30 13 40 ac 34 df dd 2a 77",
    "ISSN 0171-2345, pages 1701-1899",
]


@pytest.mark.parametrize(("language", "text", "expected"), FOUND)
def test_a_number_is_found_by_how_it_is_written_or_by_the_word_before_it(
    language: str, text: str, expected: str
) -> None:
    assert masked(text, PHONES, language) == expected


@pytest.mark.parametrize("text", OTHER)
def test_other_numbers_are_no_telephone_numbers(text: str) -> None:
    assert masked(text, PHONES) == text


def test_a_number_of_the_languages_own_country_needs_a_word_before_it() -> None:
    assert masked("電話：03-1234-5678です", PHONES, "ja") == "電話：<PHONE_NUMBER>です"
    assert masked("Teléfono: 912 345 678", PHONES, "es") == "Teléfono: <PHONE_NUMBER>"
    assert masked("Referencia: 912 345 678", PHONES, "es") == "Referencia: 912 345 678"


@pytest.mark.parametrize("language", ["en", "de"])
def test_a_word_counts_in_its_own_language(language: str) -> None:
    expected = "Durchwahl <PHONE_NUMBER>" if language == "de" else "Durchwahl 2125550147"
    assert masked("Durchwahl 2125550147", PHONES, language) == expected


def believed(text: str) -> list[tuple[int, int]]:
    """What is believed of all that libphonenumber finds in the whole text, region by region, as Presidio asks it."""
    found = {
        (one.start, one.end) for region in REGIONS for one in phonenumbers.PhoneNumberMatcher(text, region, leniency=1)
    }
    sure = (place for place in found if re.search(pii_phone.EVIDENCE, text[slice(*place)]))
    return sorted(place for place in sure if pii_phone.is_phone(text, *place, "en"))


def from_windows(text: str) -> list[tuple[int, int]]:
    found = pii_phone.numbers(text, REGIONS, 1, "en")
    return sorted((start, end) for start, end, _ in found if re.search(pii_phone.EVIDENCE, text[start:end]))


parts = st.one_of(
    st.sampled_from(
        [
            *("+1 212 555 0142", "(212) 555-0142", "0171/2345678", "01 70 18 99 00", "020 7946 0958", "2125550147"),
            *(" ext. 12", " x5", " доб. 7", ";ext=5", " EXTENſION 9", " int 4", " - 503#", "/x302", " ", ", ", "-"),
            *(
                "(",
                ")",
                "[",
                "]",
                "（",
                "+",
                "＋",
                "#",
                "/",
                ".",
                ":",
                "\t",
                "\n",
                "x",
                "a",
                "é",
                "$",
                "%",
                "电",
                "٣٤٥",
            ),
            *("Tel ", "call ", "192.168.1.104", "0x00217012", "16,276,970.00 - 14", "77074 4264796 23", "1 23456789 1"),
            *("2024-05-06 10", ":59", "12(3): 211-227 (2003)", "3/10/2011", "1234567", "00 49 171 2345678"),
        ]
    ),
    st.text("0123456789", min_size=1, max_size=11),
    st.text("0123456789 -.()/+x#,", min_size=1, max_size=20),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(parts, max_size=9).map("".join))
@example("12 ext 2125550147")
@example("5550142x2125550147#(212) 555-0142")
@example("1234d(212)  [555-0142")
@example("(212) 555-0142                                                      x7")
def test_windows_lose_no_match_and_add_none(text: str) -> None:
    assert from_windows(text) == believed(text)


def test_windows_are_small_where_numbers_are_rare() -> None:
    text = (
        "In 1914 there were 36 words, 1,234,567 letters and no telephone. " * 100 + "(212) 555-0142 " + "words " * 1000
    )
    ((start, end),) = pii_phone.windows(text)
    assert "(212) 555-0142" in text[start:end] and end - start < 30
