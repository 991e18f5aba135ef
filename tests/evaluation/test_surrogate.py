"""The surrogate on functions that are known, its leave-one-out against refitting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from evaluation.statistics.surrogate import Surrogate


def bowl(points: np.ndarray) -> np.ndarray:
    return ((points - [0.3, 0.7]) ** 2).sum(axis=1)


def test_it_proposes_near_the_minimum_and_trusts_itself() -> None:
    points = np.random.default_rng(0).random((20, 2))
    model = Surrogate(points, bowl(points))
    grid = np.stack(np.meshgrid(np.linspace(0, 1, 21), np.linspace(0, 1, 21)), axis=-1).reshape(-1, 2)
    mean, _ = model.guess(grid)
    assert np.abs(grid[mean.argmin()] - [0.3, 0.7]).max() <= 0.1
    trust = model.trust()
    assert trust.r2 > 0.9
    assert trust.n == 20


def test_noise_is_not_trusted() -> None:
    generator = np.random.default_rng(1)
    trust = Surrogate(generator.random((20, 3)), generator.normal(size=20)).trust()
    assert trust.r2 < 0.5
    assert trust.covered >= 0.7


def test_improvement_is_that_of_a_normal_guess() -> None:
    points = np.random.default_rng(2).random((12, 2))
    model = Surrogate(points, bowl(points) + np.random.default_rng(3).normal(0, 0.05, 12))
    mean, sd = model.guess(points[:1])
    gain, chance = model.improvement(points[:1])
    draws = np.random.default_rng(4).normal(mean[0], sd[0], 200_000)
    best = model.values.min()
    assert gain[0] == pytest.approx(np.maximum(best - draws, 0).mean(), rel=0.03, abs=1e-4)
    assert chance[0] == pytest.approx(stats.norm.cdf((best - mean[0]) / sd[0]))


def test_leave_one_out_is_what_leaving_out_gives() -> None:
    from sklearn.gaussian_process import GaussianProcessRegressor

    points = np.random.default_rng(5).random((10, 2))
    values = bowl(points) + np.random.default_rng(6).normal(0, 0.02, 10)
    model = Surrogate(points, values)
    scaled = (values - values.mean()) / values.std()
    wrong = []
    for i in range(10):
        keep = np.arange(10) != i
        alone = GaussianProcessRegressor(model._model.kernel_, optimizer=None).fit(points[keep], scaled[keep])
        wrong.append(scaled[i] - alone.predict(points[i : i + 1])[0])
    baseline = [scaled[i] - scaled[np.arange(10) != i].mean() for i in range(10)]
    expected = 1 - np.square(wrong).sum() / np.square(baseline).sum()
    assert model.trust().r2 == pytest.approx(max(0.0, expected), abs=1e-6)


def test_too_few_arms() -> None:
    with pytest.raises(ValueError, match="too few"):
        Surrogate(np.zeros((3, 2)), np.zeros(3))
