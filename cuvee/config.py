"""The base of every Config: frozen, and unknown keys are refused with the nearest known one."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from cuvee.errors import nearest


class Config(BaseModel):
    """Base of the settings that a recipe may write. `model_dump(mode="json")` of it goes into a step's key."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            known = [field.alias or name for name, field in cls.model_fields.items()]
            for key in data:
                if key not in known and key not in cls.model_fields:
                    hint = nearest(str(key), known)
                    raise PydanticCustomError("unknown_key", 'unknown key "{key}" ({hint})', {"key": key, "hint": hint})
        return data
