"""From points of the unit cube to settings of arms."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cuvee.amounts import Amount
from services.space import Dimension, Space

UNIT = st.floats(1e-6, 1 - 1e-6)


def space(**dimensions: Any) -> Space:
    return Space({name: Dimension.model_validate(d) for name, d in dimensions.items()})


@settings(deadline=None)  # the first import takes its time
@given(st.lists(UNIT, min_size=4, max_size=4), st.integers(20, 5000))
def test_shares_of_a_total_are_whole_rows_that_add_up(point: list[float], total: int) -> None:
    found = space(s={"simplex": ["a", "b", "c", "d"], "total": f"{total} rows"}).values(point)
    assert list(found) == ["a", "b", "c", "d"]
    assert sum(Amount.parse(text).value for text in found.values()) == total


@settings(deadline=None)  # the first import takes its time
@given(st.lists(UNIT, min_size=3, max_size=3))
def test_shares_without_a_total_have_six_decimals_and_sum_to_one(point: list[float]) -> None:
    found = space(s={"simplex": ["a", "b", "c"], "floor": 0.05}).values(point)
    assert sum(round(share * 10**6) for share in found.values()) == 10**6
    assert all(share == round(share, 6) >= 0.05 for share in found.values())


@pytest.mark.parametrize(
    ("dimension", "low", "middle", "high"),
    [
        ({"uniform": [1.0, 3.0]}, 1.0, 2.0, 3.0),
        ({"uniform": [1, 4]}, 1, 3, 4),
        ({"uniform": ["10 rows", "30 rows"]}, "10 rows", "20 rows", "30 rows"),
        ({"uniform": ["none", "all"]}, "0%", "50%", "100%"),
        ({"loguniform": [1e-5, 1e-3]}, 1e-5, 1e-4, 1e-3),
        ({"loguniform": ["1/256", "1/16"]}, "0.3906%", "1.5625%", "6.25%"),
        ({"uniform": ["1x", "3x"]}, "1x", "2x", "3x"),
        ({"choice": ["none", "1/16", "all"]}, "none", "1/16", "all"),
        ({"choice": {"plain": "sft", "soft": {"preset": "wit"}}}, "sft", {"preset": "wit"}, {"preset": "wit"}),
    ],
)
def test_values_at_the_ends_and_in_the_middle(dimension: dict[str, Any], low: Any, middle: Any, high: Any) -> None:
    found = [space(k=dimension).values([u])["k"] for u in (1e-9, 0.5, 1 - 1e-9)]
    assert found == [low, middle, high]


def test_amounts_are_amounts() -> None:
    value = space(k={"loguniform": ["1/256", "all"]}).values([0.37])["k"]
    assert Amount.parse(value).kind == "fraction"
    assert abs(Amount.parse(value).value - Fraction(1, 256) ** Fraction(63, 100)) < 1e-5


@pytest.mark.parametrize(
    ("dimension", "what"),
    [
        ({}, "exactly one"),
        ({"choice": [1], "uniform": [0, 1]}, "exactly one"),
        ({"simplex": ["a"]}, "one source has nothing to share out"),
        ({"simplex": ["a", "a"]}, "twice"),
        ({"simplex": ["a", "b"], "floor": 0.5}, "nothing to share out"),
        ({"simplex": ["a", "b"], "total": "1/2"}, "rows or tokens"),
        ({"uniform": [0, 1], "total": "5 rows"}, "belong to a simplex"),
        ({"uniform": [2, 1]}, "not below"),
        ({"uniform": ["1 rows", "1/2"]}, "different things"),
        ({"uniform": ["few", "many"]}, "not an amount"),
        ({"loguniform": [0, 1]}, "above zero"),
        ({"choice": []}, "no values"),
    ],
)
def test_faults(dimension: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        Dimension.model_validate(dimension)


def test_a_longer_design_begins_with_the_shorter_one_and_repeats_nothing() -> None:
    some = space(s={"simplex": ["a", "b"], "total": "12 rows"}, k={"choice": [1, 2]})
    short, long = some.design(8, 3), some.design(20, 3)
    assert long[:8] == short
    assert len({str(some.values(p)) for p in long}) == 20
    assert some.design(8, 4) != short


def test_a_finite_space_is_listed_whole() -> None:
    some = space(a={"choice": [1, 2, 3]}, b={"choice": ["x", "y"]})
    assert some.size == 6
    assert len(some.design(50, 0)) == 6
