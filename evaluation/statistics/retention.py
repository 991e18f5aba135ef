"""Retention: what tuning cost elsewhere. Drop = base minus tuned, averaged over the benchmarks of a suite (S3FT)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cuvee.errors import UserError
from cuvee.rng import stream
from evaluation.statistics.intervals import Interval, check_level
from evaluation.statistics.paired import Paired, paired
from evaluation.suites import weights


def retention_drop(
    base: Mapping[str, Mapping[str, Any]],
    tuned: Mapping[str, Mapping[str, Any]],
    suite: str | Sequence[str],
    level: float = 0.95,
) -> tuple[float, Interval]:
    """From two summaries (`evaluation.items.summarise`); positive means that the tuned model lost.

    The interval takes the two summaries as independent, which is wider than need be: with the items at hand use
    `retention_drop_items`. Raises UserError when a benchmark of the suite is missing on either side.
    """
    share = _present(suite, base, tuned)
    drop = sum(w * (float(base[t]["mean"]) - float(tuned[t]["mean"])) for t, w in share.items())
    errors = [(w, side[t]["se"]) for t, w in share.items() for side in (base, tuned)]
    se = math.nan if any(e is None for _, e in errors) else math.sqrt(sum((w * float(e)) ** 2 for w, e in errors))
    n = sum(int(base[t]["n"]) for t in share)
    return drop, _normal(drop, se, n, level, "independent summaries")


def retention_drop_items(
    base: pa.Table, tuned: pa.Table, suite: str | Sequence[str], seed: int = 0, level: float = 0.95
) -> tuple[float, Interval]:
    """The same from two item tables, paired by item within each benchmark; benchmarks are fixed, not a sample."""
    tables = [t.filter(t["main"]) for t in (base, tuned)]
    share = _present(suite, *({name: {"mean": 0.0} for name in set(t["task"].to_pylist())} for t in tables))
    pairs = [(w, _paired(tables, task, seed, level)) for task, w in share.items()]
    drop = -sum(w * pair.difference for w, pair in pairs)
    z = _z(level)
    se = math.sqrt(sum((w * (pair.high - pair.low) / (2 * z)) ** 2 for w, pair in pairs))
    return drop, _normal(drop, se, sum(pair.n for _, pair in pairs), level, "paired by item")


def _paired(tables: Sequence[pa.Table], task: str, seed: int, level: float) -> Paired:
    base, tuned = (t.filter(pc.field("task") == task) for t in tables)
    return paired(base, tuned, stream(seed, "retention", task), level=level)


def _present(suite: str | Sequence[str], *sides: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    share = weights(suite)
    missing = sorted({t for t in share for side in sides if t not in side or side[t]["mean"] is None})
    if missing:
        raise UserError(f"no score of {', '.join(missing)}", remedy="evaluate base and tuned model on the whole suite")
    return share


def _z(level: float) -> float:
    from scipy import stats

    check_level(level)
    return float(stats.norm.ppf((1 + level) / 2))


def _normal(mean: float, se: float, n: int, level: float, method: str) -> Interval:
    half = _z(level) * se
    return Interval(mean, mean - half, mean + half, n, level, method, se)
