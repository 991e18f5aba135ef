"""What a plan costs, on a store whose measurements are written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.arms import expand
from services.durations import ASSUMED, durations, lines, named_size
from services.figures import Figures
from services.graph import Node, ordered
from services.plan import Plan, make_plan
from services.recipe import loads
from services.store import Store

RECIPE = """
version: 1
models: {{m: {{id: "{model}"}}}}
data:
  math: {folder}/math.jsonl
  chat: {folder}/chat.jsonl
stages:
  special: {{mix: {{math: all}}}}
  general: {{mix: {{chat: all, math: 1/4}}, init: special}}
train: {{model: m, epochs: 1}}
evaluate: {{output_loss: [math], at: [final]}}
arms: {{grid: {{stages.general.train.lr: [1.0e-5, 1.0e-4, 1.0e-3]}}}}
"""


def publish(store: Store, node: Node, took: float, model: Path | None = None, **info: object) -> None:
    lease = store.acquire(node.key)
    assert lease
    folder = store.attempt_folder(lease)
    if model:
        (folder / "pointer.json").write_text(json.dumps({"path": str(model)}))
    inputs = {name: source.key for name, source in node.inputs.items()}
    store.publish(lease, folder, info=info, inputs=inputs, seconds=took)
    lease.release()


@pytest.fixture
def plan(tmp_path: Path, tiny_model: Path) -> tuple[Plan, Store]:
    for name in ("math", "chat"):
        (tmp_path / f"{name}.jsonl").write_text('{"messages": []}\n')
    recipe = loads(RECIPE.format(folder=tmp_path, model=tiny_model))
    store = Store(str(tmp_path / "store"))
    return make_plan(recipe, expand(recipe), store, accelerator=False), store


def test_measured_trainings_give_the_rate_and_sharing_counts_once(plan: tuple[Plan, Store], tiny_model: Path) -> None:
    made, store = plan
    first = made.arms[0]
    for node in ordered([first.stages["special"].train, *(s.compose for a in made.arms for s in a.stages.values())]):
        if node.step == "model":
            publish(store, node, 1.0, tiny_model)
        elif node.step == "compose":
            publish(store, node, 1.0, rows=10, tokens=4000, realised=[])
        elif node.step == "train":
            publish(store, node, 50.0, seconds=40.0, tokens=4000, workers=1)
        else:
            publish(store, node, 1.0, rows=10, tokens=4000, characters=10)
    found = durations(made, Figures(store), False)
    # Each arm's own training: 4000 tokens at 100 tokens/s. The first stage was measured, with its start and end.
    assert found["to do"]["worker_hours"] == pytest.approx(3 * 40 / 3600)
    assert found["shared"]["worker_hours"] == pytest.approx((50 + 3 * 40) / 3600)
    assert found["alone"]["worker_hours"] == pytest.approx(3 * (50 + 40) / 3600)
    assert found["rates"] == ["100 tokens/s a CPU worker, measured"]
    assert found["uses"][0] == {"step": "special · train", "key": first.stages["special"].train.key, "arms": 3}
    said = "\n".join(lines(found))
    assert "worker-hours of training" in said
    assert "shared by 3 arms: special · train" in said


def test_what_nobody_knows_is_counted_and_not_guessed(plan: tuple[Plan, Store]) -> None:
    made, store = plan
    found = durations(made, Figures(store), False)
    assert found["shared"]["seconds"] == 0
    assert found["shared"]["unknown"] == found["shared"]["steps"]
    assert "no figure yet" in "\n".join(lines(found))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("hub:meta/Llama-2-7b-hf", 7e9),
        ("builtin:smollm2-135m-instruct", 135e6),
        ("hub:x/Qwen2.5-0.5B", 0.5e9),
        ("./me", 0),
    ],
)
def test_sizes_by_name(name: str, size: float) -> None:
    assert named_size(name) == pytest.approx(size)
    assert ASSUMED["GPU"] > ASSUMED["CPU"]
