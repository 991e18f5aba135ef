"""A run of toy steps by the real broker, told to a real MLflow store."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cuvee.errors import UserError
from services import tracking
from services.broker import Broker
from services.graph import Node, make_node
from services.plan import Plan
from services.runtime import Runtime
from services.steps import base
from services.store import Store
from services.tracking import RunTracker, default_uri
from services.variants import Arms

LINES = [
    {"step": n, "loss": 2.0 - n, "loss_by_source": {"math": 1.5}, "lr": 1e-4, "clock": 1_700_000_000.0 + n}
    for n in range(3)
]


def _rows(context: base.Context) -> dict[str, Any]:
    (context.out / "rows").mkdir()
    return {"rows": 7, "removed": 1, "template": "text"}


def _train(context: base.Context) -> dict[str, Any]:
    path = context.work / "metrics.jsonl"
    for n, line in enumerate(LINES):
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        context.progress(n + 1, len(LINES))
    (context.out / "metrics.jsonl").write_bytes(path.read_bytes())
    return {"loss": 0.5, "steps": 3}


def _evaluate(context: base.Context) -> dict[str, Any]:
    if context.config.get("broken"):
        raise UserError("no data for this task")
    return {"items": 4, "summary": {"gsm8k": {"mean": 0.25}, "odd": {"mean": None}}}


@pytest.fixture(autouse=True)
def steps(monkeypatch: pytest.MonkeyPatch) -> None:
    toys = {"load": _rows, "train": _train, "evaluate": _evaluate}
    monkeypatch.setattr(
        base, "STEPS", base.STEPS | {name: base.Step(name, "toy", run, ("tests",)) for name, run in toys.items()}
    )
    monkeypatch.setattr(tracking, "_FOLLOW", 0.0)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def plan_of(**arms: list[Node]) -> Plan:
    recipe = SimpleNamespace(
        hash="feed", seed=3, document={"version": 1, "api_key": "s3cret"}, tracking=None, published=None, arms=Arms()
    )
    made = [
        SimpleNamespace(arm=SimpleNamespace(name=name, seed=3, settings={"k": name}), targets=nodes)
        for name, nodes in arms.items()
    ]
    return cast(Plan, SimpleNamespace(recipe=recipe, arms=made, targets=[n for nodes in arms.values() for n in nodes]))


def graph(broken: bool = False) -> list[Node]:
    pool = make_node("load", "math · load", {"name": "math"})
    model = make_node("train", "special · train", {"lr": 1e-4, "objective": {"preset": "sft"}}, {"plan": pool})
    score = make_node("evaluate", "special · gsm8k", {"task": "gsm8k", "broken": broken}, {"model": model})
    return [pool, model, score]


def run(store: Store, plan: Plan, *, keep_going: bool = False) -> str:
    found: dict[str, Any] = {
        "scores": [{"arm": "a", "point": "special", "task": "gsm8k", "mean": 0.25}],
        "changes": [{"arm": "a", "point": "special", "task": "gsm8k", "difference": 0.05}],
        "retention": [{"arm": "a", "point": "special", "drop": 0.01}],
        "contrasts": [{"name": "k", "mean": -0.5, "low": None, "p_holm": 0.03}, {"name": "none"}],
    }
    folder = Path(store.url)
    folder.mkdir(exist_ok=True)
    (folder / "report.html").write_text("<html>")
    with RunTracker(store, plan, "quick") as tracker, Runtime(store, log=folder / "log") as runtime:
        Broker(store, runtime, [tracker], keep_going=keep_going).run(plan.targets)
        tracker.results(found, folder)
    return tracker.notice


def told(store: Store) -> dict[str, Any]:
    import mlflow

    client = mlflow.MlflowClient(default_uri(store.url))
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
    found = [client.get_run(r.info.run_id) for r in client.search_runs([experiment.experiment_id])]
    assert len({r.info.run_name for r in found}) == len(found)
    return {r.info.run_name: r for r in found}


def test_a_run_is_told_with_its_arms_steps_data_models_and_scores(tmp_path: Path) -> None:
    store, nodes = Store(str(tmp_path / "s")), graph()
    assert run(store, plan_of(a=nodes, b=nodes[:1])) == ""
    runs = told(store)
    assert set(runs) == {"quick", "a", "b", "math · load", "special · train", "special · gsm8k"}
    assert {r.info.status for r in runs.values()} == {"FINISHED"}
    top = runs["quick"]
    assert {r.data.tags.get("mlflow.parentRunId") for n, r in runs.items() if n != "quick"} == {top.info.run_id}
    assert runs["a"].data.tags["cuvee.step.special.train"] == nodes[1].key
    assert "cuvee.step.special.train" not in runs["b"].data.tags
    train = runs["special · train"]
    assert train.data.params == {"lr": "0.0001", "objective.preset": "sft"}
    assert train.data.metrics["loss"] == 0.0
    assert train.data.metrics["loss/math"] == 1.5
    assert [d.dataset.digest for d in train.inputs.dataset_inputs] == [nodes[0].key[-36:]]
    score = runs["special · gsm8k"]
    assert score.data.metrics["gsm8k"] == 0.25
    assert [m.model_id for m in score.inputs.model_inputs] == [m.model_id for m in train.outputs.model_outputs]
    assert runs["math · load"].data.metrics["removed"] == 1
    assert runs["a"].data.metrics == {
        "special/gsm8k": 0.25,
        "special/gsm8k.change": 0.05,
        "special/retention.drop": 0.01,
    }
    assert top.data.metrics == {"contrast/k.mean": -0.5, "contrast/k.p_holm": 0.03}
    files = Path(top.info.artifact_uri.removeprefix("file://"))
    assert {p.name for p in files.iterdir()} == {"recipe.yaml", "plan.json", "results.json", "report.html"}
    assert "s3cret" not in (files / "recipe.yaml").read_text()
    # The second run computes nothing and tells no step again.
    before = {name: r.info.run_id for name, r in runs.items()}
    run(Store(store.url), plan_of(a=nodes, b=nodes[:1]))
    assert {name: r.info.run_id for name, r in told(store).items()} == before


def test_a_failure_is_told_where_it_happened(tmp_path: Path) -> None:
    store, nodes = Store(str(tmp_path / "s")), graph(broken=True)
    with pytest.raises(UserError):
        run(store, plan_of(a=nodes))
    runs = told(store)
    assert {n: r.info.status for n, r in runs.items()} == {
        "quick": "FAILED",
        "a": "FAILED",
        "math · load": "FINISHED",
        "special · train": "FINISHED",
        "special · gsm8k": "FAILED",
    }
    assert runs["quick"].data.tags["cuvee.error"] == "special · gsm8k: no data for this task"


def test_with_keep_going_the_failed_step_says_why(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "s"))
    run(store, plan_of(a=graph(broken=True)), keep_going=True)
    runs = told(store)
    assert runs["special · gsm8k"].data.tags["cuvee.error"] == "special · gsm8k: no data for this task"
    assert runs["quick"].info.status == "FAILED"


def test_where_runs_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert default_uri(tmp_path) == "http://server:5000"
