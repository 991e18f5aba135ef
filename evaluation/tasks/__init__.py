"""Benchmarks by name. `get` takes a recipe's word, `available` says what can run on this machine.

`name@5` asks with five examples, `name/test` is the same as `name`, and `lm_eval:<task>` is any task of
lm-evaluation-harness.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cuvee.errors import UserError
from cuvee.rng import stream
from evaluation import data
from evaluation import items as _items
from evaluation.items import ITEMS_SCHEMA
from evaluation.suites import plain
from evaluation.tasks import chat, choice, code, ifeval, numeric, qa  # noqa: F401 - they register themselves
from evaluation.tasks.generation import GenerationTask, judged
from evaluation.tasks.loss import gold_loss
from evaluation.tasks.registry import TASKS, register
from evaluation.tasks.task import EvalOptions, Item, Kind, Task
from evaluation.tasks.wins import compare_answers, equal_length, length_controlled

__all__ = [
    "ITEMS_SCHEMA",
    "TASKS",
    "EvalOptions",
    "GenerationTask",
    "Item",
    "Kind",
    "Task",
    "available",
    "compare_answers",
    "equal_length",
    "get",
    "gold_loss",
    "judged",
    "length_controlled",
    "register",
    "summarise",
]

HARNESS = "lm_eval:"
EQUAL_LENGTH = "length_controlled"
"""The metric of win rates at equal length, in summaries."""


def summarise(items: pa.Table) -> dict[str, dict[str, Any]]:
    """`evaluation.items.summarise`, with the win rate at equal length where there are win rates."""
    summary = _items.summarise(items)
    for task, figures in summary.items():
        if figures["metric"] == "win_rate":
            if figures["low"] == figures["high"]:  # all alike: a bootstrap has no spread to go by
                unknown = {"low": None, "high": None, "se": None, "method": "none: all scores alike"}
                figures["metrics"]["win_rate"] |= unknown
                figures |= unknown
            found = equal_length(items.filter(pc.field("task") == task), stream(0, "summary", task, EQUAL_LENGTH))
            names = ("mean", "low", "high", "n", "level", "method")
            told = {name: None if (value := getattr(found, name)) != value else value for name in names}
            figures["metrics"][EQUAL_LENGTH] = {**figures["metrics"]["win_rate"], **told, "se": None}
    return summary


def get(name: str) -> Task:
    """The task of a recipe's word. Raises UserError for an unknown one, with the nearest known."""
    word, shots = plain(name), name.partition("@")[2]
    if word.startswith(HARNESS):
        from evaluation.harness import HarnessTask

        task: Task = HarnessTask(word.removeprefix(HARNESS))
    else:
        task = TASKS[word]
    if not shots:
        return task
    if not shots.isdigit() or not hasattr(task, "shots"):
        raise UserError(f"{name!r}: {word} takes no number of examples there", remedy="write name@5")
    return replace(task, shots=int(shots))  # type: ignore[type-var]


def available() -> list[dict[str, Any]]:
    """One dict a task: name, kind, metric, available (no download needed), where or how to get it, items."""
    out = []
    for name in TASKS:
        task = TASKS[name]
        found = [data.available(source) for source in task.sources if source.package or source.hub]
        missing = [where for here, where in found if not here]
        out.append(
            {
                "name": name,
                "kind": task.kind,
                "metric": task.metric,
                "version": task.version,
                "available": not missing,
                "where": "; ".join(missing or dict.fromkeys(where for _, where in found)) or "built in",
                "items": task.sources[0].rows,
            }
        )
    return out
