"""Draws that belong to rows: independent of order, blocks and of the other rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from cuvee.rng import row_keys

IDS = st.lists(st.text(min_size=0, max_size=40), min_size=1, max_size=30, unique=True)


@given(ids=IDS, seed=st.integers(0, 2**31), cut=st.integers(0, 30))
def test_a_rows_key_does_not_depend_on_its_neighbours(ids: list[str], seed: int, cut: int) -> None:
    whole = row_keys(seed, "sample", ids=pa.array(ids))
    alone = [row_keys(seed, "sample", ids=pa.array([i]))[0] for i in ids]
    blocks = row_keys(seed, "sample", ids=pa.chunked_array([ids[:cut], ids[cut:]], type=pa.string()))
    assert np.array_equal(whole, alone)
    assert np.array_equal(whole, blocks)
    assert len(set(whole.tolist())) == len(ids)


def test_slices_and_empty_arrays() -> None:
    ids = pa.array(["a", "bb", "c" * 32, ""])
    assert np.array_equal(row_keys(1, ids=ids)[1:3], row_keys(1, ids=ids[1:3]))
    assert row_keys(1, ids=pa.array([], pa.string())).shape == (0,)


def test_keys_are_uniform_and_streams_are_unrelated() -> None:
    ids = pa.array([f"{i:032x}" for i in range(20_000)])
    one, two = row_keys(0, "a", ids=ids), row_keys(0, "b", ids=ids)
    share = np.histogram(one / 2.0**64, bins=20, range=(0, 1))[0] / len(ids)
    assert np.abs(share - 0.05).max() < 0.01
    assert abs(np.corrcoef(one.argsort().argsort(), two.argsort().argsort())[0, 1]) < 0.03


def test_the_number_makes_another_draw() -> None:
    ids = pa.array(["x"] * 3)
    assert len(set(row_keys(0, "a", ids=ids, number=np.arange(3)).tolist())) == 3
