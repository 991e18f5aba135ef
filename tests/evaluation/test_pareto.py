"""Fronts against the definition, written out; areas against a grid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.statistics.pareto import choose, crowding, front, hypervolume, ranks

SMALL = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12)


def beats(a: tuple[int, ...], b: tuple[int, ...], lower: list[bool]) -> bool:
    """The definition: nowhere worse, somewhere better."""
    pairs = [(x, y) if low else (-x, -y) for x, y, low in zip(a, b, lower, strict=True)]
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)


@given(SMALL, st.lists(st.booleans(), min_size=3, max_size=3))
def test_the_front_is_what_nobody_beats(points: list[tuple[int, ...]], lower: list[bool]) -> None:
    expected = [not any(beats(other, point, lower) for other in points) for point in points]
    assert front(points, lower).tolist() == expected


@given(SMALL)
def test_every_rank_is_the_front_of_what_is_left(points: list[tuple[int, ...]]) -> None:
    lower = [True, False, True]
    rank = ranks(points, lower)
    for number in range(rank.max() + 1):
        left = [i for i in range(len(points)) if rank[i] >= number]
        mine = front([points[i] for i in left], lower)
        assert [i for i, on in zip(left, mine, strict=True) if on] == np.flatnonzero(rank == number).tolist()


def test_arms_without_a_score_are_on_no_front() -> None:
    assert ranks([[1.0, 2.0], [np.nan, 0.0], [2.0, 3.0]], [True, True]).tolist() == [0, -1, 1]
    assert choose([[1.0, 2.0], [np.nan, 0.0], [2.0, 3.0]], [True, True], 5) == [0, 2]


def test_one_objective_is_an_order() -> None:
    assert choose([[3.0], [1.0], [2.0]], [True], 2) == [1, 2]
    assert choose([[3.0], [1.0], [2.0]], [False], 2) == [0, 2]


def test_finalists_span_the_front() -> None:
    """The ends first, then the middle of the widest gap (worked by hand)."""
    points = [[0.0, 1.0], [0.05, 0.95], [0.1, 0.9], [0.6, 0.4], [1.0, 0.0]]
    assert set(choose(points, [True, True], 2)) == {0, 4}
    assert choose(points, [True, True], 3)[2] == 3
    np.testing.assert_allclose(crowding(points)[1:4], [0.2, 1.1, 1.8])


@pytest.mark.parametrize("lower", [[True, True], [False, True]])
def test_the_dominated_area_is_that_of_a_grid(lower: list[bool]) -> None:
    generator = np.random.default_rng(3)
    points = generator.random((15, 2))
    reference = [1.0 if lower[0] else 0.0, 1.0]
    cells = (np.arange(400) + 0.5) / 400
    x, y = np.meshgrid(cells, cells)
    inside = np.zeros_like(x, dtype=bool)
    for px, py in points:
        inside |= ((x >= px) if lower[0] else (x <= px)) & (y >= py)
    assert hypervolume(points, lower, reference) == pytest.approx(inside.mean(), abs=0.01)
