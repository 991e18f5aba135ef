"""What a recipe's items and seeds can show, said before the run.

For shares the spread follows from the share itself; it is told for even odds and models that agree as a model and its
tuned child often do, which is near the worst case. For losses and grades nobody knows it beforehand, so the difference
is told in standard deviations of the paired differences. What seeds can show is in units of the metric where
`cuvee noise` has measured how far it moves, and in standard deviations otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from cuvee.amounts import Amount
from evaluation.statistics import minimum_detectable

if TYPE_CHECKING:
    from services.measuring import Measure
    from services.plan import Plan
    from services.store import Store

DEGREES = ("gold_loss", "output_loss", "bleu")
"""Kinds of measurements whose items have a degree."""
AGREEMENT = 0.5
"""Correlation over items of the two models' being right."""


def power(plan: Plan, store: Store) -> list[dict[str, Any]]:
    """A record for each task whose number of items is known: the smallest difference shown (80% power, 95% level)."""
    found: dict[str, dict[str, Any]] = {}
    for arm in plan.arms:
        for measure in arm.measures:
            count = items(measure, store)
            if count and measure.task not in found:
                found[measure.task] = {"task": measure.task, "items": count, **_shown(measure, count)}
    return list(found.values())


def _shown(measure: Measure, count: int) -> dict[str, Any]:
    if measure.kind in DEGREES or _graded(measure):
        value, unit = minimum_detectable(count, sd=1.0), "sd"
    else:
        value, unit = minimum_detectable(count, p=0.5, correlation=AGREEMENT), "share"
    return {"detectable": round(value, 3) if math.isfinite(value) else None, "unit": unit}


def _graded(measure: Measure) -> bool:
    from evaluation import tasks

    if measure.kind != "judged" or measure.task.endswith(".wins"):
        return False
    return tasks.get(measure.node.config["task"]).metric == "grade"


def items(measure: Measure, store: Store) -> int | None:
    """How many items a measurement has, where that is known; of a benchmark as many as its listing says."""
    done = store.done(measure.node.key)
    if done is not None:
        summary = done.info["summary"]
        figures = summary.get(measure.task) or next(iter(summary.values()), {"n": 0, "errors": 0})
        return int(figures["n"]) + int(figures["errors"])
    config = measure.node.config
    limit = config.get("options", {}).get("limit")
    if "answers" in measure.node.inputs:
        return None
    if "table" in config:
        there = _held(measure, store)
    else:
        from evaluation import tasks

        sources = tasks.get(config["task"]).sources
        there = sources[0].rows if sources and not measure.node.execution.get("data") else None
    return min(there, limit) if there and limit else there or limit


def _held(measure: Measure, store: Store) -> int | None:
    """Rows of a table that is measured on: as made, else what its hold-out asks for."""
    rows = measure.node.inputs["rows"]
    if (done := store.done(rows.key)) is not None:
        return int(done.info["held" if measure.node.config["part"] == "held" else "rows"])
    if rows.step == "holdout" and (amount := Amount.parse(rows.config["amount"])).kind == "rows":
        return int(amount.value)
    return None


def seed_power(plan: Plan, store: Store) -> list[dict[str, Any]]:
    """What a contrast can show with the recipe's seeds: a record a task where its noise was measured, else one in
    standard deviations. Empty without `repeat`."""
    repeat = plan.recipe.repeat
    if repeat is None or repeat.apart or len(repeat.seeds) < 2:
        return []
    count = len(repeat.seeds)
    known = {record["task"]: record for record in _measured(plan.recipe.name, store)}
    if not known:
        return [{"seeds": count, "detectable": round(minimum_detectable(count, sd=1.0), 3), "unit": "sd"}]
    return [
        {
            "task": task,
            "seeds": count,
            "detectable": float(f"{minimum_detectable(count, sd=math.sqrt(2) * record['sd']):.3g}"),
            "unit": record["metric"],
            "run": record["run"],
        }
        for task, record in known.items()
    ]


def _measured(recipe: str, store: Store) -> Iterator[Mapping[str, Any]]:
    """What runs of `cuvee noise` on a recipe of this name found, the latest last."""
    runs = [(run.get("started", 0), name, run) for name, run in store.runs().items()]
    for _, name, run in sorted(runs, key=lambda entry: entry[:2]):
        if run["recipe"].get("name") == f"{recipe}-noise":
            for record in (run.get("results") or {}).get("noise", []):
                if record["sd"] is not None and math.isfinite(record["sd"]):
                    yield {**record, "run": name}


def sentences(found: Mapping[str, Any]) -> Iterator[str]:
    """Both for people, from what `cuvee plan` says."""
    for line in found["power"]:
        if line["detectable"] is None:
            yield f"{line['task']}: {line['items']} item shows no difference"
        elif line["unit"] == "share":
            yield f"{line['task']}: {line['items']} items show differences from {line['detectable']:.2f} on"
        else:
            unit = "standard deviations of the paired differences"
            yield f"{line['task']}: {line['items']} items show differences from {line['detectable']:.2f} {unit} on"
    for line in found["seed_power"]:
        if line["unit"] == "sd":
            unit = "standard deviations of a difference over seeds on; `cuvee noise` measures them"
            yield f"contrasts: {line['seeds']} seeds show differences from {line['detectable']:.2f} {unit}"
        else:
            yield f"contrasts of {line['task']}: {line['seeds']} seeds show differences from {line['detectable']:g} on"
