"""What `cuvee plan` says of the differences that items and seeds can show."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from evaluation.statistics import minimum_detectable
from services.arms import expand
from services.plan import make_plan
from services.power import power, seed_power, sentences
from services.recipe import loads
from services.store import Store

RECIPE = """
version: 1
name: small
models: {tiny: {id: MODEL}}
data: {math: {from: MATH, do: [{holdout: {amount: 6 rows, near: null}}]}}
stages: {sft: {mix: {math: all}}}
train: {epochs: 1, global_batch: 4, max_len: 64}
evaluate:
  tasks: [arc_easy, gsm8k, humaneval]
  judged: {chat: {judge: {rating: {model: tiny}}, against: base}}
  gold_loss: math
  accuracy: {math: numeric}
  options: {gsm8k: {limit: 50}, humaneval: {limit: 1000}}
repeat: {seeds: [0, 1, 2]}
"""


@pytest.fixture
def text(tmp_path: Path, tiny_model: Path) -> str:
    rows = [json.dumps({"prompt": f"question {i}?", "completion": f"answer {i}"}) for i in range(24)]
    (tmp_path / "math.jsonl").write_text("\n".join(rows))
    return RECIPE.replace("MODEL", str(tiny_model)).replace("MATH", str(tmp_path / "math.jsonl"))


def test_items_by_task_and_in_which_unit(text: str, tmp_path: Path) -> None:
    store, recipe = Store(str(tmp_path / "store")), loads(text)
    found = {line["task"]: line for line in power(make_plan(recipe, expand(recipe), store), store)}
    assert {task: line["items"] for task, line in found.items()} == {
        "arc_easy": 570, "gsm8k": 50, "humaneval": 164, "chat": 20, "gold_loss.math": 6, "accuracy.math": 6,
    }  # fmt: skip
    assert {task for task, line in found.items() if line["unit"] == "sd"} == {"chat", "gold_loss.math"}
    assert found["gold_loss.math"]["detectable"] == round(minimum_detectable(6, sd=1), 3)
    assert found["gsm8k"]["detectable"] == round(minimum_detectable(50, p=0.5, correlation=0.5), 3)


def test_seeds_in_units_of_a_metric_once_its_noise_is_known(text: str, tmp_path: Path) -> None:
    store, recipe = Store(str(tmp_path / "store")), loads(text)
    plan = make_plan(recipe, expand(recipe), store)
    (blind,) = seed_power(plan, store)
    assert blind == {"seeds": 3, "detectable": round(minimum_detectable(3, sd=1), 3), "unit": "sd"}
    for started, sd in ((2.0, 0.1), (1.0, 0.7)):
        noise = [
            {"task": "gold_loss.math", "metric": "loss", "sd": sd},
            {"task": "chat", "metric": "grade", "sd": None},
        ]
        store.save_run(
            f"small-noise-{started}",
            {"name": "small-noise", "recipe": {"name": "small-noise"}, "started": started, "keys": [],
             "results": {"noise": noise}},
        )  # fmt: skip
    (known,) = seed_power(plan, store)
    assert (known["task"], known["unit"], known["run"]) == ("gold_loss.math", "loss", "small-noise-2.0")
    assert known["detectable"] == pytest.approx(minimum_detectable(3, sd=math.sqrt(2) * 0.1), rel=0.01)
    said = list(sentences({"power": power(plan, store), "seed_power": [known, blind]}))
    assert any(line.startswith("contrasts of gold_loss.math: 3 seeds show differences from 0.4") for line in said)
    assert any(line.startswith("gold_loss.math: 6 items show differences from 1.4") for line in said)
    assert "`cuvee noise` measures them" in said[-1]


def test_without_repeated_seeds_nothing_is_said_of_them(text: str, tmp_path: Path) -> None:
    store, recipe = Store(str(tmp_path / "store")), loads(text.replace("repeat: {seeds: [0, 1, 2]}", ""))
    assert seed_power(make_plan(recipe, expand(recipe), store), store) == []
