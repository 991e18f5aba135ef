"""Strategies as explicit stages."""

from __future__ import annotations

from fractions import Fraction

import pytest

from cuvee.amounts import Amount
from cuvee.errors import UserError
from training.curriculum import arrange, dmt

ALL, NONE, SOME = (Amount.parse(text) for text in ("all", "none", "1/256"))
WRITTEN = dmt(["code", "math"], ["chat"], SOME)


def shape(strategy: str, written: dict[str, dict[str, Amount]] = WRITTEN) -> list[tuple[str, dict[str, str]]]:
    return [(e.name, {t: str(a) for t, a in e.mix.items()}) for e in arrange(written, strategy)]  # type: ignore[arg-type]


def test_dmt_is_as_written() -> None:
    assert shape("dmt") == [
        ("special", {"code": "all", "math": "all"}),
        ("general", {"chat": "all", "code": "1/256", "math": "1/256"}),
    ]


def test_dmt_without_replay_is_mixed_sequential_exactly() -> None:
    assert arrange(dmt(["code", "math"], ["chat"], NONE), "dmt") == arrange(WRITTEN, "mixed_sequential")


def test_sequential_has_one_stage_a_table_in_the_order_written() -> None:
    assert shape("sequential") == [("code", {"code": "all"}), ("math", {"math": "all"}), ("chat", {"chat": "all"})]
    assert [e.init for e in arrange(WRITTEN, "sequential")] == ["base", "code", "math"]
    assert [e.like for e in arrange(WRITTEN, "sequential")] == ["special", "special", "general"]


def test_multi_task_pools_every_table_once() -> None:
    assert shape("multi_task") == [("general", {"code": "all", "math": "all", "chat": "all"})]
    assert arrange(WRITTEN, "multi_task")[0].init == "base"


def test_a_stage_that_only_replays_disappears_without_replays() -> None:
    written = {"one": {"a": ALL}, "two": {"a": SOME}, "three": {"b": ALL}}
    assert [name for name, _ in shape("mixed_sequential", written)] == ["one", "three"]


@pytest.mark.parametrize("k", ["2x", "5 rows", "3M tokens"])
def test_k_is_a_fraction(k: str) -> None:
    with pytest.raises(UserError, match="fraction between 0 and 1"):
        dmt(["a"], ["b"], Amount.parse(k))


def test_k_above_one_is_refused() -> None:
    with pytest.raises(UserError, match="fraction between 0 and 1"):
        dmt(["a"], ["b"], Amount("fraction", Fraction(3, 2)))


def test_groups_must_differ_and_not_be_empty() -> None:
    with pytest.raises(UserError, match="b cannot be special and general"):
        dmt(["a", "b"], ["b"], SOME)
    with pytest.raises(UserError, match="at least one"):
        dmt([], ["b"], SOME)


def test_a_stage_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="stage s has nothing to train on"):
        arrange({"s": {"a": NONE}})
