"""Which arm is best, by a rule that is said.

Validation rows choose: the finalists of a search are the best finished arms (several metrics: those that no other arm
beats in all, spread over the front). Where seeds repeat them, the mean over seeds decides, with an interval over seeds.
The winner's figures are those on test rows, which had no say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from evaluation.statistics.intervals import clustered_mean
from evaluation.statistics.pareto import choose, ranks
from services.plan import ArmPlan
from services.search import Search
from services.store import Store
from services.sweep.records import Record, Records
from services.sweep.sources import hours, score_of


def table(search: Search, records: Sequence[Record]) -> list[list[float]]:
    """(arms, metrics), NaN for arms that did not finish."""
    return [
        [r.scores.get(name, math.nan) if r.status == "finished" else math.nan for name in search.metric]
        for r in records
    ]


def finalists(search: Search, records: Sequence[Record]) -> list[Record]:
    """The arms that are worth repeating."""
    if not records:
        return []
    return [records[i] for i in choose(table(search, records), search.lower, search.finalists)]


def rule(search: Search) -> str:
    """How the winner is found, in a sentence."""
    sides = [f"{'lowest' if low else 'highest'} {name}" for name, low in zip(search.metric, search.lower, strict=True)]
    if len(sides) == 1:
        return f"{sides[0]} on validation rows, by the mean over seeds among the {search.finalists} best of the search"
    return (
        f"{' and '.join(sides)} on validation rows: of the arms that no other beats in all, "
        "the nearest to the best of each, each scaled to their range"
    )


def validated(search: Search, plans: Sequence[ArmPlan], store: Store) -> dict[str, dict[str, list[float]]]:
    """Arm → metric → validation scores by seed, of arms measured on validation rows."""
    found: dict[str, dict[str, list[float]]] = {}
    for plan in plans:
        scores = found.setdefault(plan.arm.variant, {name: [] for name in search.metric})
        for name in search.metric:
            if (value := score_of(plan, name, store)) is not None:
                scores[name].append(value)
    return found


def winner(search: Search, scores: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Any] | None:
    """The best arm with its validation scores: mean, and 95% interval over seeds (none for one seed)."""
    names = [name for name, found in scores.items() if all(found[m] for m in search.metric)]
    if not names:
        return None
    means = np.array([[float(np.mean(scores[name][m])) for m in search.metric] for name in names])
    cost = means * np.where(search.lower, 1.0, -1.0)
    front = ranks(means, search.lower) == 0
    low, high = cost[front].min(axis=0), cost[front].max(axis=0)
    far = np.sqrt((((cost - low) / np.where(high > low, high - low, 1.0)) ** 2).sum(axis=1))
    best = int(np.where(front, far, np.inf).argmin())
    found = {}
    for i, metric in enumerate(search.metric):
        values = list(scores[names[best]][metric])
        interval = clustered_mean(values, [str(n) for n in range(len(values))])
        found[metric] = {
            "mean": float(means[best, i]),
            "low": interval.low,
            "high": interval.high,
            "n": len(values),
        }
    return {"arm": names[best], "scores": found}


def summary(search: Search, known: Records, ended: str = "") -> dict[str, Any]:
    """Everything of a search that a manifest keeps; the winner is added when the finalists have run."""
    records = known.all()
    values = table(search, records)
    rank = ranks(values, search.lower) if records else np.array([])
    counts = {
        status: sum(r.status == status for r in records) for status in ("finished", "stopped", "failed", "running")
    }
    return {
        "records": known.name,
        "metrics": list(search.metric),
        "lower": [name for name, low in zip(search.metric, search.lower, strict=True) if low],
        "signal": search.signal if search.scheduler else "",
        "searcher": search.searcher,
        "scheduler": search.scheduler.model_dump() if search.scheduler else None,
        "budget": search.budget.model_dump(),
        "rule": rule(search),
        "counts": counts,
        "ended": ended,
        "hours": hours(records),
        "front": [r.name for r, number in zip(records, rank, strict=True) if number == 0],
        "finalists": [r.name for r in finalists(search, records)],
        "arms": [{**asdict(r), "said": r.said()} for r in records],
        "winner": None,
    }
