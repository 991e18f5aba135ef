"""Scores with and without the items of a benchmark whose text was found in the training data.

`decontaminate` compares a table with benchmarks by n-grams and many of its hits are false alarms, so the score is told
both ways: a difference between the two is the reason to look at the spans (`removed.parquet` of the step).
"""

from __future__ import annotations

import json
from typing import Any

from services.evaluations import items_of
from services.plan import ArmPlan
from services.steps.data import FOUND
from services.store import Store


def contamination(arm: ArmPlan, store: Store) -> list[dict[str, Any]]:
    """One record a point and benchmark with found items: `score` of all items, `without` of the rest."""
    from evaluation.items import summarise

    found = items_found(arm, store)
    records = []
    for measure in arm.measures:
        hits = found.get(measure.task)
        if not hits or store.done(measure.node.key) is None:
            continue
        items = items_of(measure, store)
        clean = items.filter([item not in hits for item in items["item"].to_pylist()])
        whole, rest = (summarise(part).get(measure.task) for part in (items, clean))
        if whole is None or whole["n"] == (rest or {"n": 0})["n"]:
            continue
        records.append(
            {
                "arm": arm.arm.name,
                "point": measure.point,
                "task": measure.task,
                "found": whole["n"] - (rest["n"] if rest else 0),
                "n": whole["n"],
                "score": whole["mean"],
                "without": rest["mean"] if rest else None,
            }
        )
    return records


def items_found(arm: ArmPlan, store: Store) -> dict[str, set[str]]:
    """Benchmark → ids of items found by any of the arm's decontaminations, also where nothing was removed for it."""
    found: dict[str, set[str]] = {}
    nodes = {node.key: node for state in arm.tables.values() for node in state.nodes if node.step == "decontaminate"}
    for key in nodes:
        if store.done(key) is not None:
            for task, ids in json.loads((store.local(key) / FOUND).read_text()).items():
                found.setdefault(task, set()).update(ids)
    return found
