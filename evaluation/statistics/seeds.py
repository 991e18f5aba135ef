"""Seeds as the unit: claims about a method, and where the noise comes from.

A comparison of methods shares its seeds between arms, so it is a paired t over the differences by seed. Noise is split
by what the seeds vary (sample, order, init, judge): half the squared difference of two runs has as its expectation the
sum of the variances of the factors in which they differ. Pairs of runs that differ in one factor give its variance
directly (for runs that vary one factor at a time, the sample variance of each series). Otherwise least squares over
all pairs, with variances kept non-negative, holds for any design; for balanced ones it equals the ANOVA estimators
where those are not negative (Searle, Casella and McCulloch, "Variance Components", ch. 4).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.statistics.intervals import check_level, finite


@dataclass(frozen=True)
class PairedT:
    """Mean difference over `n` seeds with its interval; NaN where it cannot be known."""

    mean: float
    low: float
    high: float
    t: float
    p: float
    n: int


def paired_t(differences: Sequence[float], level: float = 0.95) -> PairedT:
    """Two-sided paired t over the differences by seed.

    With one seed there is no interval. When all differences are equal there is no spread to test against: the
    interval is the mean itself and t and p are NaN, since such seeds most likely vary nothing.
    """
    from scipy import stats

    check_level(level)
    values = finite(differences)
    n = len(values)
    if n == 0:
        return PairedT(math.nan, math.nan, math.nan, math.nan, math.nan, 0)
    mean = float(values.mean())
    if n == 1:
        return PairedT(mean, math.nan, math.nan, math.nan, math.nan, 1)
    if np.ptp(values) == 0:
        return PairedT(mean, mean, mean, math.nan, math.nan, n)
    se = float(values.std(ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * se
    t = mean / se
    return PairedT(mean, mean - half, mean + half, t, float(2 * stats.t.sf(abs(t), n - 1)), n)


@dataclass(frozen=True)
class Component:
    """Variance that one factor causes. `levels`: distinct seeds of it; NaN when the runs cannot tell."""

    factor: str
    variance: float
    sd: float
    share: float
    levels: int


@dataclass(frozen=True)
class Components:
    """`total_sd`: of one run when all factors vary. `confounded`: factors that the runs cannot tell apart."""

    parts: tuple[Component, ...]
    total_sd: float
    runs: int
    confounded: tuple[str, ...] = ()


def variance_components(
    runs: Sequence[Mapping[str, str | int]],
    scores: Sequence[float],
    factors: Sequence[str] = ("sample", "order", "init", "judge"),
    *,
    residual: bool = False,
) -> Components:
    """Split the variance of `scores` by factor; `runs` gives the seed of each factor in each run.

    `residual` adds a part for what differs between runs with equal seeds (and for interactions). A factor that never
    varies has variance NaN, as have factors that vary only together.
    """
    from scipy.optimize import nnls

    values = finite(scores)
    if len(values) != len(runs):
        raise ValueError("runs and scores differ in length")
    levels = {f: len({str(run[f]) for run in runs}) for f in factors}
    pairs = list(itertools.combinations(range(len(runs)), 2))
    varying = [f for f in factors if levels[f] > 1]
    design = np.array(
        [[float(str(runs[i][f]) != str(runs[j][f])) for f in varying] + [1.0] * residual for i, j in pairs]
    ).reshape(len(pairs), len(varying) + residual)
    halves = np.array([(values[i] - values[j]) ** 2 / 2 for i, j in pairs])
    single = design.sum(axis=1) == 1
    if not residual and design[single].any(axis=0).all():
        design, halves = design[single], halves[single]
    names = [*varying, *(["residual"] if residual else [])]
    known = _identified(design)
    found: dict[str, float] = {}
    total = math.nan
    if names and pairs:
        solution, _ = nnls(design, halves)
        found = {name: float(v) for name, v, ok in zip(names, solution, known, strict=True) if ok}
        total = float(solution.sum())  # of factors that vary only together, their sum is known
    parts = tuple(
        Component(
            name,
            found.get(name, math.nan),
            math.sqrt(found[name]) if name in found else math.nan,
            found[name] / total if name in found and total > 0 else math.nan,
            levels.get(name, 0),
        )
        for name in [*factors, *(["residual"] if residual else [])]
    )
    confounded = tuple(name for name, ok in zip(names, known, strict=True) if not ok)
    return Components(parts, math.sqrt(total), len(runs), confounded)


def _identified(design: np.ndarray) -> list[bool]:
    """For each column, whether its coefficient is determined: the rank falls when it is taken away."""
    if design.size == 0:
        return [False] * design.shape[1]
    rank = int(np.linalg.matrix_rank(design))
    return [int(np.linalg.matrix_rank(np.delete(design, j, axis=1))) < rank for j in range(design.shape[1])]
