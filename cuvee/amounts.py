"""Amounts with their meaning: `all`, `none`, `1/256`, `500 rows`, `2x`, `3M tokens`.

A bare number is refused: `1` means one row to some tools and everything to others.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from cuvee.errors import UserError

Kind = Literal["fraction", "rows", "repeat", "tokens"]

_SCALE = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_COUNT = re.compile(r"(\d+(?:[_,]\d{3})*(?:\.\d+)?)\s*([kKmMbB]?)\s*(rows?|tokens?)")


@dataclass(frozen=True)
class Amount:
    """`value` is a share of the table (fraction, repeat: 2 is twice) or a count (rows, tokens)."""

    kind: Kind
    value: Fraction

    @classmethod
    def parse(cls, text: object) -> Amount:
        """Raises UserError for a bare number and for anything that is no amount."""
        if isinstance(text, Amount):
            return text
        word = str(text).strip().lower() if isinstance(text, str) else ""
        if word == "all":
            return cls("fraction", Fraction(1))
        if word == "none" or text is None:
            return cls("fraction", Fraction(0))
        if match := re.fullmatch(r"(\d+)\s*/\s*(\d+)", word):
            if int(match[2]) == 0 or int(match[1]) > int(match[2]):
                raise UserError(f"{text!r} is not a fraction between 0 and 1", remedy='write "2x" to repeat rows')
            return cls("fraction", Fraction(int(match[1]), int(match[2])))
        if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", word):
            share = Fraction(match[1]) / 100
            if share > 1:
                raise UserError(f"{text!r} is more than all", remedy='write "2x" to repeat rows')
            return cls("fraction", share)
        if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*x", word):
            return cls("repeat", Fraction(match[1]))
        if match := _COUNT.fullmatch(word):
            count = Fraction(re.sub("[_,]", "", match[1])) * _SCALE[match[2].lower()]
            if count.denominator != 1:
                raise UserError(f"{text!r} is not a whole number of {match[3]}")
            return cls("tokens" if match[3].startswith("token") else "rows", count)
        raise UserError(
            f"{text!r} is not an amount",
            remedy='write what it counts: "all", "none", "1/4", "25%", "500 rows", "2x" or "3M tokens"',
        )

    def rows_of(self, size: int) -> int:
        """Whole rows of a table of `size` rows: the floor, as in DMT. Not defined for tokens."""
        if self.kind == "tokens":
            raise ValueError("an amount in tokens needs the token lengths")
        return int(self.value) if self.kind == "rows" else math.floor(self.value * size)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A Config may say `amount: Amount`: read from its text, written back as its text."""

        def read(text: object) -> Amount:
            try:
                return cls.parse(text)
            except UserError as error:
                raise ValueError(str(error)) from None

        return core_schema.no_info_plain_validator_function(
            read, serialization=core_schema.to_string_ser_schema(when_used="always")
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "examples": ["all", "none", "1/256", "25%", "500 rows", "2x", "3M tokens"]}

    def __str__(self) -> str:
        if self.kind == "fraction":
            return {Fraction(0): "none", Fraction(1): "all"}.get(self.value, str(self.value))
        if self.kind == "repeat":
            return f"{float(self.value):g}x"
        return f"{int(self.value)} {self.kind}"
