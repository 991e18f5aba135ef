"""The base of every Config: frozen, and unknown keys are refused."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Base of the settings that a recipe may write. `model_dump(mode="json")` of it goes into a step's key."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
