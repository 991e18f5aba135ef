"""Which runs the noise of a recipe takes, which of them it shares, and what is read from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cuvee.errors import RecipeError, UserError
from services import noise
from services.arms import expand
from services.noise import noise_recipe
from services.plan import Plan, make_plan
from services.recipe import loads
from services.store import Store

RECIPE = """
version: 1
name: small
seed: 5
models: {tiny: {id: MODEL}}
data: {math: {from: MATH, do: [{holdout: {amount: 4 rows, near: null}}, {sample: 1/2}]}}
let: {k: 1}
stages: {sft: {mix: {math: all}}}
train: {epochs: $k, global_batch: 4, max_len: 64}
evaluate: {gold_loss: math}
arms: {grid: {k: [1, 2]}}
contrasts: [{a: {k: 1}, b: {k: 2}, metric: gold_loss.math}]
"""
ALL = ("sample", "order", "init", "generation", "judge")


@pytest.fixture
def text(tmp_path: Path, tiny_model: Path) -> str:
    rows = [json.dumps({"prompt": f"question {i}?", "completion": f"answer {i}"}) for i in range(24)]
    (tmp_path / "math.jsonl").write_text("\n".join(rows))
    return RECIPE.replace("MODEL", str(tiny_model)).replace("MATH", str(tmp_path / "math.jsonl"))


def planned(text: str, tmp_path: Path, vary: tuple[str, ...] = ALL, seeds: int = 3) -> tuple[Plan, Plan]:
    """The plan of the noise of the first arm, and the plan of the recipe itself."""
    store, recipe = Store(str(tmp_path / "store")), loads(text)
    made = noise_recipe(recipe, arm=None, seeds=seeds, vary=vary)
    return make_plan(made, expand(made), store), make_plan(recipe, expand(recipe), store)


def test_one_stream_at_a_time_from_the_run_that_is_there(text: str, tmp_path: Path) -> None:
    plan, own = planned(text, tmp_path)
    assert [arm.arm.name for arm in plan.arms] == [
        "main,seed=5", *(f"main,{stream}={seed}" for stream in ALL for seed in (6, 7)),
    ]  # fmt: skip
    assert plan.arms[3].arm.seeds == {"sample": 5, "order": 6, "init": 5, "generation": 5, "judge": 5}
    trained = [arm.stages["sft"].train.key for arm in plan.arms]
    assert trained[0] == own.arms[0].stages["sft"].train.key
    # Nothing is generated or judged here, so these streams train nothing of their own.
    assert len(set(trained)) == 7
    assert set(trained[7:]) == {trained[0]}
    assert plan.recipe.name == "small-noise"
    assert plan.recipe.contrasts == ()


def test_what_is_read_from_the_runs(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, _ = planned(text, tmp_path, ("sample", "judge"))
    values = dict(zip((arm.arm.name for arm in plan.arms), (1.0, 2.0, 3.0, 1.0, 1.0), strict=True))
    keys = {measure.node.key: values[arm.arm.name] for arm in reversed(plan.arms) for measure in arm.measures}
    monkeypatch.setattr(
        "services.noise.summary_of",
        lambda measure, store: {measure.task: {"metric": "loss", "mean": keys[measure.node.key]}},
    )
    (found,) = noise.measured(plan, Store(str(tmp_path / "store")))
    assert (found["variant"], found["task"], found["metric"]) == ("main", "gold_loss.math", "loss")
    assert [(p["stream"], p["sd"], p["touches"]) for p in found["parts"]] == [
        ("sample", 1.0, True),
        ("judge", 0.0, False),
    ]
    assert (found["mean"], found["runs"]) == (2.0, 3)


def test_repeats_that_move_all_streams_tell_the_whole(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = loads(text.replace("arms:", "repeat: {seeds: [0, 1, 2], vary: [sample, order]}\narms:"))
    plan = make_plan(recipe, expand(recipe), Store(str(tmp_path / "store")))
    monkeypatch.setattr(
        "services.noise.summary_of",
        lambda measure, store: {measure.task: {"metric": "loss", "mean": float(int(measure.node.key[-6:], 16))}},
    )
    found = noise.measured(plan, Store(str(tmp_path / "store")))
    assert [(one["variant"], [part["stream"] for part in one["parts"]]) for one in found] == [
        ("k=1", ["sample+order"]), ("k=2", ["sample+order"]),
    ]  # fmt: skip


def test_an_arm_by_name_and_what_cannot_be(text: str) -> None:
    recipe = loads(text)
    assert noise_recipe(recipe, arm="k=2", seeds=2, vary=["init"]).train.epochs == 2
    for arm, seeds, vary, why in (
        ("k=3", 2, ["init"], "no arm 'k=3'"), (None, 1, ["init"], "shows no noise"), (None, 2, ["int"], "did you mean"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=why):
            noise_recipe(recipe, arm=arm, seeds=seeds, vary=vary)
    with pytest.raises(RecipeError, match="seeds that move their streams together"):
        loads(text.replace("arms:", "repeat: {seeds: [0, 1], apart: true}\narms:"))
