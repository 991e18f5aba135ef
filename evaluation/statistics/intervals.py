"""Intervals for one score.

Wilson for proportions, since the normal interval fails near 0 and 1 (Brown, Cai and DasGupta, 2001): at small model
sizes many accuracies are near 0. The percentile bootstrap for other means. Where items come in many groups (subjects,
passages) a group is the unit: the sandwich estimator with t quantiles on groups - 1 degrees of freedom. A few groups
(the sources of a table) are no sample of groups, and a t on two degrees of freedom shows nothing: they are strata of
fixed size, and items are drawn inside each.

A mean may be a ratio of sums (loss per token: nats over tokens); `weights` are then the denominators. All draws are
over sorted values, so an interval does not depend on the order of the items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
RESAMPLES = 10_000
MIN_CLUSTERS = 8
"""Groups below this number are strata."""
_CELLS = 4_000_000  # of one block of draws: 32 MB


@dataclass(frozen=True)
class Interval:
    """`mean` with `low` and `high` at `level`, from `n` items. What cannot be known is NaN."""

    mean: float
    low: float
    high: float
    n: int
    level: float
    method: str
    se: float = math.nan


def are_clusters(groups: Sequence[str]) -> bool:
    """Whether groups are so many that they count as a sample of groups."""
    return len(set(groups)) >= MIN_CLUSTERS


def check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level {level} is not between 0 and 1")


def wilson(k: int, n: int, level: float = 0.95) -> Interval:
    """The interval of k successes in n. With n = 0 nothing is known: mean NaN, from 0 to 1."""
    from scipy import stats

    check_level(level)
    if not 0 <= k <= n:
        raise ValueError(f"{k} of {n} is not a proportion")
    if n == 0:
        return Interval(math.nan, 0.0, 1.0, 0, level, "wilson")
    z = float(stats.norm.ppf((1 + level) / 2))
    share = k / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low = 0.0 if k == 0 else centre - half
    high = 1.0 if k == n else centre + half
    return Interval(share, low, high, n, level, "wilson", math.sqrt(share * (1 - share) / n))


def bootstrap_mean(
    values: Sequence[float] | Floats,
    rng: np.random.Generator,
    level: float = 0.95,
    clusters: Sequence[str] | None = None,
    *,
    weights: Sequence[float] | Floats | None = None,
    strata: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
) -> Interval:
    """Percentile bootstrap of the (weighted) mean; with `clusters`, whole clusters are drawn, with `strata`, items
    inside each.

    With fewer than two units (items or clusters) the spread is unknown: low and high are NaN. Raises ValueError for
    values that are not finite: what is missing is for the caller to count.
    """
    check_level(level)
    sums = totals(values, weights, clusters)
    n, units = len(np.asarray(values)), len(sums)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0, level, "bootstrap")
    mean = float(sums[:, 0].sum() / sums[:, 1].sum())
    method = "bootstrap" if clusters is None else "cluster bootstrap"
    if units < 2:
        return Interval(mean, math.nan, math.nan, n, level, method)
    if strata is None or clusters is not None:
        drawn = resample(sums, rng, resamples)
    else:
        method, drawn = "stratified bootstrap", resample_within(sums, strata, rng, resamples)
    means = drawn[:, 0] / drawn[:, 1]
    low, high = quantiles(means, level)
    return Interval(mean, low, high, n, level, method, float(means.std(ddof=1)))


def clustered_mean(
    values: Sequence[float] | Floats,
    clusters: Sequence[str],
    level: float = 0.95,
    *,
    weights: Sequence[float] | Floats | None = None,
) -> Interval:
    """The (weighted) mean with a cluster-robust standard error (CR1) and t quantiles on clusters - 1."""
    from scipy import stats

    check_level(level)
    sums = totals(values, weights, clusters)
    n, groups = len(np.asarray(values)), len(sums)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0, level, "cluster-robust t")
    mean = float(sums[:, 0].sum() / sums[:, 1].sum())
    if groups < 2:
        return Interval(mean, math.nan, math.nan, n, level, "cluster-robust t")
    se = cluster_error(sums[:, 0] - mean * sums[:, 1], float(sums[:, 1].sum()))
    half = float(stats.t.ppf((1 + level) / 2, groups - 1)) * se
    return Interval(mean, mean - half, mean + half, n, level, "cluster-robust t", se)


def cluster_error(residuals: Floats, weight: float) -> float:
    """Standard error of a ratio of sums from the residual sum of each cluster and the total weight."""
    groups = len(residuals)
    return math.sqrt(groups / (groups - 1) * float((residuals**2).sum())) / weight


def totals(
    values: Sequence[float] | Floats,
    weights: Sequence[float] | Floats | None = None,
    clusters: Sequence[str] | None = None,
) -> Floats:
    """(units, 2): sum of weight times value, and of weight, of each item or cluster."""
    value = finite(values)
    weight = np.ones_like(value) if weights is None else finite(weights)
    if len(value) != len(weight) or (clusters is not None and len(clusters) != len(value)):
        raise ValueError("values, weights and clusters differ in length")
    if (weight < 0).any() or (len(weight) and weight.sum() == 0):
        raise ValueError("weights must be positive")
    return by_cluster(np.column_stack([weight * value, weight]), clusters)


def by_cluster(columns: Floats, clusters: Sequence[str] | None) -> Floats:
    """Sums of the rows of each cluster, in the order of cluster names; the rows themselves without clusters."""
    if clusters is None:
        return columns
    names, code = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    sums = np.zeros((len(names), columns.shape[1]))
    np.add.at(sums, code, columns)
    return sums


def finite(values: Sequence[float] | Floats) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ValueError("values must be a flat list of finite numbers")
    return array


def resample(units: Floats, rng: np.random.Generator, resamples: int) -> Floats:
    """(resamples, columns): column sums of units drawn with replacement.

    Equal units are drawn together: the counts of the distinct ones are multinomial, so that thousands of items with
    scores 0 and 1 cost one draw a resample.
    """
    distinct, counts = np.unique(units, axis=0, return_counts=True)
    n, kinds = len(units), len(distinct)
    block = max(1, _CELLS // kinds)
    out = np.empty((resamples, units.shape[1]))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        out[start : start + size] = rng.multinomial(n, counts / n, size=size) @ distinct
    return out


def resample_within(units: Floats, strata: Sequence[str], rng: np.random.Generator, resamples: int) -> Floats:
    """(resamples, columns): column sums of units drawn with replacement inside each stratum, in order of names."""
    names, code = np.unique(np.asarray(strata, dtype=object).astype(str), return_inverse=True)
    parts = [resample(units[code == number], rng, resamples) for number in range(len(names))]
    return np.sum(parts, axis=0)


def quantiles(draws: Floats, level: float) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
