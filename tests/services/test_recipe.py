"""The recipe as a whole: what it accepts, what it refuses and where, what follows from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cuvee.errors import RecipeError
from services.recipe import Recipe, load, loads

BASE = """\
version: 1
models:
  small: {id: smollm2-135m-instruct}
data:
  math:
    from: builtin:arithmetic
    do:
      - holdout: 20 rows
      - sample: 1/2
  chat: builtin:squad
stages:
  special:
    mix: {math: all}
  general:
    mix: {chat: all, math: 1/4}
    train: {lr: 1e-5}
train: {model: small, epochs: 2, lr: 1e-4, lora: {r: 8, alpha: 32}}
evaluate:
  gold_loss: math
  at: [base, special, final]
"""


def changed(old: str, new: str) -> str:
    assert old in BASE
    return BASE.replace(old, new)


def test_stages_follow_each_other_and_inherit_train() -> None:
    recipe = loads(BASE)
    assert [stage.init for stage in recipe.stages.values()] == ["base", "special"]
    assert (recipe.train_for("special").lr, recipe.train_for("general").lr) == (1e-4, 1e-5)
    assert recipe.train_for("general").epochs == 2
    assert recipe.objective_for("general").preset == "sft"
    assert [point.label for point in recipe.points()] == ["base", "special", "general"]


def test_a_stage_merges_maps_of_train() -> None:
    recipe = loads(changed("train: {lr: 1e-5}", "train: {lora: {r: 2}}"))
    lora = recipe.train_for("general").lora
    assert lora is not None
    assert (lora.r, lora.alpha) == (2, 32)


def test_what_is_left_out() -> None:
    recipe = loads("data: {a: builtin:squad}\nstages: {s: {mix: {a: all}}}")
    assert recipe.version == 1
    assert recipe.seed == 0
    assert recipe.model_for("s") == "smollm2-135m-instruct"
    assert recipe.data["a"].from_ == "builtin:squad"


def test_the_name_is_the_files(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(BASE)
    assert load(tmp_path / "mine.yaml").name == "mine"
    assert load(tmp_path / "mine.yaml", overrides=["name=other"]).name == "other"


def test_overrides_come_after_profiles(tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "cpu.yaml").write_text("train: {lr: 3e-4, epochs: 1}")
    (tmp_path / "r.yaml").write_text(BASE)
    settings = load(tmp_path / "r.yaml", ["cpu"], ["train.epochs=5"]).train
    assert (settings.lr, settings.epochs) == (3e-4, 5)


@pytest.mark.parametrize(
    ("old", "new", "line", "what"),
    [
        ("version: 1", "version: 2", 1, "version"),
        ("stages:\n", "stagse: {}\nstages:\n", 11, 'unknown key "stagse" .did you mean "stages"'),
        ("- sample: 1/2", "- smaple: 1/2", 9, 'unknown operation "smaple" .did you mean "sample"'),
        ("- sample: 1/2", "- sample: {amuont: 1/2}", 9, 'unknown key "amuont" .did you mean "amount"'),
        ("- sample: 1/2", "- sample: 0.5", 9, "Input should be"),
        ("- sample: 1/2", "- {sample: 1/2, dedup: exact}", 9, "2 operations in one entry"),
        ("from: builtin:arithmetic", "from: {path: x, spilt: train}", 6, 'unknown key "spilt" .did you mean "split"'),
        ("from: builtin:arithmetic", "form: x", 6, 'unknown key "form"'),
        ("{chat: all, math: 1/4}", "{chat: all, math: 4}", 15, "4 is not an amount"),
        ("{chat: all, math: 1/4}", "{chat: all, maths: 1/4}", 15, 'unknown table "maths" .did you mean "math"'),
        ("{chat: all, math: 1/4}", "{chat: all, math@2: 1/4}", 15, "math has 0 rounds, and no math@2"),
        ("mix: {math: all}", "mix: {math: none}", 11, "stage special has nothing to train on"),
        ("train: {lr: 1e-5}", "train: {lrr: 1e-5}", 16, 'unknown key "lrr"'),
        ("train: {lr: 1e-5}", "train: {lr: -1}", 16, "greater than 0"),
        ("train: {lr: 1e-5}", "train: {model: large}", 16, 'unknown model "large"'),
        ("train: {lr: 1e-5}", "init: specail", 16, 'unknown earlier stage "specail" .did you mean "special"'),
        ("train: {lr: 1e-5}", "init: general", 16, 'unknown earlier stage "general"'),
        ("train: {lr: 1e-5}", "objective: imm", 16, "unknown preset 'imm'"),
        ("train: {model: small", "train: {model: smal", 17, 'unknown model "smal" .did you mean "small"'),
        ("epochs: 2", "epochs: many", 17, "number"),
        ("gold_loss: math", "gold_loss: maths", 19, 'unknown table "maths"'),
        ("gold_loss: math", "gold_loss: chat", 19, "chat has no held-out rows .add"),
        ("gold_loss: math", "accuracy: {math: numerc}", 19, "numerc"),
        ("gold_loss: math", "accuracy: {math: {llm: judge}}", 19, 'unknown model "judge"'),
        ("gold_loss: math", "judged: {mt_bench: {judge: {llm: judge}}}", 19, 'unknown model "judge"'),
        ("- sample: 1/2", "- respond: {model: tiny, judge: text}", 9, 'unknown model "tiny"'),
        ("- sample: 1/2", "- respond: {judge: {llm: tiny}}", 9, 'unknown model "tiny"'),
        ("- sample: 1/2", "- respond: {judge: txt}", 9, "txt"),
        ("- sample: 1/2", "- score: {q: {deita: {model: tiny}}}", 9, 'unknown model "tiny"'),
        ("at: [base, special, final]", "at: [spcial]", 20, 'unknown stage "spcial" .did you mean "special"'),
        ("at: [base, special, final]", "at: [special@one]", 20, "number of an epoch"),
        ("at: [base, special, final]", "at: [final@3]", 20, "general has 2 epochs, and no final@3"),
        ("  general:", "  special:", 14, '"special" is written twice, first on line 12'),
        ("  general:", "  final:", 14, '"final" has a meaning of its own'),
        ("chat: builtin:squad", "chat: [math, chat]", 10, "chat is made from itself"),
        ("{id: smollm2-135m-instruct}", "{id: a, api: b/c}", 3, "either an `id` or an `api`"),
    ],
)  # fmt: skip
def test_faults_name_the_line(old: str, new: str, line: int, what: str) -> None:
    with pytest.raises(RecipeError, match=what) as caught:
        loads(changed(old, new), file="r.yaml")
    assert (caught.value.path, caught.value.line) == ("r.yaml", line)


def test_which_model_of_several() -> None:
    text = changed("  small:", "  large: {id: x}\n  small:").replace("model: small, ", "")
    with pytest.raises(RecipeError, match="which of the models is trained"):
        loads(text)


def test_a_profiles_fault_names_the_profile(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(BASE)
    (tmp_path / "p.yaml").write_text("\n\ntrain:\n  epohcs: 1\n")
    with pytest.raises(RecipeError, match=r"p\.yaml:4: train\.epohcs: unknown key"):
        load(tmp_path / "r.yaml", [str(tmp_path / "p.yaml")])
    with pytest.raises(RecipeError, match=r"--set train\.epohcs=1.*unknown key"):
        load(tmp_path / "r.yaml", overrides=["train.epohcs=1"])


STRATEGY = """
data: {code: builtin:mbpp, math: builtin:arithmetic, chat: builtin:squad}
strategy: {kind: dmt, special: [code, math], general: [chat], k: 1/256}
evaluate: {at: [base, special, final]}
"""


def mixes(recipe: Recipe) -> dict[str, dict[str, str]]:
    return {name: {t: str(a) for t, a in stage.mix.items()} for name, stage in recipe.stages.items()}


def test_a_strategy_is_spelt_out_as_stages() -> None:
    assert mixes(loads(STRATEGY)) == {
        "special": {"code": "all", "math": "all"},
        "general": {"chat": "all", "code": "1/256", "math": "1/256"},
    }
    none = loads(STRATEGY.replace("1/256", "none"))
    sequential = loads(STRATEGY.replace("kind: dmt", "kind: mixed_sequential"))
    assert none.stages == sequential.stages
    pooled = loads(STRATEGY.replace("kind: dmt", "kind: multi_task"))
    assert list(pooled.stages) == ["general"]
    assert [point.label for point in pooled.points()] == ["base", "general"]


def test_a_stage_that_followed_a_removed_one_follows_the_one_before() -> None:
    recipe = loads(
        "data: {a: builtin:squad, b: builtin:mbpp}\nstrategy: mixed_sequential\nstages:\n"
        "  one: {mix: {a: all}}\n  two: {mix: {a: 1/2}, init: one}\n  three: {mix: {b: all}, init: two}\n"
    )
    assert {name: stage.init for name, stage in recipe.stages.items()} == {"one": "base", "three": "one"}


def test_a_strategy_of_tables_and_stages_exclude_each_other() -> None:
    with pytest.raises(RecipeError, match="keep one of the two"):
        loads(STRATEGY + "stages: {s: {mix: {chat: all}}}")
    with pytest.raises(RecipeError, match="k is 2x, and must be a fraction between 0 and 1"):
        loads(STRATEGY.replace("1/256", "2x"))


def test_the_hash_follows_what_is_said() -> None:
    assert loads(BASE).hash == loads("# a comment\n" + BASE.replace("lr: 1e-4", "lr: 0.0001")).hash
    assert loads(BASE).hash != loads(changed("1e-4", "2e-4")).hash
    assert loads(BASE).hash == loads(BASE + "store: elsewhere\nexecution: {workers: 2}\n").hash
    one, two = "stages: {a: {mix: {chat: all}}, b: {mix: {chat: all}, init: base}}", "data: {chat: builtin:squad}\n"
    swapped = "stages: {b: {mix: {chat: all}, init: base}, a: {mix: {chat: all}}}"
    assert loads(two + one).hash != loads(two + swapped).hash


def test_by_source_may_name_a_table() -> None:
    text = BASE.replace("    train: {lr: 1e-5}", "    objective: {preset: im, by_source: {math: sft, other: all}}")
    assert set(loads(text).objective_for("general").by_source) == {"arithmetic", "other"}
