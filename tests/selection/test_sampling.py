from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee.errors import DataError, UserError
from selection.sampling import (
    allocate,
    apportion,
    draw_counts,
    draw_groups,
    log_weights,
    probabilities,
    softmax,
    uniforms,
)


def draw(log_weight: np.ndarray, size: int, noise: np.ndarray) -> np.ndarray:
    return draw_groups(log_weight, np.zeros(len(noise), dtype=np.int64), np.array([size]), noise)


sizes = st.lists(st.integers(0, 200), min_size=1, max_size=12)


def test_largest_remainder_by_hand() -> None:
    # quotas of 10 over 6, 7, 7 of 20: 3.0, 3.5, 3.5: the tie of remainders goes to the lower group
    assert allocate([6, 7, 7], 10).tolist() == [3, 4, 3]
    # quotas of 10 over 1, 2, 4: 1.43, 2.86, 5.71 clip to 1, 2, 4
    assert allocate([1, 2, 4], 10).tolist() == [1, 2, 4]


def test_equal_redistributes_what_small_groups_cannot_take() -> None:
    # 12 over four groups is 3 each; the group of 1 leaves 2 for the other three: 3.67 each
    assert allocate([1, 10, 10, 10], 12, "equal").tolist() == [1, 4, 4, 3]
    assert allocate([0, 5, 5], 4, "equal").tolist() == [0, 2, 2]


def test_minimum_is_kept_and_clipped() -> None:
    assert allocate([2, 100, 900], 100, minimum=5).tolist() == [2, 10, 88]
    with pytest.raises(UserError, match="budget is 3"):
        allocate([10, 10], 3, minimum=2)


def test_weightless_groups_are_the_last_resort() -> None:
    assert apportion([0.0, 1.0], [10, 4], 3).tolist() == [0, 3]
    assert apportion([0.0, 1.0], [10, 4], 9).tolist() == [5, 4]
    assert apportion([0.0, 0.0], [10, 5], 3).tolist() == [2, 1]


@settings(deadline=None)
@given(sizes, st.integers(0, 500), st.sampled_from(["size", "equal"]), st.integers(0, 3))
def test_allocation_is_exact_and_within_sizes(caps: list[int], budget: int, allocation: str, least: int) -> None:
    lower = np.minimum(caps, least)
    if lower.sum() > min(budget, sum(caps)):
        return
    counts = allocate(caps, budget, allocation, least)  # type: ignore[arg-type]
    assert counts.sum() == min(budget, sum(caps))
    assert (counts <= caps).all()
    assert (counts >= lower).all()
    weights = np.array(caps, float) if allocation == "size" else (np.array(caps) > 0).astype(float)
    free = (counts > lower) & (counts < caps)
    if free.sum() > 1:  # unclipped groups are in proportion, to one row
        scale = counts[free] / weights[free]
        spread = 1 / weights[free]
        assert (np.abs(scale[:, None] - scale[None]) <= spread[:, None] + spread[None] + 1e-9).all()


def test_uniforms_depend_on_id_and_seed_alone() -> None:
    ids = ["a", "b", "", "a long id of more than sixteen bytes", "12345678", "0" * 32]
    alone = np.concatenate([uniforms(pa.array([i]), 3) for i in ids])
    np.testing.assert_array_equal(uniforms(pa.array(ids), 3), alone)
    chunked = pa.chunked_array([pa.array(["x", *ids]).slice(1, 2), pa.array(ids[2:])])
    np.testing.assert_array_equal(uniforms(chunked, 3), alone)
    assert (uniforms(pa.array(ids), 4) != alone).all()
    with pytest.raises(DataError, match="no id"):
        uniforms(pa.array(["a", None]), 0)


def test_uniforms_are_uniform_and_uncorrelated() -> None:
    ids = pa.array([f"{i:032x}" for i in range(40_000)])
    u, v = uniforms(ids, 0), uniforms(ids, 1)
    counts = np.histogram(u, bins=50, range=(0, 1))[0]
    assert ((counts - 800) ** 2 / 800).sum() < 95  # chi-square with 49 degrees of freedom, p = 1e-4
    assert abs(np.corrcoef(u, v)[0, 1]) < 0.02
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.02


