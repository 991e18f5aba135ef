from __future__ import annotations

import json
import math

import numpy as np
import pytest

from cuvee.errors import DataError
from evaluation.items import SCHEMA, concat, summarise, table
from evaluation.statistics import clustered_mean, wilson


def rows(task: str, scores: list[float | None], **more: object) -> list[dict[str, object]]:
    return [
        {"task": task, "version": "1", "item": str(i), "metric": "acc", "score": s, **more}
        for i, s in enumerate(scores)
    ]


def test_a_table_is_sorted_and_complete() -> None:
    made = table(reversed(rows("t", [1.0, 0.0])))
    assert made.schema == SCHEMA
    assert made["item"].to_pylist() == ["0", "1"]
    assert made["main"].to_pylist() == [True, True]
    with pytest.raises(DataError, match="scoer"):
        table([{"task": "t", "scoer": 1}])
    assert concat([]).num_rows == 0


def test_summary_picks_the_interval_that_fits() -> None:
    grades = [{**row, "metric": "grade"} for row in rows("g", [3.0, 7.5, 9.0])]
    missing = rows("m", [1.0, None, 0.0, 1.0])
    missing[1]["error"] = "the generation failed"
    missing[2]["verdict"] = "unsure"
    found = summarise(concat([table(grades), table(missing)]))
    assert found["g"]["method"] == "bootstrap"
    assert found["g"]["mean"] == pytest.approx(6.5)
    expected = wilson(2, 3)
    assert (found["m"]["mean"], found["m"]["low"], found["m"]["high"]) == pytest.approx(
        (expected.mean, expected.low, expected.high)
    )
    assert (found["m"]["n"], found["m"]["errors"], found["m"]["unsure"]) == (3, 1, 1)
    json.dumps(found, allow_nan=False)


def test_many_groups_are_clusters() -> None:
    scores = [1.0, 1.0, 0.0, 0.0, 0.0, 1.0] * 4
    made = [row | {"group": "abcdefgh"[i // 3]} for i, row in enumerate(rows("t", scores))]
    found = summarise(table(made))["t"]
    expected = clustered_mean(scores, [name for name in "abcdefgh" for _ in range(3)])
    assert found["method"] == "cluster-robust t"
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
    assert found["groups"]["a"]["mean"] == pytest.approx(2 / 3)


def test_few_groups_are_strata() -> None:
    """Of two kinds of rows with unlike losses, how many there are of each is no chance."""
    draw = np.random.default_rng(0)
    scores = np.concatenate([draw.normal(1, 0.1, 40), draw.normal(3, 0.1, 20)])
    made = [
        row | {"metric": "grade", "group": "ab"[i >= 40]} for i, row in enumerate(rows("t", [float(s) for s in scores]))
    ]
    found = summarise(table(made))["t"]
    assert found["method"] == "stratified bootstrap"
    error = np.sqrt(sum(len(part) ** 2 * part.var() / len(part) for part in (scores[:40], scores[40:]))) / 60
    assert found["se"] == pytest.approx(error, rel=0.05)
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert found["groups"]["b"]["n"] == 20


def test_the_main_metric_leads_and_losses_are_per_token() -> None:
    both = [
        {"task": "t", "version": "1", "item": "1", "metric": "acc", "main": False, "score": 1.0},
        {"task": "t", "version": "1", "item": "1", "metric": "z_norm", "main": True, "score": 0.0},
    ]
    found = summarise(table(both))["t"]
    assert (found["metric"], found["mean"]) == ("z_norm", 0.0)
    assert found["metrics"]["acc"]["mean"] == 1.0
    losses = [
        {"task": "l", "version": "1", "item": str(i), "metric": "loss", "score": s, "tokens": n}
        for i, (s, n) in enumerate([(1.0, 30), (4.0, 10)])
    ]
    assert summarise(table(losses))["l"]["mean"] == pytest.approx(70 / 40)


def test_a_task_without_any_score_has_no_mean() -> None:
    found = summarise(table(rows("t", [None], error="no model")))["t"]
    assert found["mean"] is None
    assert found["errors"] == 1
    assert not any(isinstance(v, float) and math.isnan(v) for v in found.values())
