"""The base of every stage's parameters."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Params(BaseModel):
    """A stage's parameters: immutable, unknown keys are errors. Every field enters the stage's key.

    Defaults pass the validators too, so that a value says the same whether it was given or not; and every number is
    finite, because others have no JSON form.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
