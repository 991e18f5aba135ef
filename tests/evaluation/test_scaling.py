"""Fits against scipy's least squares and against known laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import curve_fit

from evaluation.statistics.scaling import fit, held_out

X = np.array([8, 16, 32, 64, 128, 256, 512], dtype=float)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def law(x: np.ndarray, a: float, b: float, c: float) -> np.ndarray:
    return a + b * x**-c


def test_a_law_without_noise_is_found() -> None:
    found = fit(X, law(X, 0.7, 3.0, 0.5), rng())
    assert found is not None
    assert (found.offset, found.scale, found.exponent) == pytest.approx((0.7, 3.0, 0.5), rel=0.03)
    assert found.r2 > 0.9999


@pytest.mark.parametrize("seed", range(5))
def test_a_noisy_fit_is_as_good_as_that_of_scipy(seed: int) -> None:
    y = law(X, 0.5, 4.0, 0.6) + rng(seed).normal(0, 0.03, len(X))
    found = fit(X, y, rng())
    assert found is not None
    theirs, _ = curve_fit(law, X, y, p0=[0.5, 4, 0.6], bounds=([-np.inf, -np.inf, 0.02], [np.inf, np.inf, 5.0]))
    ours = ((y - found.at(X)) ** 2).sum()
    assert ours <= ((y - law(X, *theirs)) ** 2).sum() * 1.01
    np.testing.assert_allclose(found.at(X), law(X, *theirs), atol=0.005)


def test_a_score_that_rises_is_a_law_too() -> None:
    found = fit(X, law(X, 0.9, -2.0, 0.7), rng())
    assert found is not None
    assert found.scale < 0
    assert found.at([1e9])[0] == pytest.approx(0.9, abs=0.01)


def test_a_loss_has_no_offset_below_zero() -> None:
    y = 3.0 * X**-0.1 - 1.0
    free, bound = fit(X, y, rng()), fit(X, y, rng(), positive=True)
    assert free is not None
    assert bound is not None
    assert free.offset < 0 <= bound.offset


def test_the_band_holds_the_truth_about_as_often_as_it_says() -> None:
    truth, hits = law(np.array([24.0, 100.0]), 0.5, 4.0, 0.6), []
    for seed in range(120):
        found = fit(X, law(X, 0.5, 4.0, 0.6) + rng(seed).normal(0, 0.05, len(X)), rng(1000 + seed), draws=200)
        assert found is not None
        low, high = found.band([24.0, 100.0])
        hits.append((low <= truth) & (truth <= high))
    assert 0.85 <= np.mean(hits) <= 1.0


def test_the_amount_for_a_target() -> None:
    found = fit(X, law(X, 0.5, 4.0, 0.6) + rng(1).normal(0, 0.01, len(X)), rng())
    assert found is not None
    exact = ((0.7 - 0.5) / 4.0) ** (-1 / 0.6)
    x, low, high, share = found.reach(0.7)
    assert low < exact < high
    assert x == pytest.approx(exact, rel=0.4)
    assert share > 0.95


def test_what_is_below_the_offset_is_never_reached() -> None:
    found = fit(X, law(X, 0.5, 4.0, 0.6), rng())
    assert found is not None
    x, _, high, share = found.reach(0.1)
    assert math.isnan(x)
    assert (high, share) == (math.inf, 0.0)


def test_too_few_amounts_have_no_law() -> None:
    assert fit([1, 2, 4, 4], [3, 2, 1, 1], rng()) is None
    assert fit([0, 1, 2, 4], [4, 3, 2, 1], rng()) is None
    assert held_out([1, 2, 4, 8], [4, 3, 2, 1], rng()) is None


def test_the_largest_amount_is_predicted_from_the_others() -> None:
    y = law(X, 0.5, 4.0, 0.6) + rng(2).normal(0, 0.02, len(X))
    good = held_out(X, y, rng())
    assert good is not None
    assert good.x == 512
    assert good.inside
    y[-1] += 1.0
    bad = held_out(X, y, rng())
    assert bad is not None
    assert not bad.inside
    assert bad.predicted == pytest.approx(good.predicted)


def test_the_same_generator_gives_the_same_band() -> None:
    y = law(X, 0.5, 4.0, 0.6) + rng(2).normal(0, 0.02, len(X))
    first, second = fit(X, y, rng(5)), fit(X, y, rng(5))
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first.draws, second.draws)
