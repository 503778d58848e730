"""PII: what is found, what is not mistaken for it, and that the short cuts change nothing."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llmcore.quickstart import bundled
from llmcore.schema import DOCUMENT_SCHEMA
from llmcore.text.pii import PiiParams, scrub
from llmcore.text.pii_analysis import Analysis, Finding, disjoint, pieces
from tests.text.test_clean import documents

PARAMS = PiiParams()

PERSONAL = [
    ("Write to jane.doe@example.com today.", "Write to <EMAIL_ADDRESS> today."),
    ("mailto:jane.doe@example.co.uk, please", "mailto:<EMAIL_ADDRESS>, please"),
    ("Call me on (212) 555-0142 tonight.", "Call me on <PHONE_NUMBER> tonight."),
    ("My phone: +44 20 7946 0958.", "My phone: <PHONE_NUMBER>."),
    ("Charge my Visa card 4012-8888-8888-1881 now.", "Charge my Visa card <CREDIT_CARD> now."),
    ("IBAN DE89370400440532013000 at your bank.", "IBAN <IBAN_CODE> at your bank."),
    ("Her social security number is 536-90-4399.", "Her social security number is <US_SSN>."),
    ("The client 72.15.99.187 was denied.", "The client <IP_ADDRESS> was denied."),
    ("Traffic from 2a00:1450:4001:81b::200e came in.", "Traffic from <IP_ADDRESS> came in."),
    ("From 8.8.8.8 to jane@example.org", "From <IP_ADDRESS> to <EMAIL_ADDRESS>"),
    ("Received: from mail ([72.15.99.187])", "Received: from mail ([<IP_ADDRESS>])"),
    ("Connect to [2a00:1450:4001:81b::200e]:25 first", "Connect to [<IP_ADDRESS>]:25 first"),
    ("E-Mail：john@example.orgです", "E-Mail：<EMAIL_ADDRESS>です"),
    ("联系人john@example.org，谢谢", "联系人<EMAIL_ADDRESS>，谢谢"),
    ("이메일은 john@example.org입니다", "이메일은 <EMAIL_ADDRESS>입니다"),
    ("口座はDE89370400440532013000です", "口座は<IBAN_CODE>です"),
]
NOT_PERSONAL = [
    "Version 1.2.3.4.5 is out.",
    "Apache 2.4.1.1 and Apache/2.4.6.2 differ.",
    "Upgrade from v2.4.10.1 to release 10.20.30.40 soon.",
    "Listen on 127.0.0.1, 10.0.0.1, 192.168.1.104 or ::1, mask 255.255.255.0.",
    "std::vector and 12:30:45 are neither.",
    "From 1914-1918 and 1939-1945 the expenditure was $1,234,567,890 or 36.45 percent.",
    "In 1830 receipts were 24,844,116 dollars; in 1840, 19,480,115.",
    "[Thu Jun 18 09:14:02.946218 2026] [pid 35708:tid 4328636416]",
    "The card number 4012-8888-8888-1882 fails its checksum.",
    "@Override and user@localhost are no addresses.",
    "Process 123456789012 ended with 0.123456789.",
]


def masked(text: str, params: PiiParams = PARAMS, language: str = "en") -> str:
    shard = documents(text).with_columns(lang=pl.lit(language))
    return str(scrub(shard, params).outputs["kept"]["text"][0])


@pytest.mark.parametrize(("text", "expected"), PERSONAL)
def test_personal_data_gets_a_typed_placeholder(text: str, expected: str) -> None:
    assert masked(text) == expected


@pytest.mark.parametrize("text", NOT_PERSONAL)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert masked(text) == text


def test_private_addresses_are_masked_on_demand() -> None:
    private = PiiParams(mask_private_addresses=True)
    assert masked("host 192.168.1.104", private) == "host <IP_ADDRESS>"
    assert masked("from [192.0.2.1] or [2001:db8::1]", private) == "from [<IP_ADDRESS>] or [<IP_ADDRESS>]"


def test_only_configured_entities_are_masked() -> None:
    text = "Write to jane.doe@example.com or 72.15.99.187."
    assert masked(text, PiiParams(entities=("IP_ADDRESS",))) == "Write to jane.doe@example.com or <IP_ADDRESS>."
    assert masked(text, PiiParams(entities=())) == text
    with pytest.raises(ValidationError, match="unknown entity 'EMAIL'"):
        PiiParams(entities=("EMAIL",))


def test_a_document_with_too_many_findings_is_dropped() -> None:
    few, many = "One: a@example.com.", " ".join(f"user{i}@example.com" for i in range(6))
    result = scrub(documents(few, many, "none at all"), PiiParams(max_findings=5))
    assert result.outputs["kept"]["text"].to_list() == ["One: <EMAIL_ADDRESS>.", "none at all"]
    assert result.outputs["dropped"]["reason"].to_list() == ["max_findings"]
    assert json.loads(result.outputs["dropped"]["detail"][0]) == {"rule": "max_findings", "value": 6, "threshold": 5}
    assert result.metrics == {"documents_masked": 1, "EMAIL_ADDRESS": 1}


def test_the_addresses_of_the_union_hold_no_personal_numbers() -> None:
    texts = pl.read_parquet(bundled("sotu.parquet"))["text"].gather_every(12)
    assert scrub(documents(*texts), PARAMS).metrics == {"documents_masked": 0}


def test_names_are_masked_when_asked_for() -> None:
    params = PiiParams(entities=("PERSON", "LOCATION", "EMAIL_ADDRESS"))
    assert masked("Yesterday Barack Obama flew to Berlin.", params) == "Yesterday <PERSON> flew to <LOCATION>."


@pytest.mark.parametrize("text", [text for text, _ in PERSONAL] + NOT_PERSONAL)
def test_looking_only_where_there_is_evidence_finds_the_same(text: str) -> None:
    analysis = Analysis.of(PARAMS)
    assert analysis.findings(text) == analysis.findings(text, prefilter=False)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from([text for text, _ in PERSONAL] + NOT_PERSONAL + ["\n", " 5", "@", "(0)", " ext. 7", "-", "::"]),
        max_size=6,
    ).map("".join)
)
def test_masks_respect_words_and_evidence(text: str) -> None:
    analysis = Analysis.of(PARAMS)
    found = analysis.findings(text)
    assert found == analysis.findings(text, prefilter=False)
    for finding in found:
        for place in (finding.start, finding.end):
            assert not re.fullmatch(r"[A-Za-z0-9_]{2}", text[max(0, place - 1) : place + 1])
    assert all(one.end <= two.start for one, two in pairwise(found))


@given(st.text(alphabet="ab .\n。", max_size=1500), st.integers(1, 300))
def test_pieces_cover_a_text_without_gaps(text: str, size: int) -> None:
    cuts = list(pieces(text, size))
    assert "".join(text[start:end] for start, end in cuts) == text
    assert all(0 < end - start <= size for start, end in cuts)


def test_of_overlapping_findings_the_surest_wins_then_the_longest() -> None:
    sure, long, short = Finding(0, 4, "A", 0.9), Finding(2, 12, "B", 0.5), Finding(6, 9, "C", 0.5)
    assert disjoint([short, long, sure]) == [sure, short]
    assert disjoint([short, long]) == [long]


def test_an_address_far_inside_a_long_line_is_found() -> None:
    filler = "no personal data in here whatsoever; " * 30_000
    assert masked(f"{filler}me@example.com {filler}") == f"{filler}<EMAIL_ADDRESS> {filler}"


def test_odd_texts_and_an_empty_shard() -> None:
    assert masked("电话和邮件 me@example.com 都在这里") == "电话和邮件 <EMAIL_ADDRESS> 都在这里"
    assert masked("a\x00b@") == "a\x00b@"
    result = scrub(documents(), PARAMS)
    assert len(result.outputs["kept"]) == 0 and result.outputs["kept"].schema == DOCUMENT_SCHEMA


def test_order_does_not_matter_and_other_columns_stay() -> None:
    shard = documents(*[text for text, _ in PERSONAL], *NOT_PERSONAL).with_columns(metadata=pl.lit('{"a": 1}'))
    forwards, backwards = scrub(shard, PARAMS).outputs["kept"], scrub(shard.reverse(), PARAMS).outputs["kept"]
    assert forwards.equals(backwards.reverse())
    assert forwards.drop("text").equals(shard.drop("text"))
