"""Profiles, `--set` and the keys of arms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cuvee.errors import CuveeError, RecipeError, UserError
from services.overlay import apply_profile, apply_setting, assign, lookup, merge
from services.yaml_lines import parse

BASE = """
data:
  math: {from: a, do: [dedup, {respond: {policy: s3ft}}]}
  code: {from: b, do: [{select: {amount: 1/2}}, {select: {amount: 1/4}, as: again}]}
  twice: {from: c, do: [{sample: 1/2}, {sample: 1/4}]}
train: {lr: 1, lora: {r: 8, alpha: 16}}
arms: {grid: {train.model: [a, b], k: [1, 2]}}
contrasts: [{a: {k: 1}, b: {k: 2}, metric: m}]
"""


def over(text: str) -> dict[str, Any]:
    return merge(parse(BASE), parse(text)).tree


def test_maps_merge_lists_replace_null_deletes() -> None:
    tree = over("train: {lora: {r: 64}, lr: ~}\narms: {grid: {k: [3]}}")
    assert tree["train"] == {"lora": {"r": 64, "alpha": 16}}
    assert tree["arms"]["grid"] == {"train.model": ["a", "b"], "k": [3]}


def test_a_star_is_every_entry_and_a_question_mark_only_what_is_there() -> None:
    tree = over("data: {'*': {from: builtin:x}}\narms:\n  grid:\n    k?: [9]\n    z?: [1]\nnothing?: 1")
    assert {table["from"] for table in tree["data"].values()} == {"builtin:x"}
    assert tree["arms"]["grid"] == {"train.model": ["a", "b"], "k": [9]}
    assert "nothing" not in tree


def test_a_key_with_dots_is_a_path() -> None:
    assert over("data.math.respond.policy: gold")["data"]["math"]["do"][1] == {"respond": {"policy": "gold"}}


def test_the_base_is_not_changed() -> None:
    base = parse(BASE)
    assign(base, "train.lr", 5)
    merge(base, parse("train: {lr: 7}"))
    assert base.tree == parse(BASE).tree


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("data.math.respond.policy", "gold"),
        ("data.code.again.amount", "1/8"),
        ("data.math.dedup.near", 0.9),
        ("train.lora.r", 2),
        ("train.neftune", 5),
        ("stages.sft.objective.preset", "im"),
        ("arms.grid.train.model", ["c"]),
    ],
)
def test_what_is_assigned_is_found(path: str, value: object) -> None:
    assert lookup(assign(parse(BASE), path, value).tree, path) == [value]


def test_a_table_in_its_short_form_can_be_reached_into() -> None:
    base = parse("data: {a: x, b: [x, y]}")
    assert merge(base, parse("data: {a: {do: [dedup]}}")).tree["data"]["a"] == {"from": "x", "do": ["dedup"]}
    assert assign(base, "data.b.from", "z").tree["data"]["b"] == {"from": "z"}
    assert assign(base, "data.b", "z").tree["data"]["b"] == "z"


def test_an_operation_is_replaced_or_deleted_whole() -> None:
    assert assign(parse(BASE), "data.code.again", {"amount": "all"}).tree["data"]["code"]["do"][1] == {
        "select": {"amount": "all"},
        "as": "again",
    }
    assert assign(parse(BASE), "data.math.respond", None).tree["data"]["math"]["do"] == ["dedup"]


def test_a_star_in_a_path_passes_over_what_lacks_the_rest() -> None:
    tree = assign(parse(BASE), "data.*.respond.policy", "gold").tree
    assert tree["data"]["math"]["do"][1]["respond"]["policy"] == "gold"
    assert tree["data"]["twice"] == parse(BASE).tree["data"]["twice"]


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("data.math.select.method", "has no 'select'"),
        ("data.twice.sample", "2 of 'sample'; name them with `as`"),
        ("data.*.cluster.k", "reaches nothing"),
        ("train.lr.deep", "train.lr is 1 and has no 'deep' in it"),
        ("contrasts.0.metric", "contrasts is a list"),
    ],
)
def test_paths_that_go_nowhere(path: str, what: str) -> None:
    with pytest.raises(RecipeError, match=what):
        assign(parse(BASE), path, 1)


def test_deleting_what_is_not_there() -> None:
    with pytest.raises(RecipeError, match="nothing to delete"):
        assign(parse(BASE), "train.wd", None)
    with pytest.raises(RecipeError, match="nothing to delete"):
        over("train: {wd: ~}")
    assert assign(parse(BASE), "train.wd?", None).tree == parse(BASE).tree


def test_settings_are_yaml() -> None:
    assert apply_setting(parse(BASE), "train.lr=2e-5").tree["train"]["lr"] == 2e-5
    assert "lr" not in apply_setting(parse(BASE), "train.lr=~").tree["train"]
    with pytest.raises(UserError, match="not PATH=VALUE"):
        apply_setting(parse(BASE), "train.lr")


def test_profiles_are_found_beside_and_above_and_build_on_each_other(tmp_path: Path) -> None:
    near, far = tmp_path / "papers" / "x" / "profiles", tmp_path / "profiles"
    near.mkdir(parents=True)
    far.mkdir()
    (far / "cpu.yaml").write_text("train: {lr: 2, lora: {r: 1}}")
    recipe = tmp_path / "papers" / "x" / "table.yaml"
    assert apply_profile(parse(BASE), "cpu", recipe).tree["train"]["lr"] == 2
    (near / "cpu.yaml").write_text("extends: ../../../profiles/cpu.yaml\ntrain: {lr: 3}")
    assert apply_profile(parse(BASE), "cpu", recipe).tree["train"] == {"lr": 3, "lora": {"r": 1, "alpha": 16}}
    assert apply_profile(parse(BASE), str(far / "cpu.yaml"), recipe).tree["train"]["lr"] == 2
    with pytest.raises(CuveeError, match=r"no profile 'cpo' for this recipe .*did you mean \"cpu\""):
        apply_profile(parse(BASE), "cpo", recipe)
    (far / "cpu.yaml").write_text("extends: cpu.yaml")
    with pytest.raises(RecipeError, match="extends itself"):
        apply_profile(parse(BASE), "cpu", recipe)


def test_a_profile_never_touches_contrasts(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("train: {lr: 2}\ncontrasts: []")
    with pytest.raises(RecipeError, match=r"p\.yaml:2: contrasts: a profile cannot change contrasts"):
        apply_profile(parse(BASE), str(tmp_path / "p.yaml"), None)


def test_an_error_after_an_overlay_names_the_overlay() -> None:
    document = merge(parse(BASE, "base.yaml"), parse("\ntrain: {lr: 2}", "over.yaml"))
    assert document.place(("train", "lr")) == ("over.yaml", 2)
    assert document.place(("train", "lora", "r"))[0] == "base.yaml"
