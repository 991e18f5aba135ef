"""Halves of what is held out: disjoint, whole, even, and the same for any order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuvee import rows
from cuvee.errors import DataError
from cuvee.halves import halve, members

NAMES = st.lists(st.text(max_size=5), min_size=1, max_size=30)


@given(NAMES)
def test_halves_are_disjoint_even_and_whole(names: list[str]) -> None:
    left, right = members(names, "validation"), members(names, "test")
    assert [a != b for a, b in zip(left, right, strict=True)] == [True] * len(names)
    sides = [{n for n, mine in zip(names, side, strict=True) if mine} for side in (left, right)]
    assert not sides[0] & sides[1]
    assert 0 <= len(sides[0]) - len(sides[1]) <= 1


@given(NAMES, st.randoms())
def test_order_does_not_matter(names: list[str], random: object) -> None:
    chosen = {n for n, mine in zip(names, members(names, "test"), strict=True) if mine}
    turned = names[::-1]
    assert chosen == {n for n, mine in zip(turned, members(turned, "test"), strict=True) if mine}


def test_rows_with_one_prompt_fall_together() -> None:
    def talk(i: int, answer: str) -> dict[str, object]:
        return {"messages": [{"role": "user", "content": f"q {i}"}, {"role": "assistant", "content": answer}]}

    table = rows.make_table("t", [talk(i, answer) for i in range(10) for answer in ("a", "b")])
    halves = [halve(table, half) for half in ("validation", "test")]
    assert [half.num_rows for half in halves] == [10, 10]
    prompts = [{r["messages"][0]["content"] for r in rows.records(half)} for half in halves]
    assert not prompts[0] & prompts[1]
    with pytest.raises(DataError, match="shop has no test half"):
        halve(rows.make_table("t", [talk(1, "a"), talk(1, "b")]), "test", "shop")
