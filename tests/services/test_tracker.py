from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cuvee.errors import Unavailable
from services.tracker import Tracker

HASH = "0123abcd"


@pytest.fixture(scope="module", autouse=True)
def impatient() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        yield


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database as MLflow makes it, once: its migrations take seconds."""
    folder = tmp_path_factory.mktemp("empty")
    client(folder).search_experiments()
    return folder / "mlflow.db"


@pytest.fixture(autouse=True)
def database(empty: Path, tmp_path: Path) -> None:
    shutil.copy(empty, tmp_path)


def sqlite(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def away() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def client(folder: Path) -> Any:
    import mlflow

    return mlflow.MlflowClient(sqlite(folder))


def runs(folder: Path, condition: str = "") -> list[Any]:
    experiment = client(folder).get_experiment_by_name("test")
    found = client(folder).search_runs([experiment.experiment_id], condition) if experiment else []
    return [client(folder).get_run(run.info.run_id) for run in found]  # a search leaves inputs out


def tell(tracker: Tracker, *, until: str = "end") -> None:
    """A small recipe's run, the same every time."""
    recipe = tracker.recipe_run(
        "quick",
        HASH,
        tags={"cuvee.paper": "dmt"},
        params={"seed": 0, "long": "x" * 400, **{f"p{i}": i for i in range(30)}},
        artifacts={"recipe.yaml": "hf_AbCdEfGhIjKlMnOpQrSt: secret\n"},
    )
    arm = tracker.arm_run(recipe, "k=1/4", tags={"cuvee.step.train": "train-1"})
    step = tracker.step_run(recipe, "train", "train-1", name="special · train", config={"lr": 1e-4})
    tracker.dataset(step, "math", "select-9", "/store/artifacts/select-9", 96)
    for n in range(5):
        tracker.metrics(step, {"loss": 1 / (n + 1), "loss.math": float(n)}, n, 1_700_000_000 + n)
    if until == "training":
        return
    tracker.model(step, "special", "/store/artifacts/train-1", "train-1", {"final.loss": 0.2})
    tracker.uses(arm, "train-1")
    tracker.metrics(arm, {"gsm8k": 0.25}, model="train-1")
    tracker.metrics(arm, {"mbpp": 0.5}, model="train-of-another-store")
    tracker.finish(step)
    tracker.finish(arm)
    tracker.finish(recipe)


def test_a_recipe_its_arms_and_steps_are_one_tree(tmp_path: Path) -> None:
    with Tracker(sqlite(tmp_path), tmp_path, "test") as tracker:
        tell(tracker)
    assert not tracker.problem
    assert tracker.pending == 0
    by_name = {run.info.run_name: run for run in runs(tmp_path)}
    assert set(by_name) == {"quick", "k=1/4", "special · train"}
    recipe, arm, step = by_name["quick"], by_name["k=1/4"], by_name["special · train"]
    assert arm.data.tags["mlflow.parentRunId"] == step.data.tags["mlflow.parentRunId"] == recipe.info.run_id
    assert arm.data.tags["cuvee.step.train"] == step.data.tags["cuvee.step.key"] == "train-1"
    assert recipe.data.tags["cuvee.recipe"] == HASH
    assert {run.info.status for run in by_name.values()} == {"FINISHED"}
    assert [r.info.run_name for r in runs(tmp_path, "tags.`cuvee.paper` = 'dmt'")] == ["quick"]
    # Few and short parameters; all of them as an artifact; no credentials.
    assert len(recipe.data.params) == 20
    assert len(recipe.data.params["long"]) == 250
    files = {f.path for f in client(tmp_path).list_artifacts(recipe.info.run_id)}
    assert files == {"recipe.yaml", "params.json"}
    root = Path(recipe.info.artifact_uri.removeprefix("file://"))
    assert (tmp_path / "mlflow-artifacts") in root.parents
    assert (root / "recipe.yaml").read_text() == "***: secret\n"
    assert len(json.loads((root / "params.json").read_text())) == 32
    # Metrics with their own times and steps.
    history = client(tmp_path).get_metric_history(step.info.run_id, "loss")
    assert [(m.step, m.timestamp) for m in history] == [(n, 1000 * (1_700_000_000 + n)) for n in range(5)]
    # Data and model.
    (data,) = step.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest, json.loads(data.dataset.profile)) == (
        "math",
        "select-9",
        {"num_rows": 96},
    )
    (made,) = step.outputs.model_outputs
    model = client(tmp_path).get_logged_model(made.model_id)
    assert model.tags["cuvee.path"] == "/store/artifacts/train-1"
    assert [(m.key, m.value) for m in sorted(model.metrics, key=lambda m: m.key)] == [
        ("final.loss", 0.2),
        ("gsm8k", 0.25),
    ]
    assert arm.data.metrics == {"gsm8k": 0.25, "mbpp": 0.5}
    assert [m.model_id for m in arm.inputs.model_inputs] == [made.model_id]


