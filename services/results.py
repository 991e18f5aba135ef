"""What a run found: scores, what changed against the base, what was forgotten, and the declared contrasts.

Every figure is read from stored items. Two models are compared in pairs over the same items; a claim about a method is
a paired t over seeds, corrected (Holm) over the declared contrasts alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cuvee.errors import UserError
from services import noise
from services.contamination import contamination
from services.evaluations import items_of, summary_of
from services.measures import BASE
from services.plan import ArmPlan, Plan
from services.store import Store
from services.variants import Contrast

if TYPE_CHECKING:
    import pyarrow as pa

LEVEL = 0.05
CORRECTED = ", not after correction"
"""Said of a contrast whose own interval excludes 0, when its p by Holm over all declared ones is not below LEVEL."""


@dataclass(frozen=True)
class Score:
    """One task of one model: `task` as in tables (`gold_loss.math`), the figures of its main metric."""

    arm: str
    seed: int
    point: str
    task: str
    kind: str
    metric: str
    mean: float | None
    low: float | None
    high: float | None
    n: int
    errors: int
    unsure: int
    key: str


def scores(plan: Plan, store: Store) -> list[Score]:
    """All scores that are there. Tasks with several parts (suites of the harness) give one line a part."""
    found = []
    for arm in plan.arms:
        for measure in arm.measures:
            for task, figures in _told(summary_of(measure, store)):
                found.append(
                    Score(
                        arm.arm.name,
                        arm.arm.seed,
                        measure.point,
                        task,
                        measure.kind,
                        figures["metric"],
                        figures["mean"],
                        figures["low"],
                        figures["high"],
                        figures["n"],
                        figures["errors"],
                        figures["unsure"],
                        measure.node.key,
                    )
                )
    return found


def _told(summary: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The tasks of a summary; of win rates also the one at equal length, as a line of its own."""
    from evaluation.tasks import EQUAL_LENGTH

    for task, figures in summary.items():
        yield task, figures
        if EQUAL_LENGTH in figures["metrics"]:
            yield f"{task}.{EQUAL_LENGTH}", {**figures["metrics"][EQUAL_LENGTH], "metric": figures["metric"]}


def changes(arm: ArmPlan, store: Store) -> list[dict[str, Any]]:
    """Each point against the base, task by task, in pairs: difference with interval, p and Holm's p over the list."""
    from evaluation.items import concat
    from evaluation.statistics import compare

    found: list[dict[str, Any]] = []
    base = {m.task: m for m in arm.measures if m.point == BASE and store.done(m.node.key)}
    for point in dict.fromkeys(m.point for m in arm.measures if m.point != BASE):
        pairs = [(base[m.task], m) for m in arm.measures if m.point == point and m.task in base]
        pairs = [(a, b) for a, b in pairs if store.done(b.node.key)]
        if not pairs:
            continue
        before = concat(items_of(a, store) for a, _ in pairs)
        after = concat(items_of(b, store) for _, b in pairs)
        for result in compare(before, after, strict=False):
            found.append({"arm": arm.arm.name, "point": point, **result.__dict__})
    return found


def retention(arm: ArmPlan, store: Store) -> list[dict[str, Any]]:
    """The mean drop over the retention suite at each point: base minus tuned, positive is loss."""
    from evaluation import suites
    from evaluation.items import concat
    from evaluation.statistics import retention_drop_items

    wanted = arm.arm.document.evaluate.retention
    if not wanted:
        return []
    names = wanted[0] if len(wanted) == 1 and wanted[0] in suites.SUITES else suites.expand(wanted)
    tables: dict[str, pa.Table] = {}
    for point in dict.fromkeys(m.point for m in arm.measures):
        measures = [m for m in arm.measures if m.point == point and "retention" in m.kind]
        if measures and all(store.done(m.node.key) for m in measures):
            tables[point] = concat(items_of(m, store) for m in measures)
    found = []
    for point, table in tables.items():
        if point != BASE and BASE in tables:
            drop, interval = retention_drop_items(tables[BASE], table, names)
            found.append(
                {"arm": arm.arm.name, "point": point, "drop": drop, "low": interval.low, "high": interval.high}
            )
    return found


