"""Proposals: what Optuna is told, that killed searches propose the same, and that it finds an optimum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from services.search import Search
from services.sweep.choose import finalists, winner
from services.sweep.propose import Proposer
from services.sweep.records import Record


def search(**more: Any) -> Search:
    space = {"x": {"uniform": [0.0, 1.0]}, "y": {"uniform": [0.0, 1.0]}, "k": {"choice": ["a", "b"]}}
    return Search.model_validate({"space": space, "metric": "validation", "budget": 40, **more})


def loss(values: dict[str, Any]) -> float:
    return float((values["x"] - 0.2) ** 2 + (values["y"] - 0.9) ** 2 + 0.3 * (values["k"] == "b"))


def tried(proposer: Proposer, count: int, known: list[Record] | None = None) -> list[Record]:
    records = list(known or [])
    while len(records) < count:
        point = proposer.next(records)
        assert point is not None
        values = proposer.space.values(point)
        scores = {name: loss(values) for name in proposer.search.metric}
        records.append(Record(len(records) + 1, "", point, values, "finished", scores=scores))
    return records


def test_tpe_comes_nearer_than_even_points() -> None:
    best = {
        kind: np.mean(
            [min(loss(r.values) for r in tried(Proposer(search(searcher=kind), seed), 40)) for seed in range(4)]
        )
        for kind in ("tpe", "random")
    }
    assert best["tpe"] < 0.6 * best["random"]


def test_a_search_that_was_killed_proposes_what_it_would_have_proposed() -> None:
    whole = tried(Proposer(search(), 5), 16)
    half = tried(Proposer(search(), 5), 9)
    assert [r.values for r in tried(Proposer(search(), 5), 16, half)] == [r.values for r in whole]


def test_more_budget_changes_nothing_of_what_came_before() -> None:
    small, large = (tried(Proposer(search(budget=budget), 5), 12) for budget in (12, 40))
    assert [r.values for r in small] == [r.values for r in large]


def test_stopped_failed_and_running_arms_are_told_as_what_they_are() -> None:
    proposer = Proposer(search(mode="max"), 0)
    point = [0.1, 0.5, 0.7]
    values = proposer.space.values(point)
    told = [
        proposer._told(Record(1, "", point, values, "finished", scores={"validation": 0.5})),
        proposer._told(Record(2, "", point, values, "stopped", reports=[(2, 3.0), (4, 2.0)])),
        proposer._told(Record(3, "", point, values, "running")),
        proposer._told(Record(4, "", point, values, "failed")),
    ]
    assert [t.state.name if t else None for t in told] == ["COMPLETE", "PRUNED", "RUNNING", None]
    assert told[0] is not None
    assert told[0].values == [0.5]
    assert told[0].params == {"x/0": 0.1, "y/0": 0.5, "k/0": 1}
    assert told[1] is not None
    assert told[1].intermediate_values == {2: -3.0, 4: -2.0}  # of a loss, where more of the metric is better


def test_several_metrics_are_proposed_for_and_ended_by_a_front() -> None:
    both = search(metric=["gold_loss.math", "retention.drop"], budget=14, finalists=3)
    proposer = Proposer(both, 1)
    records: list[Record] = []
    for number in range(1, 15):
        point = proposer.next(records)
        assert point is not None
        values = proposer.space.values(point)
        scores = {"gold_loss.math": values["x"], "retention.drop": 1 - values["x"] + values["y"]}
        records.append(Record(number, f"arm-{number:03}", point, values, "finished", scores=scores))
    assert len(records) == 14
    chosen = finalists(both, records)
    for record in chosen:
        mine = record.scores
        assert not any(
            o.scores["gold_loss.math"] < mine["gold_loss.math"] and o.scores["retention.drop"] < mine["retention.drop"]
            for o in records
        )


def test_the_winner_is_the_best_mean_over_seeds_with_its_interval() -> None:
    scores = {"a": {"validation": [1.0, 1.2, 1.1]}, "b": {"validation": [0.9, 1.6, 1.3]}, "c": {"validation": []}}
    found = winner(search(), scores)
    assert found is not None
    assert found["arm"] == "a"
    interval = found["scores"]["validation"]
    assert interval["mean"] == pytest.approx(1.1)
    assert interval["low"] == pytest.approx(1.1 - 4.3027 * 0.1 / 3**0.5, abs=1e-3)  # t with 2 degrees of freedom
    assert interval["n"] == 3


def test_the_knee_of_a_front_wins_with_several_metrics() -> None:
    both = search(metric=["gold_loss.math", "retention.drop"])
    scores = {
        "left": {"gold_loss.math": [0.0], "retention.drop": [1.0]},
        "knee": {"gold_loss.math": [0.2], "retention.drop": [0.2]},
        "right": {"gold_loss.math": [1.0], "retention.drop": [0.0]},
        "beaten": {"gold_loss.math": [0.3], "retention.drop": [0.3]},
    }
    found = winner(both, scores)
    assert found is not None
    assert found["arm"] == "knee"
