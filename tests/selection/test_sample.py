from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee.amounts import Amount
from cuvee.errors import DataError
from cuvee.rows import make_table
from selection.sample import SampleConfig, sample


def table(**sizes: int) -> pa.Table:
    def turns(i: int) -> list[dict[str, str]]:
        return [{"role": "user", "content": str(i)}, {"role": "assistant", "content": "x"}]

    return pa.concat_tables([make_table(name, [{"messages": turns(i)} for i in range(n)]) for name, n in sizes.items()])


def take(t: pa.Table, amount: str, seed: int = 0) -> pa.Table:
    return sample(t, Amount.parse(amount), seed)


def ids(t: pa.Table) -> set[str]:
    return set(t["id"].to_pylist())


def counts(t: pa.Table) -> dict[str, int]:
    return {e["values"]: e["counts"] for e in t["source"].value_counts().to_pylist()}


@given(a=st.integers(4, 90), b=st.integers(4, 30), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_subsets_nest_and_do_not_depend_on_row_order(a: int, b: int, seed: int) -> None:
    t = table(a=a, b=b)
    mixed = t.take(pa.array(np.random.default_rng(seed).permutation(t.num_rows)))
    amounts = ["1/4", "1/2", "all"]
    for few, more in itertools.pairwise(amounts):
        assert ids(take(mixed, few, seed)) <= ids(take(t, more, seed))
    for n in range(1, t.num_rows, 7):
        assert ids(take(mixed, f"{n} rows", seed)) <= ids(take(t, f"{n + 1} rows", seed))


def test_fractions_are_of_each_source_and_rounded_down() -> None:
    # DMT's counts at 1/256: 430 of 110,142 and 78 of 20,022, here a hundredth of the sources.
    assert counts(take(table(math=1101, code=200), "1/8")) == {"math": 137, "code": 25}


def test_rows_are_shared_by_size() -> None:
    got = counts(take(table(a=90, b=10), "20 rows"))
    assert got == {"a": 18, "b": 2}


def test_seeds_differ_and_new_rows_leave_the_order_alone() -> None:
    t = table(a=200)
    assert ids(take(t, "1/2")) != ids(take(t, "1/2", 1))
    more = table(a=201)
    assert len(ids(take(more, "100 rows")) - ids(take(t, "100 rows"))) <= 1


def test_what_cannot_be_had() -> None:
    with pytest.raises(DataError, match="1/256 of the 100 rows of b is no row"):
        take(table(a=600, b=100), "1/256")
    with pytest.raises(DataError, match="11 rows asked of 10"):
        take(table(a=10), "11 rows")
    with pytest.raises(ValueError, match="cannot sample 2x"):
        SampleConfig.model_validate("2x")
    assert take(table(a=10), "none").num_rows == 0
    assert SampleConfig.model_validate("1/10").amount == Amount.parse("10%")
