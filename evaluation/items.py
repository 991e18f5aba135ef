"""Every score is a table of items.

One row is one metric of one item, so that comparisons can be paired, flipped answers shown, and any figure of a
report traced. `version` says how the item was asked and scored (task version, shots, template, judge): scores made in
different ways do not pair. A score that could not be had is null, with the reason in `error`; it is never a zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from cuvee.errors import DataError
from cuvee.rng import stream
from evaluation.statistics.intervals import Interval, are_clusters, bootstrap_mean, clustered_mean, wilson
from evaluation.statistics.paired import TOKEN_WEIGHTED

SCHEMA = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("item", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("main", pa.bool_(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("prompt", pa.string()),
        pa.field("prediction", pa.string()),
        pa.field("reference", pa.string()),
        pa.field("verdict", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("logprob", pa.float64()),
        pa.field("tokens", pa.int64()),
        pa.field("correct", pa.bool_()),
        pa.field("error", pa.string(), nullable=False),
    ]
)
"""`group`: subject, category or passage that items share, empty if none. `main`: the task's main metric.
`logprob` in nats over `tokens` tokens; `score` of metric `loss` is nats per token, and its mean is per token too."""

ITEMS_SCHEMA = SCHEMA

_DEFAULTS: dict[str, Any] = {"group": "", "main": True, "error": ""}


def table(records: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Items from dicts, sorted by (task, item, metric). Raises DataError for a column that is none of ours."""
    names = set(SCHEMA.names)
    rows = []
    for record in records:
        if odd := sorted(record.keys() - names):
            raise DataError("is no column of an item table", field=odd[0])
        rows.append({**_DEFAULTS, **record})
    rows.sort(key=lambda row: (row["task"], row["item"], row["metric"]))
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def concat(tables: Iterable[pa.Table]) -> pa.Table:
    """One table of several, sorted like each of them."""
    parts = [SCHEMA.empty_table(), *tables]
    return pa.concat_tables(parts).sort_by([("task", "ascending"), ("item", "ascending"), ("metric", "ascending")])


def summarise(items: pa.Table, *, level: float = 0.95, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Task → its main metric with mean, n, low, high, se, method, errors, unsure, and the rest under `metrics`.

    Wilson for scores of 0 and 1, the bootstrap for others (inside each of a few groups), cluster-robust where items
    come in many groups. `groups` has the mean of each. Unknown figures are None, so that the result is JSON.
    """
    frame = items.select(
        ["task", "version", "metric", "main", "item", "group", "score", "tokens", "verdict", "error"]
    ).to_pylist()
    buckets: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in frame:
        buckets.setdefault((row["task"], row["metric"]), []).append(row)
    summary: dict[str, dict[str, Any]] = {}
    for (task, metric), rows in sorted(buckets.items(), key=lambda entry: (not entry[1][0]["main"], entry[0])):
        figures = _figures(metric, rows, stream(seed, "summary", task, metric), level)
        if task not in summary:
            versions = sorted({row["version"] for row in rows})
            summary[task] = {"metric": metric, **figures, "version": " | ".join(versions), "metrics": {}}
        summary[task]["metrics"][metric] = figures
    return dict(sorted(summary.items()))


def interval(metric: str, rows: list[dict[str, Any]], rng: np.random.Generator, level: float = 0.95) -> Interval:
    """The interval that fits the scores of `rows` (dicts with score, group, tokens); null scores are left out."""
    scored = [row for row in rows if row["score"] is not None]
    values = np.array([row["score"] for row in scored], dtype=np.float64)
    tokens = np.array([row["tokens"] or 0 for row in scored], dtype=np.float64)
    weights = tokens if metric in TOKEN_WEIGHTED and tokens.sum() > 0 else None
    groups = [row["group"] for row in scored]
    if are_clusters(groups):
        return clustered_mean(values, groups, level, weights=weights)
    if weights is None and np.isin(values, (0, 1)).all():
        return wilson(int(values.sum()), len(values), level)
    return bootstrap_mean(values, rng, level, weights=weights, strata=groups if len(set(groups)) > 1 else None)


def _figures(metric: str, rows: list[dict[str, Any]], rng: np.random.Generator, level: float) -> dict[str, Any]:
    found = interval(metric, rows, rng, level)
    figures: dict[str, Any] = {
        "mean": _json(found.mean),
        "low": _json(found.low),
        "high": _json(found.high),
        "se": _json(found.se),
        "n": found.n,
        "level": level,
        "method": found.method,
        "errors": sum(row["score"] is None for row in rows),
        "unsure": sum(row["verdict"] == "unsure" for row in rows),
    }
    names = sorted({row["group"] for row in rows})
    if len(names) > 1:
        by_name = {name: [row for row in rows if row["group"] == name] for name in names}
        figures["groups"] = {}
        for name, members in by_name.items():
            one = interval(metric, members, rng, level)
            figures["groups"][name] = {
                "mean": _json(one.mean), "low": _json(one.low), "high": _json(one.high), "n": one.n
            }  # fmt: skip
    return figures


def _json(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
