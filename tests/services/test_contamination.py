"""Scores with and without items that were found in the data: the finding is run, the score's items are written here."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from evaluation import items, tasks
from services.arms import expand
from services.broker import Broker
from services.contamination import contamination, items_found
from services.plan import make_plan
from services.recipe import loads
from services.runtime import Runtime
from services.store import Store

RECIPE = """
version: 1
data: {pool: {from: %s, do: [{decontaminate: {against: [arc_easy], action: %s}}]}}
evaluate: {tasks: [arc_easy], at: [base]}
"""


@pytest.mark.parametrize("action", ["report", "remove"])
def test_the_score_is_told_with_and_without_found_items(tmp_path: Path, action: str) -> None:
    all_items = tasks.get("arc_easy").items(tasks.EvalOptions())
    long = [item for item in all_items if len(item.question.split()) > 20][:2]
    texts = [f"Once more: {item.question}" for item in long] + ["What is the name of the harbour in this story?"]
    file = tmp_path / "pool.jsonl"
    file.write_text("".join(json.dumps({"prompt": text, "completion": "yes"}) + "\n" for text in texts))
    store = Store(str(tmp_path / "store"))
    recipe = loads(RECIPE % (json.dumps(str(file)), action))
    plan = make_plan(recipe, expand(recipe), store, accelerator=False)
    (arm,) = plan.arms
    with Runtime(store, log=tmp_path / "log") as runtime:
        Broker(store, runtime).run([arm.tables["pool"].rows])
    kept = store.done(arm.tables["pool"].rows.key)
    assert kept is not None
    assert kept.info["rows"] == (3 if action == "report" else 1)
    assert items_found(arm, store) == {"arc_easy": {item.id for item in long}}
    assert contamination(arm, store) == []

    # Right on the two found items and on one of eight others.
    (measure,) = arm.measures
    others = [item for item in all_items if item not in long][:8]
    records = [
        {
            "task": "arc_easy",
            "version": "1",
            "item": item.id,
            "metric": "acc_norm",
            "score": float(item in long or not i),
        }
        for i, item in enumerate([*others, *long])
    ]
    lease = store.acquire(measure.node.key)
    assert lease is not None
    folder = store.attempt_folder(lease)
    pq.write_table(items.table(records), folder / "items.parquet")
    store.publish(lease, folder, info={}, inputs={}, seconds=0.0)
    lease.release()
    (record,) = contamination(arm, store)
    assert (record["found"], record["n"], record["score"], record["without"]) == (2, 10, 0.3, 0.125)
