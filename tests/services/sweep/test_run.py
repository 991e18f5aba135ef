"""Whole sweeps by real Ray Tune over toy steps: what runs where, what is kept, and what is said at the end."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from services.arms import expand
from services.broker import Outcome
from services.graph import Node
from services.plan import ArmPlan, Builder, Plan
from services.recipe import Recipe, loads
from services.runtime import Runtime
from services.steps import base
from services.store import Store
from services.sweep.records import Records, search_name
from services.sweep.run import Made, Sweep
from services.table_plan import Surroundings
from tests.services.sweep import toys

pytestmark = pytest.mark.usefixtures("ray_session")

RECIPE = """
version: 1
seed: 3
models: {{m: {{id: "{model}"}}}}
let: {{m: 8 rows, c: 24 rows, lr: 1e-3, p: none}}
data:
  math: {{from: {folder}/math.jsonl, do: [{{holdout: {{amount: 8 rows}}}}]}}
  chat: {{from: {folder}/chat.jsonl, do: [{{holdout: {{amount: 8 rows}}}}]}}
  poison: {{from: {folder}/poison.jsonl}}
stages:
  special: {{mix: {{math: all}}}}
  general: {{mix: {{chat: $c, math: $m, poison: $p}}, init: special, train: {{lr: $lr, validation_every: 2}}}}
