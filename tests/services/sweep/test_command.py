"""`cuvee run` of a search over toy steps: the manifest, the report and MLflow, also when it is interrupted."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services import run as runs
from services.runs import arms_of
from services.steps import base
from services.store import Store
from services.suggest import suggest
from services.sweep import run as sweeps
from services.sweep import trial
from services.terminal import quiet
from tests.services.sweep import toys
from tests.services.sweep.test_run import RECIPE, SEARCH, SEEDS

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def command(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], runs.Result]:
    monkeypatch.setattr(base, "STEPS", dict(base.STEPS))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    toys.register()
    monkeypatch.setattr(trial, "run", toys.run_trial)
    for name in ("math", "chat", "poison"):
        (tmp_path / f"{name}.jsonl").write_text('{"messages": []}\n')
    recipe = tmp_path / "toy.yaml"
    text = SEARCH.replace("budget", "scheduler: {asha: {grace: 4, factor: 3}}, budget") % (6, "finalists: 1")
    recipe.write_text(
        RECIPE.format(folder=tmp_path, model=tiny_model)
        + text.replace("arms: {", "arms: {add: {even: {}}, ", 1)
        + SEEDS
    )
    store = str(tmp_path / "store")

    def call() -> runs.Result:
        with quiet(None) as terminal:
            return runs.run(runs.Request(recipe, store=store), terminal, tmp_path / "log")

    return call


def told(store: Store) -> list[Any]:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{Path(store.url).resolve()}/mlflow.db")
    experiment = client.get_experiment_by_name("cuvee")
    return [client.get_run(r.info.run_id) for r in client.search_runs([experiment.experiment_id])]


def test_a_search_that_is_interrupted_goes_on_and_is_told_once(
    command: Callable[[], runs.Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished: list[int] = []
    usual = sweeps.Searching.finished

    def interrupted(self: Any, number: int, seconds: float) -> None:
        usual(self, number, seconds)
        finished.append(number)
        if len(finished) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(sweeps.Searching, "finished", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command()
    for thread in threading.enumerate():
        if thread.name == "tune":  # in a command of its own it ends with the process
            thread.join(120)
    store = Store(str(tmp_path / "store"))
    (manifest,) = store.runs().values()
    assert manifest["status"] == "failed"
    monkeypatch.setattr(sweeps.Searching, "finished", usual)
    result = command()
    search = result.found["search"]
    assert [arm["number"] for arm in search["arms"]] == [1, 2, 3, 4, 5, 6]
    assert {arm["status"] for arm in search["arms"]} <= {"finished", "stopped"}
    assert result.failed == []

    # The manifest: what is reported, and everything that prune must not take.
    store = Store(store.url)
    (manifest,) = store.runs().values()
    assert manifest["status"] == "finished"
    best = search["winner"]["arm"]
    names = [arm["name"] for arm in manifest["arms"]]
    assert names == [f"{arm},seed={seed}" for arm in ("even", best) for seed in (0, 1, 2)]
    assert [arm.name for arm in arms_of(manifest)] == names
    assert {a["train"] for a in search["arms"] if a["status"] == "finished"} <= set(manifest["keys"])
    assert not [name for name, _ in store.prune() if name.startswith(("artifacts/", "searches/"))]

    # MLflow: one parent, one child an arm, nothing open and nothing twice.
    found = told(store)
    (parent,) = [r for r in found if "mlflow.parentRunId" not in r.data.tags]
    assert {r.data.tags["mlflow.parentRunId"] for r in found if r is not parent} == {parent.info.run_id}
    arms = Counter(r.data.tags["cuvee.arm"] for r in found if "cuvee.arm" in r.data.tags)
    assert arms == Counter([*names, *(arm["name"] for arm in search["arms"])])
    keys = Counter(r.data.tags["cuvee.step.key"] for r in found if "cuvee.step.key" in r.data.tags)
    assert set(keys.values()) == {1}
    assert {r.info.status for r in found} <= {"FINISHED", "KILLED"}
    one = next(r for r in found if r.data.tags.get("cuvee.arm") == best)
    assert one.data.tags["cuvee.status"] == "finished"
    assert one.data.metrics["search/validation"] == pytest.approx(
        search["winner"]["scores"]["validation"]["mean"], abs=1
    )

    # The report and the suggestion.
    page = (result.folder / "report.html").read_text()
    assert f"Best arm: {best}" in page
    assert suggest(store, "toy")["arms"]
    before = len(found)
    again = command()
    assert {o.status for o in again.outcomes} == {"reused"}
    assert json.dumps(again.found["search"]["arms"]) == json.dumps(search["arms"])
    assert len(told(store)) == before
