"""The base of the settings: unknown keys, amounts as fields."""

from __future__ import annotations

import pytest
from pydantic import Field, ValidationError

from cuvee.amounts import Amount
from cuvee.config import Config


class Mix(Config):
    amount: Amount = Amount.parse("all")
    source: str = Field("x", alias="from")


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ValidationError, match=r'unknown key "amuont" \(did you mean "amount"\?\)'):
        Mix.model_validate({"amuont": "all"})


def test_alias_and_name_are_both_known() -> None:
    assert Mix.model_validate({"from": "a"}) == Mix.model_validate({"source": "a"})


def test_an_amount_is_read_and_written_as_text() -> None:
    mix = Mix.model_validate({"amount": "1/256"})
    assert mix.amount == Amount.parse("1/256")
    assert mix.model_dump(mode="json", by_alias=True) == {"amount": "1/256", "from": "x"}
    assert Mix.model_json_schema()["properties"]["amount"]["type"] == "string"


def test_a_bare_number_is_no_amount() -> None:
    with pytest.raises(ValidationError, match="1 is not an amount"):
        Mix.model_validate({"amount": 1})
