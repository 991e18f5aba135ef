"""A search with ASHA as its user runs it, on trained tiny models: whole, killed and run again."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.mlflow_sink import KEY
from services.store import Store
from tests.end_to_end.miniature import begun, command
from tests.end_to_end.test_kill import processes

pytestmark = pytest.mark.kill


def write_search(folder: Path, model: Path, arms: int = 6) -> Path:
    """Two tables, two stages of which the first is shared, six arms with ASHA, a finalist with two seeds."""
    for name, ask in (("math", "Ana has {} coins and finds 2 more. How many?"), ("chat", "Who counts {} stones?")):
        lines = [
            {"messages": [{"role": "user", "content": ask.format(i)}, {"role": "assistant", "content": f"It is {i}."}]}
            for i in range(60)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    space = {"shares": {"simplex": ["m", "c"], "total": "48 rows"}, "lr": {"loguniform": [1e-4, 1e-2]}}
    asha = {"asha": {"grace": 2, "factor": 2}}
    recipe: dict[str, Any] = {
        "version": 1,
        "name": "tiny-search",
        "seed": 3,
        "models": {"tiny": {"id": str(model), "max_len": 128, "micro_batch": 4}},
        "data": {
            name: {"from": str(folder / f"{name}.jsonl"), "do": [{"holdout": {"amount": "12 rows", "near": None}}]}
            for name in ("math", "chat")
        },
        "let": {"m": "24 rows", "c": "24 rows", "lr": 1e-3},
        "stages": {
            "special": {"mix": {"math": "8 rows"}},
            "general": {
                "mix": {"chat": "$c", "math": "$m"},
                "init": "special",
                "train": {"lr": "$lr", "validation_every": 2},
            },
        },
        "train": {"model": "tiny", "epochs": 1, "global_batch": 4, "max_len": 64},
        "evaluate": {"gold_loss": ["math"], "at": ["base", "final"]},
        "arms": {"search": {"space": space, "metric": "validation", "scheduler": asha, "budget": arms}},
        "repeat": {"seeds": [0, 1], "vary": ["order"]},
    }
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def runs_of(store: Path) -> list[Any]:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{store}/mlflow.db")
    experiment = client.get_experiment_by_name("cuvee")
    return [client.get_run(r.info.run_id) for r in client.search_runs([experiment.experiment_id])]


@pytest.mark.timeout(2400)
def test_a_killed_search_goes_on_and_mlflow_has_each_arm_once(tmp_path: Path, tiny_model: Path) -> None:
    recipe, store = write_search(tmp_path, tiny_model), tmp_path / "store"
    process = begun(recipe, store)

    def over() -> list[dict[str, Any]]:
        folders = sorted((store / "searches").glob("*")) if (store / "searches").exists() else []
        arms = Store(str(store)).saved_arms(folders[0].name) if folders else []
        return [arm for arm in arms if arm["status"] in ("finished", "stopped")]

    deadline = time.monotonic() + 900
    while len(over()) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.5)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(60)
    before = over()
    assert 2 <= len(before) < 6
    done = command("run", str(recipe), "--store", str(store), "--json", timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    arms = found["search"]["arms"]
    assert len(arms) == 6
    kept = {arm["name"]: arm for arm in arms}
    assert all(kept[arm["name"]]["reports"] == arm["reports"] for arm in before)
    assert {arm["status"] for arm in arms} <= {"finished", "stopped"}
    assert found["search"]["winner"]["arm"] in found["search"]["finalists"]
    assert not processes(str(store))
    runs = runs_of(store)
    names = [run.info.run_name for run in runs]
    keys = [key for run in runs if (key := run.data.tags.get(KEY))]
    assert len(keys) > 12
    assert len(keys) == len(set(keys))  # no step twice
    assert [names.count(f"arm-{i:03}") for i in range(1, 7)] == [1] * 6
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in runs if run is not parent)
    again = json.loads(command("run", str(recipe), "--store", str(store), "--json").stdout)
    assert {step["status"] for step in again["steps"]} == {"reused"}
    assert again["search"]["arms"] == arms
    assert len(runs_of(store)) == len(runs)
