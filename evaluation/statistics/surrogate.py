"""A smooth guess of a score over a search space, from the arms that were tried.

A Gaussian process (Rasmussen and Williams, 2006) over the unit cube of the space: Matérn 5/2 with a length for each
coordinate and a noise term, fitted by scikit-learn. It says a mean and a spread everywhere, from which follow the
probability that an untried arm beats the best and by how much on average. Whether that may be believed is checked by
leaving each arm out in turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
LEAST = 5
"""Arms that a guess needs."""


@dataclass(frozen=True)
class Trust:
    """Each arm guessed from the others: R² of the guesses (1 exact, 0 no better than the mean of the others or worse),
    and the share of arms inside their 90% interval."""

    r2: float
    covered: float
    n: int


class Surrogate:
    """The process through `points` (arms, dims) with `values` (arms,), less being better."""

    def __init__(self, points: Floats, values: Floats, seed: int = 0) -> None:
        import warnings

        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

        self.points, self.values = np.asarray(points, dtype=np.float64), np.asarray(values, dtype=np.float64)
        if len(self.values) < LEAST:
            raise ValueError(f"{len(self.values)} arms are too few for a guess")
        self._middle, self._spread = float(self.values.mean()), float(self.values.std()) or 1.0
        dims = self.points.shape[1]
        kernel: Any = ConstantKernel(1.0, (0.1, 10.0)) * Matern([0.5] * dims, (0.1, 10.0), nu=2.5)
        kernel = kernel + WhiteKernel(0.05, (1e-4, 1.0))
        self._model = GaussianProcessRegressor(kernel, n_restarts_optimizer=2, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a length at its bound is a coordinate without effect
            self._model.fit(self.points, (self.values - self._middle) / self._spread)

    def guess(self, points: Floats) -> tuple[Floats, Floats]:
        """(mean, standard deviation) at each point, noise of a single run included."""
        mean, sd = self._model.predict(points, return_std=True)
        return mean * self._spread + self._middle, sd * self._spread

    def improvement(self, points: Floats) -> tuple[Floats, Floats]:
        """(expected gain over the best arm, probability of any gain) at each point."""
        from scipy import stats

        mean, sd = self.guess(points)
        ahead = float(self.values.min()) - mean
        z = ahead / np.maximum(sd, 1e-12)
        return ahead * stats.norm.cdf(z) + sd * stats.norm.pdf(z), stats.norm.cdf(z)

    def trust(self) -> Trust:
        """Leave-one-out with the fitted kernel (Rasmussen and Williams, eq. 5.12)."""
        kernel = self._model.kernel_(self.points)
        inverse = np.linalg.inv(kernel)
        y = (self.values - self._middle) / self._spread
        variance = 1 / np.diag(inverse)
        wrong = (inverse @ y) * variance
        inside = np.abs(wrong) <= 1.6449 * np.sqrt(variance)
        n = len(y)
        baseline = ((y - (y.sum() - y) / (n - 1)) ** 2).sum()
        r2 = 1 - float((wrong**2).sum() / baseline) if baseline > 0 else 0.0
        return Trust(max(0.0, r2), float(inside.mean()), n)
