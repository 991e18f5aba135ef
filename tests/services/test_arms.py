"""Arms, seeds and contrasts of a recipe."""

from __future__ import annotations

import pytest

from cuvee.errors import RecipeError
from services.arms import Arm, expand, match, pairs
from services.recipe import loads

BASE = """
seed: 7
models: {small: {id: smollm2-135m-instruct}, other: {id: "hub:a/b"}}
let: {k: none, loss: sft}
data:
  math: {from: builtin:arithmetic, do: [{holdout: 9 rows}, {select: {method: kmq, amount: 1/2}}]}
  chat: {from: builtin:squad, do: [{select: {method: kmq, amount: 1/4}}]}
stages:
  special: {mix: {math: all}}
  general: {mix: {chat: all, math: $k}, objective: $loss}
train: {model: small}
evaluate: {at: [special, final]}
"""


def arms(text: str) -> list[Arm]:
    return expand(loads(BASE + text, file="r.yaml"))


def names(text: str) -> list[str]:
    return [arm.name for arm in arms(text)]


def test_a_recipe_without_arms_is_one() -> None:
    (arm,) = arms("")
    assert (arm.name, arm.settings, arm.seed, arm.varies) == ("main", {}, 7, ())
    assert set(arm.seeds.values()) == {7}


def test_a_grid_is_a_product_in_the_order_written() -> None:
    assert names("arms: {grid: {k: [none, 1/4], loss: [sft, im]}}") == [
        "k=none,loss=sft",
        "k=none,loss=im",
        "k=1/4,loss=sft",
        "k=1/4,loss=im",
    ]


def test_values_that_are_no_words_have_names() -> None:
    found = arms("arms: {grid: {loss: {plain: sft, soft: {preset: wit, prompt_weight: 0.1}}}}")
    assert [arm.name for arm in found] == ["loss=plain", "loss=soft"]
    assert found[1].document.objective_for("general").prompt_weight == 0.1


def test_keys_are_shortened_in_names_where_that_is_enough() -> None:
    grid = "arms: {grid: {train.model: [small, other], train.lr: [1.0, 2.0], stages.general.train.lr: [3.0]}}"
    assert names(grid)[0] == "model=small,train.lr=1.0,stages.general.train.lr=3.0"


def test_consequences_see_each_other_and_come_after_the_grid() -> None:
    found = arms(
        "arms:\n"
        "  grid: {k: [none, 1/4]}\n"
        "  when: [{k: 1/4, then: {loss: im}}, {loss: im, then: {train.neftune: 5}},\n"
        "         {k: [none, all], then: {train.epochs: 9}}]"
    )
    none, quarter = (arm.document for arm in found)
    assert (none.objective_for("general").preset, quarter.objective_for("general").preset) == ("sft", "im")
    assert (none.objective_for("general").neftune, quarter.objective_for("general").neftune) == (0, 5)
    assert (none.train_for("general").epochs, quarter.train_for("general").epochs) == (9, 3)


def test_added_arms_stand_beside_the_grid_and_may_train_nothing() -> None:
    found = arms("arms: {grid: {k: [1/4]}, add: {base: {stages: none}, other: {stages: none, train.model: other}}}")
    assert [arm.name for arm in found] == ["k=1/4", "base", "other"]
    assert found[1].settings == {"arm": "base", "stages": "none"}
    assert [point.label for point in found[1].document.points()] == ["base"]
    assert found[2].document.model_for() == "other"


def test_ablation_changes_one_thing_at_a_time() -> None:
    found = {
        arm.name: arm.document
        for arm in arms("arms: {ablate: {selection: {data.*.select.method: random}, order: {strategy: multi_task}}}")
    }
    assert list(found) == ["full", "selection", "order"]
    assert [t.do[-1].config.method for t in found["selection"].data.values()] == ["random", "random"]
    assert [t.do[-1].config.method for t in found["order"].data.values()] == ["kmq", "kmq"]
    assert list(found["order"].stages) == ["general"]


def test_seeds_move_only_what_varies() -> None:
    found = arms("arms: {grid: {k: [none, 1/4]}}\nrepeat: {seeds: [1, 2], vary: [order]}")
    assert [arm.name for arm in found] == ["k=none,seed=1", "k=none,seed=2", "k=1/4,seed=1", "k=1/4,seed=2"]
    assert found[3].variant == "k=1/4"
    assert found[3].seeds == {"sample": 7, "order": 2, "init": 7, "generation": 7, "judge": 7}
    assert found[3].varies == ("order",)