def metric_of(arm: ArmPlan, name: str, at: str, store: Store) -> float | None:
    """A metric of an arm by the name that a contrast or a search gives it.

    `retention.drop`, `tasks.<task>`, or a task as tables show it (`gold_loss.math`, `accuracy.qa`), with `.<metric>`
    behind it for another than the main one, and `.rise` for the difference to base. `rows.<table>.<column>` is the mean
    of a column over the rows of a table, such as the share of them that has a tag, and asks no model.
    """
    if name.startswith("rows."):
        return column_mean(arm, name, store)
    point = arm.last_point if at == "final" else at
    if name == "retention.drop":
        return next((r["drop"] for r in retention(arm, store) if r["point"] == point), None)
    word = name.removeprefix("tasks.")
    if word.endswith(".rise"):
        after, before = (metric_of(arm, word.removesuffix(".rise"), p, store) for p in (point, BASE))
        return None if after is None or before is None else after - before
    for measure in arm.measures:
        if measure.point != point:
            continue
        for task, figures in summary_of(measure, store).items():
            if task == word:
                return _number(figures["mean"])
            if word.startswith(f"{task}.") and word.removeprefix(f"{task}.") in figures["metrics"]:
                return _number(figures["metrics"][word.removeprefix(f"{task}.")]["mean"])
    return None


def column_mean(arm: ArmPlan, name: str, store: Store) -> float | None:
    """`rows.<table>.<column>` of an arm: the mean over the rows that have a value. UserError for an unknown one."""
    import pyarrow.compute as pc

    from cuvee import rows

    _, table, column = name.split(".", 2) if name.count(".") > 1 else (name, "", "")
    if table not in arm.tables:
        raise UserError(f"{name}: no table {table!r}", remedy=f"known: {', '.join(arm.tables)}")
    state = arm.tables[table]
    if store.done(state.rows.key) is None:
        return None
    folder = store.local(state.rows.key) / "rows"
    known = rows.columns_of(folder)
    if column not in known:
        raise UserError(f"{name}: no column {column!r}", remedy=f"known: {', '.join(known)}")
    values = rows.read(folder, [column])[column]
    return _number(pc.mean(pc.cast(values, "float64")).as_py())


def contrasts(plan: Plan, store: Store) -> list[dict[str, Any]]:
    """The declared comparisons: a minus b, seed by seed, with a paired t and Holm's p over all of them."""
    from evaluation.statistics import holm, paired_t
    from services.arms import pairs as pairs_of

    arms = [arm.arm for arm in plan.arms]
    by_arm = {arm.arm.name: arm for arm in plan.arms}
    found = []
    for contrast in plan.recipe.contrasts:
        pairs = pairs_of(contrast, arms)
        values = [
            tuple(metric_of(by_arm[arm.name], contrast.metric, contrast.at, store) for arm in pair) for pair in pairs
        ]
        known = [(a, b) for a, b in values if a is not None and b is not None]
        record: dict[str, Any] = {
            "name": contrast.label,
            "metric": contrast.metric,
            "expect": contrast.expect,
            "margin": contrast.margin,
            "seeds": [pair[0].seed for pair in pairs],
            "a": [a for a, _ in known],
            "b": [b for _, b in known],
            "missing": len(values) - len(known),
        }
        if known:
            record |= paired_t([a - b for a, b in known]).__dict__
        found.append(record)
    adjusted = holm([r.get("p", math.nan) for r in found])
    for record, p, contrast in zip(found, adjusted, plan.recipe.contrasts, strict=True):
        record["p_holm"] = p
        record["verdict"] = verdict(contrast, record)
    return found


def verdict(contrast: Contrast, record: Mapping[str, Any]) -> str:
    """In words: whether what was expected came out."""
    if "mean" not in record:
        return "not measured"
    mean, low, high = record["mean"], record["low"], record["high"]
    if math.isnan(low):
        direction = "less" if mean < 0 else "greater" if mean > 0 else "no difference"
        return f"{direction}, of one seed: no interval"
    if contrast.expect == "within":
        margin = contrast.margin or 0.0
        return "within the margin" if -margin < low and high < margin else "not shown to be within the margin"
    if low <= 0 <= high:
        return "no difference shown"
    came = "less" if high < 0 else "greater"
    if (record.get("p_holm") or 0.0) >= LEVEL:
        came += CORRECTED
    if contrast.expect == "different":
        return f"different: {came}"
    return f"as expected: {came}" if came.startswith(contrast.expect) else f"against expectation: {came}"


def collect(plan: Plan, store: Store) -> dict[str, Any]:
    """Everything that a report and `--json` say of a run's results."""
    try:
        declared = contrasts(plan, store)
    except UserError as error:
        declared = [{"name": "contrasts", "verdict": str(error)}]
    return {
        "scores": [score.__dict__ for score in scores(plan, store)],
        "changes": [change for arm in plan.arms for change in changes(arm, store)],
        "retention": [drop for arm in plan.arms for drop in retention(arm, store)],
        "contamination": [record for arm in plan.arms for record in contamination(arm, store)],
        "contrasts": declared,
        "noise": noise.measured(plan, store),
    }


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
