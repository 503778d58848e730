"""What Presidio finds: the same as its own engine for checked entities, and all of its pattern recognisers by name."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from llmcore.text.pii import PiiParams
from llmcore.text.pii_analysis import Analysis
from llmcore.text.pii_params import NER_MODEL
from llmcore.text.pii_recognizers import pattern_entities
from tests.text.test_pii import masked

CHECKED = ("CREDIT_CARD", "EMAIL_ADDRESS", "IBAN_CODE", "US_SSN")
BY_NAME = [
    ("AU_ABN", "The company's ABN is 51 824 753 556.", "The company's ABN is <AU_ABN>."),
    ("DE_TAX_ID", "Die Steueridentifikationsnummer lautet 86095742719.", None),
    ("ES_NIF", "Mi NIF es 55555555K.", "Mi NIF es <ES_NIF>."),
    ("IN_PAN", "My PAN is ABCPD1234Z.", "My PAN is <IN_PAN>."),
    ("KR_RRN", "주민등록번호 960121-1234567", None),
    ("MAC_ADDRESS", "ethernet 00:1A:2B:3C:4D:5E up", "ethernet <MAC_ADDRESS> up"),
    ("URL", "see https://example.com/a now", "see <URL> now"),
    ("UK_NHS", "Her NHS number is 401-023-2137.", "Her NHS number is <UK_NHS>."),
    ("US_ITIN", "His individual taxpayer id is 911-70-1234.", "His individual taxpayer id is <US_ITIN>."),
    ("UUID", "guid 123e4567-e89b-12d3-a456-426614174000", "guid <UUID>"),
    ("ZA_MOBILE_NUMBER", "Phone 082 123 4567 now", "Phone <ZA_MOBILE_NUMBER> now"),
]


@pytest.fixture(scope="module")
def presidio() -> Iterator[Any]:
    """Presidio as it comes, with the same language model and the same list of public suffixes."""
    import tldextract
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NlpEngineProvider

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tldextract, "extract", tldextract.TLDExtract(cache_dir=None, suffix_list_urls=()))
        models = [{"lang_code": "en", "model_name": NER_MODEL}]
        provider = NlpEngineProvider(nlp_configuration={"nlp_engine_name": "spacy", "models": models})
        yield AnalyzerEngine(nlp_engine=provider.create_engine())


def sentences(count: int) -> Iterator[str]:
    """Right and wrong values of the four checked entities, with and without the words that Presidio looks for."""
    chance = random.Random(7)
    digits = "".join

    def number(length: int) -> str:
        return digits(str(chance.randint(0, 9)) for _ in range(length))

    def card() -> str:
        body = "4" + number(14)
        total = sum(sum(divmod(int(d) * (2 - i % 2), 10)) for i, d in enumerate(body))
        right = body + str(-total % 10 if chance.random() < 0.8 else chance.randint(0, 9))
        mark = chance.choice(("", "-", " "))
        return mark.join(right[i : i + 4] for i in range(0, 16, 4))

    def iban() -> str:
        account = number(18)
        check = 98 - int(account + "131400") % 97 if chance.random() < 0.8 else 11
        right = f"DE{check:02d}{account}"
        return chance.choice((right, " ".join(right[i : i + 4] for i in range(0, 22, 4)), right.lower()))

    def ssn() -> str:
        mark, other = chance.choice(("-", " ", ".", "")), chance.choice(("-", " "))
        return f"{number(3)}{mark}{number(2)}{chance.choice((mark, mark, other))}{number(4)}"

    def email() -> str:
        name = chance.choice(("jane.doe", "bob", "m_weber82", "o'neil", "a+b", "x"))
        return (
            f"{name}@{chance.choice(('example.com', 'mail.example.co.uk', 'localhost', 'example.notatld', 'b-c.de'))}"
        )

    before = (
        "",
        "My card is ",
        "social security number: ",
        "SSN ",
        "The bank's iban ",
        "Process ",
        "e-mail=",
        "(",
        "<",
    )
    after = ("", ".", " and so on", ")", ">", ", please; thank you.", "\nNext line", "/2024")
    for _ in range(count):
        value = chance.choice((card, iban, ssn, email))
        yield " ".join(f"{chance.choice(before)}{value()}{chance.choice(after)}" for _ in range(2))


@pytest.mark.parametrize("entity", CHECKED)
def test_email_card_iban_and_ssn_are_what_presidio_finds(presidio: Any, entity: str) -> None:
    analysis = Analysis.of(PiiParams(entities=(entity,)))
    found = 0
    for text in sentences(100):
        ours = {(one.start, one.end) for one in analysis.findings(text)}
        theirs = {(one.start, one.end) for one in presidio.analyze(text, "en", [entity], score_threshold=0.4)}
        assert ours == theirs, text
        found += len(ours)
    assert found > 20


def test_all_of_presidios_pattern_recognisers_have_their_name(presidio: Any) -> None:
    from presidio_analyzer import RecognizerRegistry

    registry = RecognizerRegistry()
    registry.load_predefined_recognizers()
    theirs = {entity for one in registry.recognizers for entity in one.supported_entities}
    assert theirs - set(pattern_entities()) <= {"PERSON", "LOCATION", "NRP", "ORGANIZATION"}
    assert len(pattern_entities()) >= 80


@pytest.mark.parametrize(("entity", "text", "expected"), BY_NAME, ids=[entity for entity, _, _ in BY_NAME])
def test_an_entity_is_masked_by_its_name(entity: str, text: str, expected: str | None) -> None:
    result = masked(text, PiiParams(entities=(entity,)))
    assert result == expected if expected else f"<{entity}>" in result


def test_an_unknown_name_is_refused_with_the_list() -> None:
    with pytest.raises(ValidationError, match=r"unknown entity 'SHOE_SIZE'; there are .*US_PASSPORT.*, PERSON"):
        PiiParams(entities=("US_PASSPORT", "SHOE_SIZE"))