def test_saying_it_again_makes_nothing_twice(tmp_path: Path) -> None:
    for _ in range(2):
        with Tracker(sqlite(tmp_path), tmp_path, "test") as tracker:
            tell(tracker)
    assert len(runs(tmp_path)) == 3
    step = runs(tmp_path, "tags.`cuvee.step.key` = 'train-1'")[0]
    assert len(step.outputs.model_outputs) == 1
    assert len(step.inputs.dataset_inputs) == 1
    history = client(tmp_path).get_metric_history(step.info.run_id, "loss.math")
    assert [m.step for m in history] == list(range(5))
    # A command that died before it could note what it had said says everything again.
    (tmp_path / "work" / "tracking" / f"{HASH}.sent").unlink()
    tracker = Tracker(sqlite(tmp_path), tmp_path, "test")
    assert tracker.replay() == 0
    assert len(runs(tmp_path)) == 3
    assert len(client(tmp_path).get_metric_history(step.info.run_id, "loss.math")) == 5
    assert {run.info.status for run in runs(tmp_path)} == {"FINISHED"}
    assert not list((tmp_path / "work" / "tracking").glob("*.refused.jsonl"))


def test_a_server_that_is_away_loses_nothing_and_stops_nothing(tmp_path: Path) -> None:
    start = time.time()
    tracker = Tracker(away(), tmp_path, "test")
    tell(tracker)
    said = time.time()
    assert said - start < 5  # no call waits for the server
    tracker.close()
    assert tracker.pending > 10
    assert "the next command sends the rest" in tracker.notice()
    later = Tracker(sqlite(tmp_path), tmp_path, "test")
    assert later.replay() == 0
    assert not later.notice()
    by_name = {run.info.run_name: run for run in runs(tmp_path)}
    assert set(by_name) == {"quick", "k=1/4", "special · train"}
    for run in by_name.values():
        assert 1000 * start - 2 <= run.info.start_time <= run.info.end_time <= 1000 * said + 2
    assert (Path(by_name["quick"].info.artifact_uri.removeprefix("file://")) / "recipe.yaml").exists()


def test_runs_that_a_kill_left_open_are_closed_by_the_next_command(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import sys, time
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        from services.tracker import Tracker
        from tests.services.test_tracker import tell
        folder = Path({str(tmp_path)!r})
        tell(Tracker({sqlite(tmp_path)!r}, folder, "test"), until="training")
        print("told", flush=True)
        time.sleep(600)
    """)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"told\n"
        alive = Tracker(sqlite(tmp_path), tmp_path, "test")
        assert alive.close_orphans() == []
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with Tracker(sqlite(tmp_path), tmp_path, "test") as tracker:
        assert sorted(tracker.close_orphans()) == sorted([HASH, f"{HASH}/k=1/4", "train-1"])
    assert {run.info.status for run in runs(tmp_path)} == {"KILLED"}
    step = runs(tmp_path, "tags.`cuvee.step.key` = 'train-1'")[0]
    assert step.info.end_time == 1000 * 1_700_000_004  # its last event
    assert Tracker(sqlite(tmp_path), tmp_path, "test").close_orphans() == []
    # And the same recipe goes on in the same runs.
    with Tracker(sqlite(tmp_path), tmp_path, "test") as tracker:
        tell(tracker)
    assert len(runs(tmp_path)) == 3
    assert {run.info.status for run in runs(tmp_path)} == {"FINISHED"}


def test_an_event_that_is_never_taken_does_not_hold_up_the_others(tmp_path: Path) -> None:
    with Tracker(sqlite(tmp_path), tmp_path, "test") as tracker:
        run = tracker.recipe_run("quick", HASH)
        tracker.uses(run, "train-unknown")
        tracker.metric(run, "odd name: (%)", float("nan"))
        tracker.finish(run)
    assert tracker.pending == 0
    assert not tracker.problem
    (found,) = runs(tmp_path)
    assert found.info.status == "FINISHED"
    assert list(found.data.metrics) == ["odd name: ___"]
    refused = (tmp_path / "work" / "tracking" / f"{HASH}.refused.jsonl").read_text()
    assert "no model of key train-unknown" in json.loads(refused)["refused"]


def test_a_run_that_somebody_deleted_is_made_again(tmp_path: Path) -> None:
    with Tracker(sqlite(tmp_path), tmp_path, "test") as tracker:
        run = tracker.recipe_run("quick", HASH)
        assert tracker.replay() == 0
        client(tmp_path).delete_run(runs(tmp_path)[0].info.run_id)
    with Tracker(sqlite(tmp_path), tmp_path, "test") as tracker:
        run = tracker.recipe_run("quick", HASH)
        tracker.metric(run, "m", 1.0)
        tracker.finish(run)
    (found,) = runs(tmp_path)
    assert found.data.metrics == {"m": 1.0}


def test_check_says_whether_runs_can_be_written(tmp_path: Path) -> None:
    Tracker(sqlite(tmp_path), tmp_path, "test").check()
    assert runs(tmp_path) == []
    with pytest.raises(Unavailable, match="cannot be written"):
        Tracker(away(), tmp_path, "test").check()