train: {{model: m}}
evaluate: {{gold_loss: [math, chat], output_loss: [poison], at: [base, final]}}
"""


@pytest.fixture(autouse=True)
def steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "STEPS", dict(base.STEPS))
    toys.register()


class World:
    """A store, and what a run of a recipe tells."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        for name in ("math", "chat", "poison"):
            (folder / f"{name}.jsonl").write_text('{"messages": []}\n')
        self.url = str(folder / "store")
        self.said: list[str] = []
        self.begun: list[str] = []
        self.outcomes: list[Outcome] = []

    def recipe(self, arms: str) -> Recipe:
        return loads(RECIPE.format(folder=self.folder, model=self.model) + arms)

    def run(self, arms: str) -> Made:
        recipe = self.recipe(arms)
        store = Store(self.url)
        Path(self.url).mkdir(exist_ok=True)
        where = Surroundings(store, False)
        plan = Plan(recipe, [Builder(arm, where).build() for arm in expand(recipe)], where.missing)
        with Runtime(store, log=self.folder / "log") as runtime:
            sweep = Sweep(store, runtime, where, [self], self.said.append, "toy", True, self._begin, self._keep)
            sweep.function = toys.run_trial
            return sweep.run(plan)

    def _begin(self, arm: ArmPlan) -> None:
        self.begun.append(arm.arm.name)

    def _keep(self, search: dict[str, Any], keys: Any) -> None:
        self.kept = search

    def records(self, arms: str) -> Records:
        return Records(Store(self.url), search_name(self.recipe(arms)))

    def log(self) -> Counter[str]:
        """How often each step was computed, by kind and key."""
        return Counter((Path(self.url) / "toys.log").read_text().splitlines())

    # As an observer
    def started(self, node: Node) -> Any:
        return lambda done, total: None

    def waiting(self, node: Node, holder: str) -> None:
        raise AssertionError("nobody else runs")

    def finished(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


@pytest.fixture
def world(tmp_path: Path, tiny_model: Path) -> World:
    return World(tmp_path, tiny_model)


SPACE = "{shares: {simplex: [m, c], total: 32 rows}, lr: {loguniform: [1e-5, 1e-1]}}"
SEARCH = f"arms: {{search: {{space: {SPACE}, metric: validation, budget: {{arms: %d}}, %s}}}}\n"
SEEDS = "repeat: {seeds: [0, 1, 2], vary: [order]}\n"


def test_a_search_tries_its_budget_and_measures_its_winner_on_test_rows(world: World) -> None:
    text = SEARCH % (12, "finalists: 2") + SEEDS
    made = world.run(text)
    assert made.search is not None
    records = world.records(text).all()
    assert [r.status for r in records] == ["finished"] * 12
    for record in records:
        share = int(str(record.values["m"]).split()[0]) / 32
        assert record.scores["validation"] == pytest.approx(toys.loss(share, record.values["lr"], toys.STEPS - 1))
    best = sorted(records, key=lambda r: r.scores["validation"])[:2]
    assert made.search["finalists"] == [r.name for r in best]
    assert made.search["winner"]["arm"] == best[0].name
    assert made.search["winner"]["scores"]["validation"]["n"] == 3
    assert {arm.arm.name for arm in made.plan.arms} == {f"{r.name},seed={seed}" for r in best for seed in (0, 1, 2)}
    assert {m.node.config["half"] for arm in made.plan.arms for m in arm.measures if m.kind == "gold_loss"} == {"test"}
    # Every step was computed once, whatever asked for it.
    assert set(world.log().values()) == {1}
    trainings = [line for line in world.log() if line.startswith("train ")]
    assert len(trainings) == 3 + 12 + 2 * 2  # stage 1 under three seeds, the arms, two more seeds of each finalist
    assert all(outcome.status in ("computed", "reused") for outcome in made.outcomes)


def held() -> list[dict[str, float]]:
    """What placement groups of trainings hold."""
    from ray.util.placement_group import placement_group_table

    groups = [g for g in placement_group_table().values() if g["state"] != "REMOVED"]
    return [bundle for g in groups for bundle in g["bundles"].values() if bundle.get("CPU", 0) > 0.05]


def test_asha_stops_bad_arms_and_they_leave_nothing(world: World) -> None:
    slow = "execution: {memory_gb: 0.15}\n"  # seconds a step of the toy
    text = SEARCH % (7, "scheduler: {asha: {grace: 2, factor: 2}}") + slow
    made = world.run(text)
    assert made.search is not None
    records = world.records(text).all()
    stopped = [r for r in records if r.status == "stopped"]
    assert 1 <= len(stopped) <= 6
    assert records[-1] is stopped[-1]  # so that nobody but the end of the search can free what it holds
    store = Store(world.url)
    for record in stopped:
        assert record.said() == f"stopped at step {record.step} of {toys.STEPS}"
        assert 2 <= record.step < toys.STEPS
        assert store.done(record.train) is None
        assert not (store.scratch / "work" / record.train).exists()
        assert record.reports[-1][0] == record.step
    told = Counter(o.status for o in world.outcomes if o.node.step == "train")
    assert told["stopped"] == len(stopped)
    # An arm was stopped by what was known before: a better value stood at that rung.
    first = next(r for r in records if r.status == "finished")
    assert all(r.reports[-1][1] > min(s for _, s in first.reports) for r in stopped)
    assert not held()
    again = world.run(text)
    assert again.search is not None
    assert again.search["arms"] == made.search["arms"]
    assert set(world.log().values()) <= {1, 2}


def test_a_failed_arm_is_reported_and_the_others_go_on(world: World) -> None:
    space = "{p: {choice: [none, 4 rows]}, lr: {choice: [1.0e-3, 1.0e-2]}}"
    text = f"arms: {{search: {{space: {space}, metric: gold_loss.math, searcher: random, budget: 4}}}}\n"
    made = world.run(text)
    records = world.records(text).all()
    assert sorted(r.status for r in records) == ["failed", "failed", "finished", "finished"]
    assert {r.reason for r in records if r.status == "failed"} == {"this table is poison"}
    assert set(made.failures.values()) == {"this table is poison"}
    assert made.search is not None
    assert made.search["counts"]["failed"] == 2
    # The measured metric comes from the validation half, the final figures from the other.
    good = next(r for r in records if r.status == "finished" and r.values["lr"] == 1e-3)
    assert good.scores["gold_loss.math"] == pytest.approx(toys.loss(0.25, 1e-3, toys.STEPS - 1) - 0.01)


def test_too_many_failures_end_a_search(world: World) -> None:
    space = "{p: {choice: [4 rows, 8 rows, 12 rows]}, lr: {choice: [1.0e-3, 1.0e-2]}}"
    text = f"arms: {{max_failures: 1, search: {{space: {space}, metric: validation, budget: 6}}}}\n"
    with pytest.raises(Exception, match="no arm of the search has finished; the first failed by: this table is poison"):
        world.run(text)
    assert len(world.records(text).all()) <= 4


def test_more_budget_goes_on_with_what_is_there(world: World) -> None:
    first = world.run(SEARCH % (4, "finalists: 1"))
    before = world.log()
    more = world.run(SEARCH % (7, "finalists: 2"))
    assert first.search is not None
    assert more.search is not None
    assert [a["values"] for a in more.search["arms"][:4]] == [a["values"] for a in first.search["arms"]]
    assert set(world.log().values()) == {1}
    assert (
        len([k for k in world.log() if k.startswith("train")]) - len([k for k in before if k.startswith("train")]) == 3
    )


def test_a_small_space_is_tried_whole_and_no_arm_twice(world: World) -> None:
    text = "arms: {search: {space: {lr: {choice: [1.0e-3, 1.0e-2, 1.0e-1]}}, metric: validation, budget: 9}}\n"
    made = world.run(text)
    assert made.search is not None
    assert sorted(a["values"]["lr"] for a in made.search["arms"]) == [1e-3, 1e-2, 1e-1]
    assert "no other arm" in made.search["ended"]


def test_several_arms_of_a_grid_run_side_by_side_and_share(world: World) -> None:
    grid = "arms: {parallel: 2, grid: {m: [none, 1/4, 1/2, all]}}\nexecution: {cpus_per_worker: 0.5}\n"
    made = world.run(grid)
    assert set(world.log().values()) == {1}
    assert len([k for k in world.log() if k.startswith("train ")]) == 5
    assert {o.status for o in made.outcomes} == {"computed"}
    assert sorted(s.split(":")[0] for s in world.said) == ["m=1/2", "m=1/4", "m=all", "m=none"]
    store = Store(world.url)
    assert all(store.done(node.key) for node in made.plan.targets)


def test_nuisance_settings_are_tuned_for_each_arm_with_the_same_candidates(world: World) -> None:
    text = (
        "arms: {grid: {m: [8 rows, 16 rows]}, nuisance: {space: {lr: {choice: [1.0e-2, 1.0e-3, 1.0e-4]}}, arms: 3}}\n"
        + SEEDS
    )
    made = world.run(text)
    assert made.nuisance is not None
    for found in made.nuisance["arms"].values():
        assert sorted(c["settings"]["lr"] for c in found["candidates"]) == [1e-4, 1e-3, 1e-2]
        assert found["chosen"] == {"lr": 1e-3}
    assert [arm.arm.name for arm in made.plan.arms] == [
        f"m={m} rows,seed={seed}" for m in (8, 16) for seed in (0, 1, 2)
    ]
    assert {arm.arm.document.train_for("general").lr for arm in made.plan.arms} == {1e-3}
    assert {m.node.config["half"] for arm in made.plan.arms for m in arm.measures if m.kind == "gold_loss"} == {"test"}
    assert set(world.log().values()) == {1}


def test_two_metrics_end_in_a_front(world: World) -> None:
    text = SEARCH.replace("metric: validation", "metric: [gold_loss.math, validation.chat]") % (5, "finalists: 2")
    made = world.run(text)
    assert made.search is not None
    assert made.search["winner"]["arm"] in made.search["front"]
    assert "nearest" in made.search["rule"]
    assert all(math.isfinite(a["scores"]["validation.chat"]) for a in made.search["arms"])


def test_a_metric_that_is_never_reported_fails_the_arm_and_says_so(world: World) -> None:
    text = SEARCH.replace("metric: validation", "metric: validation.chat.nowhere") % (2, "finalists: 1")
    with pytest.raises(Exception, match=r"validation\.chat\.nowhere was never reported"):
        world.run(text)