def test_the_same_settings_give_the_same_document_whatever_the_sweep() -> None:
    alone, swept = arms("")[0], arms("arms: {grid: {k: [1/4, none]}}")[1]
    assert {**alone.document.document, "name": ""} == {**swept.document.document, "name": ""}
    assert alone.document.hash == swept.document.hash


def test_no_replay_equals_mixed_sequential() -> None:
    none, sequential = arms("arms: {add: {none: {k: none}, sequential: {k: 1/4, strategy: mixed_sequential}}}")
    assert none.document.stages == sequential.document.stages


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("arms: {parallel: 0}", "parallel"),
        ("arms: {grid: {kk: [1]}}", '"kk" is no variable and no key of a recipe .did you mean "k"'),
        ("arms: {grid: {k: []}}", "k has no values"),
        ("arms: {grid: {k: [none, none]}}", "two arms are named k=none"),
        ("arms: {grid: {k: [1/4, 5]}}", r"stages\.general\.mix\.math: 5 is not an amount.*in the arm k=5"),
        ("arms: {grid: {k: [none]}, ablate: {x: {k: all}}}", "stands alone"),
        ("arms: {add: {x: {data.chat.respond.policy: gold}}}", "has no 'respond'"),
        ("arms: {add: {x: {train.lrr: 1.0}}}", 'unknown key "lrr".*in the arm x'),
        ("arms: {grid: {k: [none]}, when: [{kk: 1, then: {k: all}}]}", '"kk", which is no variable'),
        ("arms: {grid: {k: [none]}, when: [{k: none}]}", "needs a condition and `then`"),
        ("repeat: {seeds: [1, 1]}", "different numbers"),
        ("repeat: {seeds: [1], vary: [smaple]}", "vary"),
        ("contrasts: [{a: {k: 1}, b: {k: 2}, metric: m, expect: within}]", "`margin` belongs to"),
        ("contrasts: [{a: {k: 1}, b: {k: 1}, metric: m}]", "not the same"),
    ],
)
def test_faults(text: str, what: str) -> None:
    with pytest.raises(RecipeError, match=what):
        arms(text)


def test_a_table_that_no_arm_uses_is_refused() -> None:
    text = BASE.replace("math: $k}", "math: all}").replace("  chat: {from", "  more: builtin:squad\n  chat: {from")
    with pytest.raises(RecipeError, match=r"data\.more: more is used nowhere"):
        expand(loads(text))


GRID = "arms: {grid: {k: [none, 1/4, all], loss: [sft, im]}, add: {base: {stages: none}}}\nrepeat: {seeds: [1, 2]}\n"


def test_sides_match_by_the_keys_they_name() -> None:
    found = arms(GRID)
    assert [arm.name for arm in match({"k": "1/4", "loss": "im"}, found)] == [
        "k=1/4,loss=im,seed=1",
        "k=1/4,loss=im,seed=2",
    ]
    assert len(match({"loss": "im"}, found)) == 6
    assert [arm.variant for arm in match({"arm": "base"}, found)] == ["base", "base"]


def test_partners_agree_in_all_else() -> None:
    recipe = loads(
        BASE + GRID + "contrasts: [{a: {k: 1/4}, b: {k: none}, metric: m}, {a: {k: all}, b: {arm: base}, metric: m}]"
    )
    found = expand(recipe)
    assert [(a.name, b.name) for a, b in pairs(recipe.contrasts[0], found)] == [
        (f"k=1/4,loss={loss},seed={seed}", f"k=none,loss={loss},seed={seed}")
        for loss in ("sft", "im")
        for seed in (1, 2)
    ]
    assert {b.name for _, b in pairs(recipe.contrasts[1], found)} == {"base,seed=1", "base,seed=2"}


@pytest.mark.parametrize(
    ("side", "what"),
    [
        ("{a: {k: 1/8}, b: {k: none}, metric: m}", r'a: \{"k":"1/8"\} matches no arm \(arms: .*k=1/4,loss=im'),
        ("{a: {k: all}, b: {loss: im}, metric: m}", "has 0 partners|has 3 partners|partners"),
    ],
)
def test_sides_without_arms_or_partners(side: str, what: str) -> None:
    with pytest.raises(RecipeError, match=what):
        arms(GRID + f"contrasts: [{side}]")
