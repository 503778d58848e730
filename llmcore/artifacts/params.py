"""The base of every stage's parameters."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Params(BaseModel):
    """A stage's parameters: immutable, unknown keys are errors. Every field enters the stage's key."""

    model_config = ConfigDict(extra="forbid", frozen=True)
