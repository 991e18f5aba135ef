from __future__ import annotations

import json
import math

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


def test_groups_are_clusters() -> None:
    made = [row | {"group": "ab"[i // 3]} for i, row in enumerate(rows("t", [1.0, 1.0, 0.0, 0.0, 0.0, 1.0]))]
    found = summarise(table(made))["t"]
    expected = clustered_mean([1, 1, 0, 0, 0, 1], list("aaabbb"))
    assert found["method"] == "cluster-robust t"
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
    assert found["groups"]["a"]["mean"] == pytest.approx(2 / 3)


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
