"""From what differs in the recipe to whether the scores differ, against a store whose content is known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from scipy import stats

from cuvee.errors import UserError
from services.commands import looking
from services.diff import Side, beyond_zero, causes, diff, pairs_of, recipe_differences, settings_of
from services.diff_text import cell, markdown
from services.store import Store
from tests.services.world import RIGHT, World

RUN = "small-0123456789ab"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return World(tmp_path_factory.mktemp("world")).store


def arms(store: Store, a: str, b: str) -> dict:
    (arm,) = diff(store, f"small:policy={a}", f"small:policy={b}")["arms"]
    return arm


def test_the_key_that_was_set_is_named_with_its_operation(store: Store) -> None:
    arm = arms(store, "s3ft,seed=0", "gold,seed=0")
    assert arm["recipe"] == [{"key": "data.qa.respond.policy", "a": "s3ft", "b": "gold"}]


def test_keys_that_one_side_lacks() -> None:
    found = recipe_differences({"x": 1, "y": 2}, {"y": 2, "z": [1]})
    assert found == [{"key": "x", "a": 1, "b": "(absent)"}, {"key": "z", "a": "(absent)", "b": [1]}]


def test_two_operations_of_one_name_stay_apart(store: Store) -> None:
    do = [{"score": {"a": "length"}}, "dedup", {"score": {"b": "length"}, "as": "late"}, {"score": {"c": "length"}}]
    recipe = {"version": 1, "data": {"pool": {"from": "x.jsonl", "do": do}}, "evaluate": {"at": []}}
    side = Side("x", {"name": "x", "recipe": recipe}, [])
    found = settings_of(side, {"name": "main"})
    assert found["data.pool.do"] == ["score", "dedup", "late", "score"]
    assert {k for k in found if k.startswith("data.pool.") and k.endswith(("a", "b", "c"))} == {
        "data.pool.score.a", "data.pool.late.b", "data.pool.score.2.c",
    }  # fmt: skip


def test_rows_and_targets(store: Store) -> None:
    math, qa = arms(store, "s3ft,seed=0", "gold,seed=0")["tables"]
    assert math["same"]
    assert {k: qa[k] for k in ("rows_a", "rows_b", "removed", "added", "other_target")} == {
        "rows_a": 3, "rows_b": 3, "removed": 0, "added": 0, "other_target": 2,
    }  # fmt: skip


def test_lists_and_why_weights_differ(store: Store) -> None:
    special, general = arms(store, "s3ft,seed=0", "gold,seed=0")["stages"]
    assert (special["same_list"], special["same_weights"], special["because"]) == (True, True, [])
    assert (general["same_weights"], general["because"]) == (False, ["qa · respond"])
    # The other seed reverses the order: of 2 x 4 positions none is the same, and every row is there as often.
    special, general = arms(store, "s3ft,seed=0", "s3ft,seed=1")["stages"]
    assert [special[k] for k in ("rows_a", "removed", "added", "other_repeats", "same_place")] == [8, 0, 0, 0, 0]
    # One math row is replaced by another; the three qa rows stay where they were.
    assert [general[k] for k in ("rows_a", "rows_b", "removed", "added", "same_place")] == [4, 4, 1, 1, 3]
    assert general["because"] == ["special · list", "general · list"]


def test_causes_are_the_first_steps_that_differ() -> None:
    def node(label: str, seed: int | None = None, **inputs: str) -> dict:
        return {"step": label, "label": label, "inputs": inputs, "seed": seed}

    nodes = {
        "load": node("load"), "a": node("select", 0, rows="load"), "b": node("select", 1, rows="load"),
        "ta": node("train", plan="a", init="load"), "tb": node("train", plan="b", init="load"),
        "tc": node("train", plan="a", init="load", held="load"), "td": node("train", plan="a", init="load"),
        "te": node("train", plan="a", init="ta"),
    }  # fmt: skip
    assert causes(nodes, "ta", "tb") == ["select: seed 0 and 1"]
    assert causes(nodes, "ta", "tc") == ["train: with held"]
    assert causes(nodes, "tc", "ta") == ["train: without held"]
    assert causes(nodes, "ta", "td") == ["train"]
    assert causes(nodes, "ta", "te") == ["train: init is load and train"]
    assert causes(nodes, "ta", "ta") == causes(nodes, None, "ta") == []


def test_scores_are_paired_and_seeds_are_their_own_unit(store: Store) -> None:
    found = diff(store, "small:policy=s3ft,seed=0", "small:policy=gold,seed=0")
    (score,) = found["arms"][0]["scores"]
    assert (score["point"], score["task"], score["n"]) == ("general", "arc_easy", 40)
    assert score["difference"] == pytest.approx((RIGHT["gold", 0] - RIGHT["s3ft", 0]) / 40)
    # Twenty items went from right to wrong, none back: exact McNemar.
    assert score["p"] == score["p_holm"] == pytest.approx(stats.binomtest(20, 20).pvalue)
    assert score["more_than_noise"] is True
    (seeds,) = found["seeds"]
    before, after = ([RIGHT[policy, seed] / 40 for seed in (0, 1)] for policy in ("s3ft", "gold"))
    expected = stats.ttest_rel(after, before)
    assert (seeds["seeds"], seeds["p"]) == ([0, 1], pytest.approx(expected.pvalue))
    interval = expected.confidence_interval(0.95)
    assert (seeds["low"], seeds["high"]) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert seeds["more_than_noise"] is True


def test_a_small_difference_is_noise(store: Store) -> None:
    (score,) = arms(store, "s3ft,seed=0", "s3ft,seed=1")["scores"]
    assert (score["difference"], score["more_than_noise"]) == (pytest.approx(1 / 40), False)
    assert [beyond_zero(0.1, 0.2), beyond_zero(-0.1, 0.2), beyond_zero(float("nan"), 1.0)] == [True, False, None]


def test_whole_runs_and_variants_are_paired_by_name_and_seed(store: Store) -> None:
    whole, variant = Side.parse(store, "small"), Side.parse(store, "small:policy=gold")
    assert [(a["name"], b["name"]) for a, b in pairs_of(Side.parse(store, "small:policy=s3ft"), variant)] == [
        ("policy=s3ft,seed=0", "policy=gold,seed=0"),
        ("policy=s3ft,seed=1", "policy=gold,seed=1"),
    ]
    assert all(a is b for a, b in pairs_of(whole, whole))
    found = diff(store, "small", "small:policy=gold")
    assert [arm["a"] for arm in found["arms"]] == ["policy=gold,seed=0", "policy=gold,seed=1"]
    assert found["only_a"] == ["policy=s3ft,seed=0", "policy=s3ft,seed=1"]


def test_names_that_mean_nothing(store: Store) -> None:
    with pytest.raises(UserError, match="0 runs match 'large'"):
        diff(store, "large", "small")
    with pytest.raises(UserError, match='did you mean "policy=gold"'):
        diff(store, "small:policy=golt", "small")


def test_what_is_missing_is_said(store: Store, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(store.url, copy)
    shutil.rmtree(copy / "artifacts" / "evaluate-gold0")
    shutil.rmtree(copy / "artifacts" / "respond-gold")
    arm = arms(Store(str(copy)), "s3ft,seed=0", "gold,seed=0")
    assert arm["scores"] == []
    assert arm["not_compared"] == [{"point": "general", "task": "arc_easy", "reason": "not measured in b"}]
    assert "rows_a" not in arm["tables"][1]
    text = markdown(diff(Store(str(copy)), "small:policy=s3ft,seed=0", "small:policy=gold,seed=0"))
    assert "| qa | not made |" in text
    assert "- arc_easy at general not compared: not measured in b" in text


def test_items_that_do_not_pair_are_refused(store: Store, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    copy = tmp_path / "copy"
    shutil.copytree(store.url, copy)
    file = next((copy / "artifacts" / "evaluate-gold0").rglob("items.parquet"))
    pq.write_table(pq.read_table(file).slice(0, 30), file)
    arm = arms(Store(str(copy)), "s3ft,seed=0", "gold,seed=0")
    assert arm["scores"] == []
    assert "different items (40 and 30" in arm["not_compared"][0]["reason"]


def test_markdown_and_json(store: Store) -> None:
    options = ["small:policy=s3ft", "small:policy=gold", "--store", store.url]
    text = CliRunner().invoke(looking.diff, options).output
    assert "| data.qa.respond.policy | s3ft | gold |" in text
    assert "| general | arc_easy | acc | 0.7500 | 0.2500 | -0.5000 |" in text
    assert "## Over seeds" in text
    for more in (["--json"], ["--format", "json"]):
        assert json.loads(CliRunner().invoke(looking.diff, [*options, *more]).output)["a"]["run"] == RUN
    assert cell("a|b\n<c>") == "a\\|b <c>"
