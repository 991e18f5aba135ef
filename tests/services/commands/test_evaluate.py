"""`cuvee evaluate`: what can be asked, and one model scored by a real engine."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from evaluation import suites, tasks
from services.recipe import parse
from services.single_evaluate import EvaluateRequest, recipe_of
from services.yaml_lines import Document
from tests.services.commands.calls import call, call_apart


def test_the_list_says_what_is_here_and_how_to_get_the_rest(capfd: pytest.CaptureFixture[str]) -> None:
    found = call(capfd, "evaluate", "--tasks", "list", "--json").json
    assert {task["name"] for task in found["tasks"]} == set(tasks.TASKS)
    assert all(task["where"] for task in found["tasks"])
    assert set(found["suites"]) == set(suites.SUITES)
    text = call(capfd, "evaluate", "--tasks", "list").out
    assert all(name in text for name in tasks.TASKS)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--tasks", "gsm8k"], "--model"),
        (["--tasks", "gsm8k", "--model", "m"], "--out"),
        (["--tasks", "gsm9k", "--model", "m", "--out", "o"], "gsm8k"),
        (["--tasks", "mt_bench", "--model", "m", "--out", "o"], "`judge`"),
        (["--tasks", "arc_easy", "--model", "m", "--out", "o", "--data", "gsm8k=a.jsonl"], "not asked"),
        (["--tasks", "arc_easy", "--model", "m", "--out", "o", "--data", "a.jsonl"], "--data gsm8k=test.jsonl"),
        (["--tasks", ",", "--model", "m", "--out", "o"], "no task"),
        (["--tasks", "arc_easy", "--model", "nowhere", "--out", "o"], "nowhere"),
    ],
)
def test_what_is_missing_is_named(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found = call(capfd, "evaluate", *arguments)
    assert found.code == 2
    assert word in found.err
    assert not (tmp_path / "o").exists()


def test_the_command_is_a_recipe(tmp_path: Path) -> None:
    recipe = parse(Document(recipe_of(EvaluateRequest("m", ["dmt@", "arc_easy@3"][1:], tmp_path, limit=7, shots=2))))
    assert recipe.evaluate.tasks == ("arc_easy@3",)
    assert (recipe.evaluate.limit, recipe.evaluate.options["arc_easy"].shots) == (7, 2)
    said = EvaluateRequest("m", ["arc_easy"], tmp_path, chat=True, max_new_tokens=9, data={"arc_easy": "a.jsonl"})
    options = parse(Document(recipe_of(said))).evaluate.options["arc_easy"]
    assert (options.chat, options.max_new_tokens, options.data, options.shots) == (True, 9, "a.jsonl", None)
    suite = parse(Document(recipe_of(EvaluateRequest("m", ["builtin"], tmp_path))))
    assert suite.evaluate.tasks == suites.SUITES["builtin"].tasks


def test_a_model_that_another_trainer_made(tmp_path: Path, tiny_model: Path) -> None:
    out = tmp_path / "scores"
    arguments = ["evaluate", "--model", tiny_model, "--tasks", "gsm_symbolic", "--limit", 2, "--out", out]
    found = call_apart(*arguments, "--store", tmp_path / "store", "--json")
    assert found.code == 0, found.err
    assert found.json["tasks"]["gsm_symbolic"]["n"] == 2
    assert json.loads((out / "summary.json").read_text())["tasks"] == found.json["tasks"]
    items = pq.read_table(out / "items.parquet").to_pylist()
    assert len({item["item"] for item in items}) == 2
    assert all(item["prompt"] and item["reference"] for item in items)
    again = call_apart(*arguments, "--store", tmp_path / "store", "--json")
    assert {step["status"] for step in again.json["steps"]} == {"reused"}
