"""The whole chain on real Ray, vLLM, DeepSpeed and MLflow."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.end_to_end.miniature import command, write_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("miniature")


@pytest.fixture(scope="module")
def recipe(folder: Path, tiny_model: Path) -> Path:
    return write_recipe(folder, tiny_model)


@pytest.fixture(scope="module")
def first(folder: Path, recipe: Path) -> dict[str, Any]:
    """The first run, as `--json` tells it."""
    before = {p.pid for p in psutil.process_iter()}
    done = command("run", str(recipe), "--store", str(folder / "store"), "--json")
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    left = [p for p in psutil.process_iter(["cmdline"]) if p.pid not in before and _ours(p, folder)]
    assert not left
    return found


def _ours(process: psutil.Process, folder: Path) -> bool:
    try:
        return str(folder) in " ".join(process.cmdline()) or str(folder) in process.environ().get("CUVEE_TEST", "")
    except psutil.Error:
        return False


def test_every_step_is_computed_and_results_are_there(first: dict[str, Any]) -> None:
    assert first["status"] == "finished"
    assert {step["status"] for step in first["steps"]} == {"computed"}
    names = [step["name"] for step in first["steps"]]
    assert "special · train" in names
    assert "general · train" in names
    scores = {(s["point"], s["task"]): s for s in first["scores"]}
    assert set(scores) == {
        (p, t) for p in ("base", "general") for t in ("gold_loss.math", "gold_loss.chat", "accuracy.math")
    }
    # Training on the same kind of sentence lowers its loss from that of a random model, ln(1024) = 6.9.
    assert scores[("base", "gold_loss.math")]["mean"] > 5
    assert scores[("general", "gold_loss.math")]["mean"] < scores[("base", "gold_loss.math")]["mean"]
    assert scores[("base", "gold_loss.math")]["n"] == 6


def test_a_second_run_computes_nothing(folder: Path, recipe: Path, first: dict[str, Any]) -> None:
    done = command("run", str(recipe), "--store", str(folder / "store"), "--json")
    again = json.loads(done.stdout)
    assert {step["status"] for step in again["steps"]} == {"reused"}
    assert again["scores"] == first["scores"]
    assert again["seconds"] < first["seconds"] / 2


def test_bad_rows_are_kept_with_their_reason(folder: Path, first: dict[str, Any]) -> None:
    load = next(s for s in first["steps"] if s["name"] == "chat · load")
    rejected = [json.loads(line) for line in (Path(load["path"]) / "rejected.jsonl").read_text().splitlines()]
    assert [item["line"] for item in rejected] == [41, 42]
    assert all(item["reason"] and item["file"].endswith("chat.jsonl") for item in rejected)


def test_held_out_rows_are_in_no_list(folder: Path, first: dict[str, Any]) -> None:
    import pyarrow.parquet as pq

    from cuvee import rows

    paths = {s["name"]: Path(s["path"]) for s in first["steps"]}
    held = set(rows.read(paths["math · holdout"] / "held", ["id"])["id"].to_pylist())
    assert len(held) == 6
    for stage in ("special", "general"):
        plan = pq.read_table(paths[f"{stage} · list"] / f"{stage}.parquet")
        assert not held & set(plan["id"].to_pylist())
    # DMT: the replayed quarter is a subset of what stage 1 has seen.
    special = set(pq.read_table(paths["special · list"] / "special.parquet")["id"].to_pylist())
    general = pq.read_table(paths["general · list"] / "general.parquet")
    replayed = [r["id"] for r in general.to_pylist() if r["source"] == "math"]
    assert len(replayed) == 3
    assert set(replayed) <= special


def test_targets_have_provenance(first: dict[str, Any]) -> None:
    import pyarrow.parquet as pq

    path = next(Path(s["path"]) for s in first["steps"] if s["name"] == "chat · respond")
    table = pq.read_table(path / "responses.parquet")
    assert table.num_rows == 8
    assert set(table["chosen"].to_pylist()) <= {"model", "paraphrase", "gold"}
    # A random model never says the gold answer.
    assert "gold" in table["chosen"].to_pylist()


def test_tuned_model_loads_and_agrees_with_its_scores(first: dict[str, Any]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    path = next(Path(s["path"]) for s in first["steps"] if s["name"] == "general · train")
    model = AutoModelForCausalLM.from_pretrained(path / "model", dtype=torch.float32)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert (path / "model" / "README.md").exists()


def test_mlflow_has_one_run_a_recipe_and_one_a_step(folder: Path, first: dict[str, Any]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'store' / 'mlflow.db'}")
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(experiments, max_results=500)
    assert {run.info.status for run in runs} == {"FINISHED"}
    keys = [run.data.tags["cuvee.step.key"] for run in runs if "cuvee.step.key" in run.data.tags]
    assert len(keys) == len(set(keys))
    assert {s["key"] for s in first["steps"] if s["name"].endswith("train")} <= set(keys)


def test_plan_is_exact_when_all_is_done(folder: Path, recipe: Path, first: dict[str, Any]) -> None:
    done = command("plan", str(recipe), "--store", str(folder / "store"), "--json")
    plan = json.loads(done.stdout)
    assert plan["done"] == len(plan["steps"]) == len(first["steps"])
    assert {line["certainty"] for line in plan["stages"]} == {"exact"}
    assert plan["training"][0]["steps"] == 5


def test_the_report_is_one_file(first: dict[str, Any]) -> None:
    text = Path(first["report"]).read_text()
    assert "gold_loss.math" in text
    assert 'src="http' not in text


def test_chatter_stays_in_the_log(folder: Path, recipe: Path, first: dict[str, Any]) -> None:
    done = command("run", str(recipe), "--store", str(folder / "store"))
    assert done.returncode == 0
    assert "WARNING" not in done.stdout + done.stderr
    assert os.path.exists(first["log"])
