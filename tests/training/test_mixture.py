"""The list of a stage: counts by hand, and properties that hold for any tables."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee.amounts import Amount
from cuvee.errors import UserError
from training.curriculum import arrange, dmt
from training.mixture import PLAN, compose

A = Amount.parse


def table(name: str, size: int, tokens: int | list[int] = 10, source: str = "") -> pa.Table:
    lengths = tokens if isinstance(tokens, list) else [tokens] * size
    return pa.table(
        {
            "id": [f"{name}{i:04d}" for i in range(size)],
            "target": pa.array([0] * size, pa.int32()),
            "source": [source or name] * size,
            "tokens": pa.array(lengths, pa.int32()),
        }
    )


def chosen(plan: pa.Table, name: str) -> set[str]:
    return {i for i in plan["id"].to_pylist() if i.startswith(name)}


def test_counts_of_dmt() -> None:
    """The paper's sizes: 110142, 20022 and 86060 rows give 430, 78 and 336 at k = 1/256."""
    lengths = {"math": table("m", 110142), "code": table("c", 20022), "chat": table("g", 86060)}
    mix = dict.fromkeys(lengths, A("1/256"))
    found = {r["table"]: r["rows"] for r in compose("s", mix, lengths, epochs=1, seed=0).realised}
    assert found == {"math": 430, "code": 78, "chat": 336}


def test_one_stage_by_hand() -> None:
    lengths = {"a": table("a", 4, [10, 20, 30, 40]), "b": table("b", 2, 5)}
    mixture = compose("s", {"a": A("all"), "b": A("2x")}, lengths, epochs=1.5, seed=3, max_len=25)
    plan = mixture.plan
    assert plan.schema == PLAN
    assert plan["position"].to_pylist() == list(range(8 + 4))
    assert plan["epoch"].to_pylist() == [0] * 8 + [1] * 4
    first = Counter(plan["id"].to_pylist()[:8])
    assert first == {"a0000": 1, "a0001": 1, "a0002": 1, "a0003": 1, "b0000": 2, "b0001": 2}
    a, b = mixture.realised
    assert (a["asked"], a["rows"], a["unique"], a["examples"], a["truncated"]) == ("all", 4, 4, 6, 2)
    assert (b["asked"], b["rows"], b["unique"], b["examples"], b["repeat"]) == ("2x", 4, 2, 6, 3.0)
    tokens = dict(zip(plan["id"].to_pylist(), plan["tokens"].to_pylist(), strict=True))
    assert tokens == {"a0000": 10, "a0001": 20, "a0002": 25, "a0003": 25, "b0000": 5, "b0001": 5}
    assert a["tokens"] + b["tokens"] == sum(plan["tokens"].to_pylist())
    assert a["token_share"] + b["token_share"] == pytest.approx(1)
    assert (mixture.unique, mixture.shared) == (6, 0)


def test_tokens_are_whole_rows_until_first_reached() -> None:
    mixture = compose("s", {"a": A("95 tokens")}, {"a": table("a", 30, 10)}, epochs=1, seed=0)
    (a,) = mixture.realised
    assert (a["rows"], a["tokens"], a["overshoot"]) == (10, 100, 5)
    exact = compose("s", {"a": A("100 tokens")}, {"a": table("a", 30, 10)}, epochs=1, seed=0).realised[0]
    assert (exact["rows"], exact["overshoot"]) == (10, 0)


def test_tokens_count_after_truncation() -> None:
    (a,) = compose("s", {"a": A("40 tokens")}, {"a": table("a", 9, 100)}, epochs=1, seed=0, max_len=10).realised
    assert (a["rows"], a["tokens"], a["truncated"]) == (4, 40, 4)


def test_rows_that_are_too_long_can_be_dropped_before_amounts_are_taken() -> None:
    lengths = {"a": table("a", 8, [10, 99, 10, 99, 10, 99, 10, 99])}
    (a,) = compose("s", {"a": A("1/2")}, lengths, epochs=1, seed=0, max_len=50, over_long="drop").realised
    assert (a["available"], a["dropped"], a["rows"], a["truncated"]) == (8, 4, 2, 0)


def test_a_fraction_of_nothing_is_refused_unless_a_minimum_is_set() -> None:
    lengths = {"a": table("a", 100)}
    with pytest.raises(UserError, match="stage s, table a: 1/256 of 100 rows is less than one row"):
        compose("s", {"a": A("1/256")}, lengths, epochs=1, seed=0)
    (a,) = compose("s", {"a": A("1/256")}, lengths, epochs=1, seed=0, minimum=2).realised
    assert (a["rows"], a["raised"]) == (2, 2)


