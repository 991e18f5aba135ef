"""`cuvee compose` and `export`: the list is the truth, and what is exported follows it example by example."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from services.cluster import local_capacity
from services.run import Request, manifest_of, open_plan
from services.store import Store
from tests.services.commands.calls import call, read_jsonl, write_jsonl

RECIPE = """
version: 1
models: {{t: {{id: {model}, micro_batch: 3}}}}
let: {{k: none}}
data:
  a: {{from: {folder}/a.jsonl}}
  b: {{from: {folder}/b.jsonl}}
stages:
  one: {{mix: {{a: all}}}}
  two: {{mix: {{b: all, a: $k}}, init: one, objective: im, epochs: 2}}
train: {{model: t, epochs: 1, lr: 1e-3, global_batch: 4, max_len: 128, lora: {{r: 4, targets: [q_proj]}}}}
"""


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path) -> Path:
    for name, count in (("a", 6), ("b", 5)):
        turns = [
            [
                {"role": "user", "content": f"{name} {i}"},
                {"role": "assistant", "content": "first", "weight": 0 if name == "b" else 1},
                {"role": "user", "content": "more"},
                {"role": "assistant", "content": f"said {i}"},
            ]
            for i in range(count)
        ]
        write_jsonl(tmp_path / f"{name}.jsonl", [{"messages": messages} for messages in turns])
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(model=tiny_model, folder=tmp_path))
    return path


def test_lists_of_every_arm(recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with recipe.open("a") as file:
        file.write("arms: {grid: {k: [none, 1/2]}}\n")
    out, store = tmp_path / "lists", tmp_path / "store"
    found = call(capfd, "compose", recipe, "--out", out, "--store", store, "--json")
    assert found.code == 0, found.err
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.parquet")) == [
        "k=1-2/one.parquet", "k=1-2/two.parquet", "k=none/one.parquet", "k=none/two.parquet",
    ]  # fmt: skip
    table = pq.read_table(out / "k=1-2" / "two.parquet")
    assert table.column_names == ["stage", "epoch", "position", "id", "target", "source", "tokens"]
    assert table.num_rows == 2 * (5 + 3)
    alone = call(
        capfd, "compose", recipe, "--arm", "k=none", "--stage", "two", "--out", out, "--store", store, "--json"
    )
    assert [entry["path"] for entry in alone.json["lists"]] == [str(out / "two.parquet")]
    assert {step["status"] for step in alone.json["steps"]} == {"reused"}


@pytest.mark.parametrize(("option", "word"), [("--arm", "main"), ("--stage", "one")])
def test_names_that_are_not_there(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], option: str, word: str
) -> None:
    common = ["--out", tmp_path / "out", "--store", tmp_path / "store"]
    found = call(capfd, "compose", recipe, option, f"{word}x", *common)
    assert found.code == 2
    assert f'did you mean "{word}"?' in found.err


def test_examples_follow_the_list(recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out, common = tmp_path / "out", ["--store", tmp_path / "store"]
    assert call(capfd, "compose", recipe, "--out", out, *common).code == 0
    assert call(capfd, "export", recipe, "--out", out, *common).code == 0
    for stage in ("one", "two"):
        listed = pq.read_table(out / f"{stage}.parquet").to_pylist()
        written = read_jsonl(out / f"{stage}.jsonl")
        assert [(r["id"], r["epoch"]) for r in written] == [(r["id"], r["epoch"]) for r in listed]
    assert read_jsonl(out / "two.jsonl")[0]["messages"][1]["weight"] == 0


def test_settings_for_other_trainers(recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    common = ["--store", tmp_path / "store"]
    made = {}
    for form in ("trl", "axolotl", "llama-factory"):
        found = call(capfd, "export", recipe, "--format", form, "--out", tmp_path / form, *common)
        assert found.code == 0, found.err
        assert "not the same" in found.out
        made[form] = yaml.safe_load((tmp_path / form / f"two.{form}.yaml").read_text())
    batch = {made["trl"]["per_device_train_batch_size"], made["axolotl"]["micro_batch_size"]}
    assert batch == {2}  # the largest divisor of 4 that is not above 3
    assert {settings["gradient_accumulation_steps"] for settings in made.values()} == {2}
    assert {settings["warmup_steps"] for settings in made.values()} == {1}
    assert made["trl"]["model_name_or_path"] == made["axolotl"]["base_model"] == "one"
    assert (made["trl"]["num_train_epochs"], made["trl"]["train_sampling_strategy"]) == (1, "sequential")
    assert made["trl"]["lora_target_modules"] == ["q_proj"]
    assert made["axolotl"]["datasets"][0]["roles_to_train"] == ["system", "user", "assistant", "tool"]
    assert made["axolotl"]["datasets"][0]["message_field_training"] == "train"
    assert made["llama-factory"]["train_on_prompt"] is True
    assert made["llama-factory"]["disable_shuffling"] is True
    flags = [[m["train"] for m in r["messages"]] for r in read_jsonl(tmp_path / "axolotl" / "two.jsonl")]
    assert flags == [[True, False, True, True]] * 10
    assert set(read_jsonl(tmp_path / "trl" / "two.jsonl")[0]["messages"][0]) == {"role", "content"}
    assert "dataset_info.json" in {path.name for path in (tmp_path / "llama-factory").iterdir()}


def test_a_stored_run_is_exported_by_its_name(recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store = Store(str(tmp_path / "store"))
    request = Request(recipe, store=store.url)
    plan = open_plan(request, store, local_capacity())
    store.save_run("recipe-abc", manifest_of(plan, "recipe-abc", request, time.time()))
    recipe.unlink()
    common = ["--store", store.url, "--out", tmp_path / "out"]
    assert call(capfd, "export", "recipe", *common).code == 0
    assert len(read_jsonl(tmp_path / "out" / "two.jsonl")) == 10
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": "other", "completion": "data"}])
    changed = call(capfd, "export", "recipe", *common)
    assert changed.code == 2
    assert "not the same now" in changed.err
