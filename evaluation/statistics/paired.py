"""Two models on the same items.

Pairing removes the spread between items, which is most of the spread (Miller, arXiv 2411.00640). Items are joined by
(task, item, metric). The difference is b minus a: after minus before. Two tables with different item sets or
different task versions are refused, since a difference over what happens to be common is not what a reader expects;
an item without a score on one side is a missing pair, left out and counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cuvee.errors import UserError
from cuvee.rng import stream
from evaluation.statistics.intervals import (
    RESAMPLES,
    Floats,
    are_clusters,
    by_cluster,
    check_level,
    cluster_error,
    quantiles,
    resample,
    resample_within,
)

TOKEN_WEIGHTED = ("loss",)
"""Metrics whose mean is a ratio of sums: nats over tokens."""


@dataclass(frozen=True)
class Paired:
    """`difference` is mean_b - mean_a over the `n` pairs with a score on both sides.

    `wins`, `ties`, `losses` count the pairs where b is larger, equal, smaller (for a loss, larger is worse).
    `missing_a`, `missing_b`: pairs without a score on that side. `p_holm` is set by `compare`.
    """

    task: str
    metric: str
    n: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    p: float
    level: float
    method: str
    wins: int = 0
    ties: int = 0
    losses: int = 0
    missing_a: int = 0
    missing_b: int = 0
    p_holm: float = math.nan


@dataclass(frozen=True)
class McNemar:
    """`only_a`, `only_b`: items that only that model has right; ties say nothing about the difference."""

    only_a: int
    only_b: int
    both: int
    neither: int
    p: float


def mcnemar(a: Sequence[float] | Floats, b: Sequence[float] | Floats) -> McNemar:
    """Exact two-sided test on the discordant pairs. Without any, p is 1."""
    from scipy import stats

    left, right = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if left.shape != right.shape or not (np.isin(left, (0, 1)).all() and np.isin(right, (0, 1)).all()):
        raise ValueError("McNemar needs two lists of the same length with 0 and 1")
    only_a, only_b = int((left > right).sum()), int((left < right).sum())
    p = float(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0
    return McNemar(only_a, only_b, int((left * right).sum()), int(((left + right) == 0).sum()), p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given. NaN (no test was possible) stays NaN and does not count."""
    p = np.asarray(p_values, dtype=np.float64)
    out = np.full(len(p), math.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = len(order) - np.arange(len(order))
    out[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return [float(x) for x in out]


def paired(
    a: pa.Table,
    b: pa.Table,
    rng: np.random.Generator,
    *,
    task: str | None = None,
    metric: str | None = None,
    level: float = 0.95,
    clustered: bool = True,
    strict: bool = True,
    resamples: int = RESAMPLES,
) -> Paired:
    """Compare one metric of one task in two item tables (`evaluation.items.SCHEMA`).

    `task` and `metric` may be left out when the tables hold one only. With `clustered`, items in many groups
    (`intervals.MIN_CLUSTERS`) are compared with cluster-robust errors; else the interval is a paired bootstrap (inside
    each of a few groups) and p is McNemar's for scores of 0 and 1, the bootstrap's otherwise. With `strict=False` only
    common items count and the others are missing.
    Raises UserError when the item sets or versions differ (strict), or nothing is common.
    """
    check_level(level)
    task, metric = _single(a, b, "task", task), _single(a, b, "metric", metric)
    left, right = _select(a, task, metric), _select(b, task, metric)
    if strict:
        _same(left, right, f"{task} {metric}")
    names = sorted(left.keys() | right.keys())
    pairs = [(left.get(name), right.get(name)) for name in names]
    missing_a = sum(x is None or x["score"] is None for x, _ in pairs)
    missing_b = sum(y is None or y["score"] is None for _, y in pairs)
    both = [
        (x, y)
        for x, y in pairs
        if x is not None and y is not None and x["score"] is not None and y["score"] is not None
    ]
    if not both:
        raise UserError(f"{task} {metric}: no item has a score in both tables")
    score_a = np.array([x["score"] for x, _ in both], dtype=np.float64)
    score_b = np.array([y["score"] for _, y in both], dtype=np.float64)
    if not (np.isfinite(score_a).all() and np.isfinite(score_b).all()):
        raise UserError(f"{task} {metric}: a score is not finite", remedy="write it as missing, with its error")
    ones = np.ones_like(score_a)
    weighted = metric in TOKEN_WEIGHTED
    weight_a = np.array([x["tokens"] or 0 for x, _ in both], dtype=np.float64) if weighted else ones
    weight_b = np.array([y["tokens"] or 0 for _, y in both], dtype=np.float64) if weighted else ones
    units = np.column_stack([score_a * weight_a, weight_a, score_b * weight_b, weight_b])
    groups = [str(x["group"] or "") for x, _ in both]
    low, high, p, method = _interval(units, groups if clustered else [], score_a, score_b, rng, level, resamples)
    mean_a, mean_b = _means(units.sum(axis=0, keepdims=True))
    return Paired(
        task=task,
        metric=metric,
        n=len(both),
        mean_a=float(mean_a[0]),
        mean_b=float(mean_b[0]),
        difference=float(mean_b[0] - mean_a[0]),
        low=low,
        high=high,
        p=p,
        level=level,
        method=method,
        wins=int((score_b > score_a).sum()),
        ties=int((score_b == score_a).sum()),
        losses=int((score_b < score_a).sum()),
        missing_a=missing_a,
        missing_b=missing_b,
    )


def compare(
    a: pa.Table, b: pa.Table, seed: int = 0, *, level: float = 0.95, strict: bool = True, main_only: bool = True
) -> list[Paired]:
    """`paired` for every task (its main metric, or all), with Holm's correction over the list, sorted by name.

    Each comparison draws from its own stream. Raises UserError when the tables hold different tasks (strict).
    """
    tables = [t.filter(t["main"]) if main_only else t for t in (a, b)]
    keys = [set(zip(t["task"].to_pylist(), t["metric"].to_pylist(), strict=True)) for t in tables]
    if strict and keys[0] != keys[1]:
        odd = ", ".join(sorted(f"{task} {metric}" for task, metric in keys[0] ^ keys[1]))
        raise UserError(f"only one of the two has {odd}", remedy="evaluate both on the same tasks")
    results = [
        paired(
            tables[0], tables[1], stream(seed, "paired", *key), task=key[0], metric=key[1], level=level, strict=strict
        )
        for key in sorted(keys[0] & keys[1])
    ]
    adjusted = holm([result.p for result in results])
    return [replace(result, p_holm=p) for result, p in zip(results, adjusted, strict=True)]


def _interval(
    units: Floats,
    groups: Sequence[str],
    score_a: Floats,
    score_b: Floats,
    rng: np.random.Generator,
    level: float,
    resamples: int,
) -> tuple[float, float, float, str]:
    """low, high, p and method for b - a; `units` has columns (score x weight, weight) of a and of b."""
    from scipy import stats

    n = len(units)
    binary = bool(np.isin(score_a, (0, 1)).all() and np.isin(score_b, (0, 1)).all())
    if are_clusters(groups):
        sums = by_cluster(units, groups)
        total = units.sum(axis=0)
        mean_a, mean_b = total[0] / total[1], total[2] / total[3]
        residuals = (sums[:, 2] - mean_b * sums[:, 3]) / total[3] - (sums[:, 0] - mean_a * sums[:, 1]) / total[1]
        se, difference, degrees = cluster_error(residuals, 1.0), mean_b - mean_a, len(sums) - 1
        half = float(stats.t.ppf((1 + level) / 2, degrees)) * se
        p = float(2 * stats.t.sf(abs(difference) / se, degrees)) if se > 0 else (1.0 if difference == 0 else math.nan)
        return float(difference - half), float(difference + half), p, "cluster-robust t"
    if n < 2:
        return math.nan, math.nan, math.nan, "none: one pair"
    if binary and (score_a == score_b).all():
        # No pair differs, so a bootstrap would claim certainty; the share of differing pairs has an exact bound.
        bound = 1 - ((1 - level) / 2) ** (1 / n)
        return -bound, bound, 1.0, "exact bound: no pair differs"
    several = len(set(groups)) > 1
    mean_a, mean_b = _means(
        resample_within(units, groups, rng, resamples) if several else resample(units, rng, resamples)
    )
    draws = mean_b - mean_a
    low, high = quantiles(draws, level)
    if binary:
        return low, high, mcnemar(score_a, score_b).p, "paired bootstrap, exact McNemar"
    tail = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return low, high, min(1.0, 2 * (tail + 1) / (resamples + 1)), "paired bootstrap"


def _means(units: Floats) -> tuple[Floats, Floats]:
    return units[:, 0] / units[:, 1], units[:, 2] / units[:, 3]


def _single(a: pa.Table, b: pa.Table, column: str, wanted: str | None) -> str:
    if wanted is not None:
        return wanted
    names = sorted(set(a[column].to_pylist()) | set(b[column].to_pylist()))
    if len(names) != 1:
        raise UserError(f"the tables hold {len(names)} values of {column}", remedy=f"name one: {', '.join(names)}")
    return str(names[0])


def _select(table: pa.Table, task: str, metric: str) -> dict[str, dict[str, Any]]:
    rows = table.filter((pc.field("task") == task) & (pc.field("metric") == metric))
    columns = rows.select(["item", "version", "group", "score", "tokens"]).to_pylist()
    found = {str(row["item"]): row for row in columns}
    if len(found) != len(columns):
        raise UserError(f"{task} {metric}: an item is there twice", remedy="give the items of one evaluation")
    return found


def _same(left: dict[str, dict[str, Any]], right: dict[str, dict[str, Any]], what: str) -> None:
    odd = sorted(left.keys() ^ right.keys())
    if odd:
        raise UserError(
            f"{what}: the two models were scored on different items ({len(left)} and {len(right)}, {len(odd)} of them "
            f"not common, e.g. {odd[0]})",
            remedy="evaluate both with the same limit and data, or compare the common items with strict=False",
        )
    versions = sorted({str(row["version"]) for row in (*left.values(), *right.values())})
    if len(versions) > 1:
        raise UserError(
            f"{what}: scored in different ways ({' | '.join(versions)})",
            remedy="evaluate both with the same version, shots and template, or pass strict=False",
        )