def test_draw_has_the_probabilities_of_successive_draws() -> None:
    """Two of three without replacement: P(pair ij) = wi wj (1 / (1 - wi) + 1 / (1 - wj))."""
    w = np.array([0.6, 0.3, 0.1])
    counts = dict.fromkeys([(0, 1), (0, 2), (1, 2)], 0)
    rng = np.random.default_rng(0)
    for _ in range(4000):
        counts[tuple(draw(np.log(w), 2, rng.random(3)))] += 1  # type: ignore[index]
    for (i, j), seen in counts.items():
        expected = w[i] * w[j] * (1 / (1 - w[i]) + 1 / (1 - w[j]))
        assert abs(seen / 4000 - expected) < 0.03


def test_rows_of_weight_zero_come_last() -> None:
    noise = np.random.default_rng(1).random(6)
    log_weight = log_weights(np.array([0, 1, 0, 2, 0, 0.5]))
    assert draw(log_weight, 3, noise).tolist() == [1, 3, 5]
    assert len(draw(log_weight, 5, noise)) == 5
    assert len(draw(log_weight, 9, noise)) == 6


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 5))
def test_groups_get_their_counts_in_any_row_order(seed: int, n: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    group, weight = rng.integers(0, k, n), np.log(rng.random(n))
    counts = allocate(np.bincount(group, minlength=k), n // 2)
    noise = rng.random(n)
    chosen = draw_groups(weight, group, counts, noise)
    np.testing.assert_array_equal(np.bincount(group[chosen], minlength=k), counts)
    order = rng.permutation(n)
    again = draw_groups(weight[order], group[order], counts, noise[order])
    assert set(order[again]) == set(chosen)


def test_with_replacement_is_multinomial_in_each_group() -> None:
    group = np.array([1, 0, 1, 0, 3])
    often = draw_counts(np.log([1.0, 1, 3, 1, 1]), group, np.array([4, 4000, 0, 7]), np.random.default_rng(0))
    assert np.bincount(group, weights=often).tolist() == [4, 4000, 0, 7]
    assert abs(often[2] / 4000 - 0.75) < 0.03
    alone = draw_counts(np.array([-np.inf, -np.inf]), np.array([0, 0]), np.array([100]), np.random.default_rng(0))
    assert alone.sum() == 100
    assert alone.min() > 20


def test_softmax_is_stable() -> None:
    np.testing.assert_allclose(softmax([1000.0, 1000.0 + np.log(3)]), [0.25, 0.75])
    np.testing.assert_allclose(softmax([-np.inf, 0.0]), [0, 1])
    np.testing.assert_allclose(softmax([-np.inf, -np.inf]), [0.5, 0.5])
    np.testing.assert_allclose(softmax([0.0, 2 * np.log(3)], temperature=2), [0.25, 0.75])


def test_probabilities_are_within_the_group() -> None:
    group = np.array([0, 1, 0, 2, 2])
    p = probabilities(np.array([0.0, 5.0, np.log(3), -np.inf, -np.inf]), group)
    np.testing.assert_allclose(p, [0.25, 1, 0.75, 0.5, 0.5])
    assert np.isfinite(probabilities(np.array([5000.0, 4000.0]), np.array([0, 0]))).all()


def test_qualities_without_a_weight_are_refused() -> None:
    with pytest.raises(DataError, match="1 of 2 qualities are negative"):
        log_weights(np.array([1.0, -1.0]))
    with pytest.raises(DataError, match="1 of 2 rows have no finite quality"):
        log_weights(np.array([1.0, np.nan]), "softmax")
    np.testing.assert_allclose(log_weights(np.array([1.0, -1.0]), "softmax", 2.0), [0.5, -0.5])
    assert np.isneginf(log_weights(np.array([0.0, 1.0]))[0])
