"""Every table of the four papers is one recipe, at the paper's scale and on two cores."""

from __future__ import annotations

from pathlib import Path

import pytest

from cuvee.chat import Chat
from services.arms import Arm, expand, match
from services.recipe import load
from tests.tiny import tiny_tokenizer

PAPERS = Path(__file__).parents[2] / "recipes" / "papers"
ARMS = {
    "diversify_and_conquer/table2": (10, 10),
    "diversify_and_conquer/table3": (6, 3),
    "diversify_and_conquer/table5": (8, 4),
    "diversify_and_conquer/table6": (9, 9),
    "diversify_and_conquer/table7": (4, 3),
    "dmt/equal_counts": (6, 4),
    "dmt/table1": (21, 7),
    "dmt/table2": (45, 9),
    "dmt/table3": (60, 12),
    "dmt/table4": (15, 9),
    "dmt/table5": (12, 6),
    "dmt/table6": (10, 6),
    "instruction_modelling/overfitting": (12, 4),
    "instruction_modelling/ratio": (6, 6),
    "instruction_modelling/size": (12, 6),
    "instruction_modelling/table1": (23, 8),
    "instruction_modelling/table2": (14, 4),
    "instruction_modelling/table3": (10, 5),
    "instruction_modelling/table4": (14, 4),
    "s3ft/table2": (24, 8),
    "s3ft/table3": (12, 4),
    "s3ft/table4": (24, 8),
}


def arms_of(name: str, *profiles: str, seeds: str = "[0]") -> dict[str, Arm]:
    """One seed, so that the test is about the tables."""
    recipe = load(PAPERS / f"{name}.yaml", profiles, [] if name == "s3ft/table3" else [f"repeat.seeds={seeds}"])
    return {arm.variant: arm for arm in expand(recipe)}


def test_no_table_is_missing() -> None:
    files = [f for f in PAPERS.glob("*/*.yaml") if f.parent.name != "profiles"]
    assert {f"{f.parent.name}/{f.stem}" for f in files} == set(ARMS)


@pytest.mark.parametrize("name", ARMS)
def test_a_table_expands_at_both_scales(name: str) -> None:
    assert (len(arms_of(name)), len(arms_of(name, "cpu"))) == ARMS[name]


@pytest.mark.parametrize("name", ARMS)
def test_published_figures_belong_to_arms(name: str) -> None:
    recipe = load(PAPERS / f"{name}.yaml")
    arms = list(arms_of(name).values())
    assert recipe.published is not None
    for row in recipe.published.rows:
        assert match(row.arm, arms), row.arm


@pytest.mark.parametrize("name", ARMS)
def test_on_two_cores_everything_is_at_hand(name: str) -> None:
    for arm in arms_of(name, "cpu").values():
        document = arm.document
        assert {spec.id for spec in document.models.values()} == {"builtin:smollm2-135m-instruct"}
        leaves = [o for table in document.data.values() for o in table.origins]
        paths = [o["path"] if isinstance(o, dict) else o for o in leaves]
        assert all(path.startswith("builtin:") or path in document.data for path in paths)
        assert all(document.train_for(stage).max_len <= 256 for stage in document.stages)


def test_strategies_of_dmt() -> None:
    arms = arms_of("dmt/table1")
    shapes = {
        what: {name: list(stage.mix) for name, stage in arms[f"what={what},model=l7"].document.stages.items()}
        for what in ("general", "code", "multi_task", "sequential", "mixed_sequential", "dmt")
    }
    assert shapes == {
        "general": {"chat": ["chat"]},
        "code": {"code": ["code"]},  # as the first stage of the sequence, so that one training serves both
        "multi_task": {"general": ["code", "math", "chat"]},
        "sequential": {"code": ["code"], "math": ["math"], "chat": ["chat"]},
        "mixed_sequential": {"special": ["code", "math"], "general": ["chat"]},
        "dmt": {"special": ["code", "math"], "general": ["chat", "code", "math"]},
    }


def test_mixed_sequential_of_two_tables_is_the_same_run() -> None:
    one = arms_of("dmt/table1")["what=mixed_sequential,model=l13"].document
    five = arms_of("dmt/table5")["k=none,model=l13"].document
    assert one.stages == five.stages
    assert one.train_for("general") == five.train_for("general")


def test_ratios_of_dmt() -> None:
    arms = arms_of("dmt/table4")
    few = arms["vary=special_of_few,k=1/16"].document.stages["only"].mix
    assert {table: str(amount) for table, amount in few.items()} == {"math": "1/16", "code": "1/16", "chat": "1/64"}


def test_other_models_are_taught_what_one_model_chose() -> None:
    arms = arms_of("diversify_and_conquer/table3")
    tables = [arms[f"pick=iter,model={model}"].document.data for model in ("mistral", "llama3")]
    assert tables[0] == tables[1]


def test_whole_tuning_has_no_adapter() -> None:
    arms = arms_of("s3ft/table4")
    assert arms["task=mbpp,policy=s3ft,tuned=whole"].document.train_for("sft").lora is None
    lora = arms["task=mbpp,policy=s3ft,tuned=low_rank"].document.train_for("sft").lora
    assert lora is not None
    assert (lora.r, lora.alpha, lora.dropout) == (8, 16, 0.1)


@pytest.mark.parametrize("layout", ["vicuna", "tulu"])
def test_layouts_for_base_models_can_be_proven(layout: str) -> None:
    """The texts and the end tokens are found, and a prompt is a beginning of the conversation."""
    tokenizer = tiny_tokenizer((PAPERS / "templates" / f"{layout}.jinja").read_text())
    chat = Chat(tokenizer)
    turns = [
        {"role": "user", "content": "How many apples?"},
        {"role": "assistant", "content": "Three apples."},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "Four."},
    ]
    rendered = chat.render(turns)
    answers = [int(i) for i, role in zip(rendered.ids, rendered.roles, strict=True) if role == 3]
    assert [part.strip() for part in tokenizer.decode(answers).split(tokenizer.eos_token)] == [
        "Three apples.",
        "Four.",
        "",
    ]
    prompt = chat.prompt_ids(turns[:3])
    assert list(rendered.ids[: len(prompt)]) == list(prompt)
