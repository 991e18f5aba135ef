"""How a score follows an amount of data: a power law with an offset, y = a + b x^-c.

Losses of fine-tuned models follow it over the number of rows (Zhang et al., "When Scaling Meets LLM Finetuning",
arXiv 2402.17193). For a given exponent c the law is linear in a and b, so that only c is searched; a fit over three
unknowns from three points would be exact and say nothing, so four different amounts are the least.

The band is a bootstrap of residuals (enlarged by sqrt(n / (n - 3)), since a fit is nearer to its own points than to the
truth). A fit is checked by leaving the largest amount out and predicting it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from evaluation.statistics.intervals import check_level, finite

Floats = npt.NDArray[np.float64]
DRAWS = 400
LEAST = 4
"""Different amounts that a fit needs."""
_EXPONENTS = np.geomspace(0.02, 5.0, 200)


@dataclass(frozen=True)
class Law:
    """y = offset + scale * x^-exponent, with `draws` (draws, 3) of the three from the bootstrap; `sd` of residuals."""

    offset: float
    scale: float
    exponent: float
    sd: float
    r2: float
    n: int
    draws: Floats = field(repr=False)
    residuals: Floats = field(repr=False)

    def at(self, x: npt.ArrayLike) -> Floats:
        """The fitted curve."""
        return _curve(np.array([[self.offset, self.scale, self.exponent]]), x)[0]

    def band(self, x: npt.ArrayLike, level: float = 0.95) -> tuple[Floats, Floats]:
        """(low, high) of the curve at each x."""
        check_level(level)
        low, high = np.quantile(_curve(self.draws, x), [(1 - level) / 2, (1 + level) / 2], axis=0)
        return low, high

    def predict(self, x: float, rng: np.random.Generator, level: float = 0.95) -> tuple[float, float, float]:
        """(curve, low, high) of one new measurement at x: the band and the spread of single measurements."""
        check_level(level)
        noise = rng.choice(self.residuals, size=len(self.draws))
        low, high = np.quantile(_curve(self.draws, [x])[:, 0] + noise, [(1 - level) / 2, (1 + level) / 2])
        return float(self.at([x])[0]), float(low), float(high)

    def reach(self, target: float, level: float = 0.95) -> tuple[float, float, float, float]:
        """(x, low, high, share): the amount at which the curve passes `target`.

        `share` is that of the draws which ever reach it; where the fit itself does not, x is NaN. An end of the
        interval is infinite when that many draws never reach it.
        """
        check_level(level)
        found = np.array([_solve(float(draw[0]), float(draw[1]), float(draw[2]), target) for draw in self.draws])
        # Whoever does not reach it needs more than any amount.
        amounts = np.where(np.isfinite(found), found, np.inf)
        ends = np.quantile(amounts, [(1 - level) / 2, (1 + level) / 2], method="nearest")
        own = _solve(self.offset, self.scale, self.exponent, target)
        return own, float(ends[0]), float(ends[1]), float(np.isfinite(found).mean())


@dataclass(frozen=True)
class Check:
    """The largest amount left out: what was measured there, and what the others predict, with its interval."""

    x: float
    measured: float
    predicted: float
    low: float
    high: float
    inside: bool


def fit(
    x: Sequence[float] | Floats,
    y: Sequence[float] | Floats,
    rng: np.random.Generator,
    *,
    positive: bool = False,
    draws: int = DRAWS,
) -> Law | None:
    """The law through points with x > 0; None for fewer than four different ones. `positive`: no offset below zero."""
    xs, ys = finite(x), finite(y)
    if len(xs) != len(ys):
        raise ValueError("x and y differ in length")
    keep = xs > 0
    xs, ys = xs[keep], ys[keep]
    if len(np.unique(xs)) < LEAST:
        return None
    found = _best(ys[None, :], xs, positive)[0]
    curve = _curve(found[None, :], xs)[0]
    rest = ys - curve
    free = max(len(xs) - 3, 1)
    sd = math.sqrt(float((rest**2).sum()) / free)
    enlarged = (rest - rest.mean()) * math.sqrt(len(xs) / free)
    samples = curve + rng.choice(enlarged, size=(draws, len(xs)))
    total = float(((ys - ys.mean()) ** 2).sum())
    r2 = 1 - float((rest**2).sum()) / total if total > 0 else 1.0
    drawn = _best(samples, xs, positive)
    return Law(float(found[0]), float(found[1]), float(found[2]), sd, r2, len(xs), drawn, enlarged)


def held_out(
    x: Sequence[float] | Floats,
    y: Sequence[float] | Floats,
    rng: np.random.Generator,
    *,
    positive: bool = False,
    level: float = 0.95,
) -> Check | None:
    """Fit without the largest amount and predict it; None when too few amounts are left."""
    xs, ys = finite(x), finite(y)
    last = float(xs.max(initial=0.0))
    law = fit(xs[xs < last], ys[xs < last], rng, positive=positive)
    if law is None:
        return None
    predicted, low, high = law.predict(last, rng, level)
    measured = float(ys[xs == last].mean())
    return Check(last, measured, predicted, low, high, low <= measured <= high)


def _best(samples: Floats, x: Floats, positive: bool) -> Floats:
    """(samples, 3): the best law for each row of y, over a grid of exponents."""
    middle = float(np.exp(np.log(x).mean()))  # over it, columns of all exponents are of like size
    powers = (x / middle)[None, :] ** -_EXPONENTS[:, None]
    spread = powers - powers.mean(axis=1, keepdims=True)
    centred = samples - samples.mean(axis=1, keepdims=True)
    scale = centred @ spread.T / (spread**2).sum(axis=1)
    offset = samples.mean(axis=1)[:, None] - scale * powers.mean(axis=1)
    if positive:
        through = samples @ powers.T / (powers**2).sum(axis=1)
        below = offset < 0
        scale, offset = np.where(below, through, scale), np.where(below, 0.0, offset)
    wrong = ((samples[:, None, :] - offset[:, :, None] - scale[:, :, None] * powers[None, :, :]) ** 2).sum(axis=2)
    pick = wrong.argmin(axis=1)
    rows, exponent = np.arange(len(samples)), _EXPONENTS[pick]
    return np.column_stack([offset[rows, pick], scale[rows, pick] * middle**exponent, exponent])


def _curve(laws: Floats, x: npt.ArrayLike) -> Floats:
    """(laws, points)."""
    xs = np.asarray(x, dtype=np.float64)
    return laws[:, :1] + laws[:, 1:2] * xs[None, :] ** -laws[:, 2:3]


def _solve(offset: float, scale: float, exponent: float, target: float) -> float:
    ratio = (target - offset) / scale if scale else math.nan
    return float(ratio ** (-1 / exponent)) if ratio > 0 else math.nan
