"""Steps that cost nothing, so that a sweep of real Ray Tune runs in seconds: trainings are a formula.

The loss of a toy training after `step` steps is (share of math - 0.25)² + |log10(lr / 1e-3)| / 10 + 1 / (step + 1), the
same for every table. The stage's list says the share, the settings the rate. A table `poison` in the mix fails.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cuvee.amounts import Amount
from cuvee.errors import UserError
from services.steps import base
from services.sweep import trial
from services.sweep.desk import Desk

_run = trial.run
ROWS = 40
STEPS = 12
SLOW_END = 4.0
"""Seconds that a stopped training takes to go: more than Tune waits for, and as real ones do."""


def loss(share: float, lr: float, step: int) -> float:
    return (share - 0.25) ** 2 + abs(math.log10(lr / 1e-3)) / 10 + 1 / (step + 1)


def _log(context: base.Context, what: str) -> None:
    with (Path(context.runtime.store.url) / "toys.log").open("a") as file:
        file.write(f"{what} {context.key}\n")


def _table(context: base.Context) -> dict[str, Any]:
    _log(context, "table")
    return {"rows": ROWS, "tokens": 10 * ROWS, "characters": 400}


def _compose(context: base.Context) -> dict[str, Any]:
    rows = {table: Amount.parse(amount).rows_of(ROWS) for table, amount in context.config["mix"].items()}
    (context.out / "rows.json").write_text(json.dumps(rows))
    return {"rows": sum(rows.values()), "tokens": 10 * sum(rows.values()), "realised": []}


def _train(context: base.Context) -> dict[str, Any]:
    from ray.util.placement_group import placement_group, remove_placement_group

    _log(context, "train")
    rows = json.loads((context.inputs["plan"] / "rows.json").read_text())
    if rows.get("poison"):
        raise UserError("this table is poison")
    share, lr = rows.get("math", 0) / max(sum(rows.values()), 1), context.config["train"]["lr"]
    every = context.config["train"]["validation_every"]
    pause = float(context.execution.get("execution", {}).get("memory_gb") or 0)
    group = placement_group([{"CPU": 0.1}]) if pause else None  # as Ray Train holds one for its workers
    path = context.work / "metrics.jsonl"
    validation: Mapping[str, Any] = {}
    with path.open("w") as file:
        for step in range(STEPS):
            line: dict[str, Any] = {"step": step, "loss": loss(share, lr, step), "clock": time.time()}
            if every and ((step + 1) % every == 0 or step + 1 == STEPS):
                line["validation"] = validation = {"math": {"all": line["loss"]}, "chat": {"all": line["loss"]}}
            file.write(json.dumps(line) + "\n")
            file.flush()
            try:
                context.progress(step, STEPS)
            except SystemExit:  # what Tune says to a function that it has stopped; nobody frees the group then
                time.sleep(SLOW_END)
                raise
            time.sleep(pause)
    if group is not None:
        remove_placement_group(group)
    (context.out / "metrics.jsonl").write_bytes(path.read_bytes())
    (context.out / "loss.json").write_text(json.dumps(line["loss"]))
    return {"steps": STEPS, "loss": line["loss"], "validation": validation, "tokens": 100, "seconds": 0.1}


def _evaluate(context: base.Context) -> dict[str, Any]:
    """The toy's loss; that of a model without training is 2. Validation rows are a little easier."""
    _log(context, "evaluate")
    path = context.inputs["model"] / "loss.json"
    value = json.loads(path.read_text()) if path.exists() else 2.0
    task = f"{context.config['task']}.{context.config['table']}"
    mean = value - 0.01 * (context.config.get("half") == "validation")
    figures = {"metric": "loss", "mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": 20, "errors": 0, "unsure": 0}
    summary = {task: {**figures, "se": 0.05, "metrics": {"loss": figures}}}
    (context.out / "summary.json").write_text(json.dumps(summary))
    import pyarrow.parquet as pq

    from evaluation import items

    record = {"task": task, "version": "1", "item": "i", "group": "", "metric": "loss", "main": True, "score": mean}
    pq.write_table(items.table([{**record, "tokens": 5}]), context.out / "items.parquet")
    return {"items": 1, "summary": summary}


def register() -> None:
    """Put the toys in the place of the real steps, in this process."""
    runs = {"compose": _compose, "train": _train, "evaluate": _evaluate}
    for name, step in list(base.STEPS.items()):
        run = runs.get(name, _table)
        base.STEPS[name] = base.Step(name, "toy", run, ("tests",), "data", step.draws)


def run_trial(config: Mapping[str, Any], desk: Desk, url: str, log: str, signal: str) -> None:
    """A trial whose process knows the toys."""
    register()
    _run(config, desk, url, log, signal)
