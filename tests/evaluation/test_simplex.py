"""Points of a search space against closed forms and independent draws."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.stats import qmc

from evaluation.statistics.simplex import simplex, sobol


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_shares_are_positive_and_sum_to_one() -> None:
    shares = simplex(sobol(100, 4, rng()))
    assert shares.shape == (100, 4)
    assert (shares > 0).all()
    np.testing.assert_allclose(shares.sum(axis=1), 1)


def test_shares_are_uniform_on_the_simplex() -> None:
    """Moments and marginals of Dirichlet(1, 1, 1): each share is Beta(1, 2)."""
    shares = simplex(sobol(4096, 3, rng()))
    np.testing.assert_allclose(shares.mean(axis=0), 1 / 3, atol=2e-3)
    np.testing.assert_allclose(np.cov(shares.T), stats.dirichlet.cov([1, 1, 1]), atol=2e-3)
    for share in shares.T:
        assert stats.kstest(share, stats.beta(1, 2).cdf).statistic < 0.01


def test_points_are_more_even_than_independent_draws() -> None:
    even = qmc.discrepancy(sobol(64, 3, rng()))
    assert all(even < 0.7 * qmc.discrepancy(rng(seed).random((64, 3))) for seed in range(20))


def test_a_sequence_can_be_continued() -> None:
    whole = sobol(40, 5, rng(7))
    np.testing.assert_array_equal(whole, np.vstack([sobol(13, 5, rng(7)), sobol(27, 5, rng(7), start=13)]))
    assert not np.array_equal(whole, sobol(40, 5, rng(8)))


def test_floors_are_kept() -> None:
    points = sobol(200, 3, rng())
    floored = simplex(points, floor=0.1)
    assert floored.min() >= 0.1
    np.testing.assert_allclose(floored, 0.1 + 0.7 * simplex(points))


def test_the_edges_of_the_cube_have_shares_too() -> None:
    assert np.isfinite(simplex([[0.0, 1.0, 0.5]])).all()


@pytest.mark.parametrize(("points", "floor"), [([[0.5]], 0.0), ([[0.5, 0.5]], 0.5), ([[0.5, 0.5]], -0.1)])
def test_faults(points: list[list[float]], floor: float) -> None:
    with pytest.raises(ValueError, match="share"):
        simplex(points, floor)