@pytest.mark.parametrize("amount", ["101 rows", "1001 tokens"])
def test_more_than_there_is_needs_repeats(amount: str) -> None:
    with pytest.raises(UserError, match=r"asked, .* there .*2x"):
        compose("s", {"a": A(amount)}, {"a": table("a", 100)}, epochs=1, seed=0)


@pytest.mark.parametrize("epochs", [0, -1, 0.001])
def test_no_epochs_are_refused(epochs: float) -> None:
    with pytest.raises(UserError, match="epochs"):
        compose("s", {"a": A("all")}, {"a": table("a", 10)}, epochs=epochs, seed=0)


def test_an_empty_table_and_an_empty_mix_are_refused() -> None:
    with pytest.raises(UserError, match="the table is empty"):
        compose("s", {"a": A("all")}, {"a": table("a", 0)}, epochs=1, seed=0)
    with pytest.raises(UserError, match="nothing to train on"):
        compose("s", {"a": A("none")}, {"a": table("a", 3)}, epochs=1, seed=0)


def test_amounts_of_nothing_leave_no_trace() -> None:
    lengths = {"chat": table("g", 50), "math": table("m", 20)}
    with_none = compose("s", {"chat": A("all"), "math": A("none")}, lengths, epochs=2, seed=1)
    without = compose("s", {"chat": A("all")}, lengths, epochs=2, seed=1)
    assert with_none.plan.equals(without.plan)
    assert with_none.realised == without.realised


def test_dmt_without_replay_and_mixed_sequential_have_equal_plans() -> None:
    lengths = {"chat": table("g", 50), "math": table("m", 20), "code": table("c", 9)}
    none, quarter = (dmt(["math", "code"], ["chat"], A(k)) for k in ("none", "1/4"))
    plans = [
        [compose(e.name, e.mix, lengths, epochs=3, seed=5).plan for e in stages]
        for stages in (arrange(none, "dmt"), arrange(quarter, "mixed_sequential"))
    ]
    assert all(one.equals(other) for one, other in zip(*plans, strict=True))


def test_a_row_of_two_tables_keeps_its_identity() -> None:
    both = table("x", 5)
    mixture = compose("s", {"a": A("all"), "b": A("all")}, {"a": both, "b": both.slice(0, 2)}, epochs=1, seed=0)
    assert Counter(mixture.plan["id"].to_pylist()) == {"x0000": 2, "x0001": 2, "x0002": 1, "x0003": 1, "x0004": 1}
    assert (mixture.unique, mixture.shared) == (5, 2)


def test_a_row_with_two_texts_is_refused() -> None:
    with pytest.raises(UserError, match="1 rows have different texts in two tables, the first is x0000"):
        compose("s", {"a": A("all"), "b": A("all")}, {"a": table("x", 1, 10), "b": table("x", 1, 11)}, epochs=1, seed=0)


def test_targets_of_a_row_are_examples_of_their_own() -> None:
    rows = table("x", 2)
    other = rows.set_column(1, "target", pa.array([1, 1], pa.int32()))
    mixture = compose("s", {"a": A("all")}, {"a": pa.concat_tables([rows, other])}, epochs=1, seed=0)
    pairs = zip(mixture.plan["id"].to_pylist(), mixture.plan["target"].to_pylist(), strict=True)
    assert sorted(pairs) == [("x0000", 0), ("x0000", 1), ("x0001", 0), ("x0001", 1)]


def test_epochs_have_orders_of_their_own_and_seeds_too() -> None:
    lengths = {"a": table("a", 50)}
    ids = compose("s", {"a": A("all")}, lengths, epochs=2, seed=0).plan["id"].to_pylist()
    assert ids[:50] != ids[50:]
    assert sorted(ids[:50]) == sorted(ids[50:])
    assert ids != compose("s", {"a": A("all")}, lengths, epochs=2, seed=1).plan["id"].to_pylist()


def test_order_and_sample_have_seeds_of_their_own() -> None:
    lengths = {"a": table("a", 100)}
    plans = [
        compose("s", {"a": A("1/4")}, lengths, epochs=1, seed=order, sample_seed=sample).plan["id"].to_pylist()
        for order, sample in ((0, 0), (1, 0), (0, 1))
    ]
    assert sorted(plans[0]) == sorted(plans[1])
    assert plans[0] != plans[1]
    assert sorted(plans[0]) != sorted(plans[2])


SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(
    sizes=SIZES, seed=st.integers(0, 999), epochs=st.floats(0.5, 3.2), order=st.sampled_from(["shuffle", "stratified"])
)
def test_every_epoch_has_exactly_what_was_asked(sizes: list[int], seed: int, epochs: float, order: str) -> None:
    lengths = {f"t{i}": table(f"t{i}-", size) for i, size in enumerate(sizes)}
    if all(math.floor(epochs * size) == 0 for size in sizes):
        return
    plan = compose("s", dict.fromkeys(lengths, A("all")), lengths, epochs=epochs, seed=seed, order=order).plan  # type: ignore[arg-type]
    epoch = np.asarray(plan["epoch"].to_pylist())
    for e in range(math.ceil(epochs)):
        share = min(1.0, epochs - e)
        ids = [i for i, at in zip(plan["id"].to_pylist(), epoch, strict=True) if at == e]
        assert len(ids) == len(set(ids))
        for i, size in enumerate(sizes):
            assert sum(x.startswith(f"t{i}-") for x in ids) == math.floor(share * size + 1e-9)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(2, 80), small=st.integers(1, 79), large=st.integers(1, 80), seed=st.integers(0, 999))
def test_subsets_nest(size: int, small: int, large: int, seed: int) -> None:
    small, large = sorted((min(small, size), min(large, size)))
    lengths = {"a": table("a", size)}
    few = compose("one", {"a": A(f"{small} rows")}, lengths, epochs=1, seed=seed).plan
    many = compose("two", {"a": A(f"{large} rows")}, lengths, epochs=1, seed=seed).plan
    assert chosen(few, "a") <= chosen(many, "a")


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(), size=st.integers(2, 40), seed=st.integers(0, 99), order=st.sampled_from(["shuffle", "stratified"])
)
def test_the_plan_does_not_depend_on_row_order_blocks_or_mix_order(
    data: st.DataObject, size: int, seed: int, order: str
) -> None:
    a, b = table("a", size), table("b", 7)
    moved = a.take(pa.array(data.draw(st.permutations(range(size)))))
    cut = data.draw(st.integers(0, size))
    blocks = pa.concat_tables([moved.slice(0, cut), moved.slice(cut)])
    mix = {"a": A("1/2"), "b": A("3x")}
    one = compose("s", mix, {"a": a, "b": b}, epochs=2, seed=seed, order=order)  # type: ignore[arg-type]
    two = compose("s", dict(reversed(mix.items())), {"b": b, "a": blocks}, epochs=2, seed=seed, order=order)  # type: ignore[arg-type]
    assert one.plan.equals(two.plan)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 60), min_size=2, max_size=4), seed=st.integers(0, 99))
def test_stratified_prefixes_have_the_mix(sizes: list[int], seed: int) -> None:
    """Among the first L rows a stratum of share p is off by at most (1 + S p) / 2."""
    lengths = {f"t{i}": table(f"t{i}-", size) for i, size in enumerate(sizes)}
    plan = compose("s", dict.fromkeys(lengths, A("all")), lengths, epochs=1, seed=seed, order="stratified").plan
    table_of = np.asarray([int(i[1]) for i in plan["id"].to_pylist()])
    for i, size in enumerate(sizes):
        share = size / sum(sizes)
        off = np.cumsum(table_of == i) - share * np.arange(1, len(table_of) + 1)
        assert np.abs(off).max() <= (1 + len(sizes) * share) / 2 + 1e-9


def test_stratified_spreads_sources_inside_a_table() -> None:
    joined = pa.concat_tables([table("m", 300, source="math"), table("c", 30, source="code")])
    plan = compose("s", {"spec": A("all")}, {"spec": joined}, epochs=1, seed=0, order="stratified").plan
    window = [sum(s == "code" for s in plan["source"].to_pylist()[i : i + 33]) for i in range(0, 297, 33)]
    assert set(window) <= {2, 3, 4}


def test_shuffle_mixes_tables() -> None:
    lengths = {"a": table("a", 500), "b": table("b", 500)}
    ids = compose("s", dict.fromkeys(lengths, A("all")), lengths, epochs=1, seed=0).plan["id"].to_pylist()
    changes = sum(x[0] != y[0] for x, y in pairwise(ids))
    assert 430 < changes < 570


def test_a_row_drawn_twice_counts_twice() -> None:
    """A selection with replacement says in `count` how often a row stands for itself."""
    ids = [f"{i:032x}" for i in range(4)]
    drawn = pa.table(
        {
            "id": ids,
            "target": pa.array([0] * 4, pa.int32()),
            "source": ["s"] * 4,
            "tokens": pa.array([5] * 4, pa.int32()),
            "count": [1, 3, 1, 2],
        }
    )
    mixture = compose("one", {"t": Amount.parse("all")}, {"t": drawn}, epochs=1, seed=0)
    often = Counter(mixture.plan["id"].to_pylist())
    assert [often[row] for row in ids] == [1, 3, 1, 2]
    assert mixture.realised[0]["examples"] == 7
    assert mixture.realised[0]["unique"] == 4
