"""From recipes to graphs: what is shared, what is not and why, and what has to be there before what."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest

from cuvee.errors import UserError
from services.arms import expand
from services.broker import Broker
from services.figures import Figures
from services.graph import ordered
from services.loss_figures import by_source
from services.plan import Plan, make_plan
from services.plan_record import difference, plan_record
from services.plan_text import show
from services.recipe import load, loads
from services.run import Request, run
from services.runtime import Runtime
from services.store import Store
from services.terminal import Terminal

ROOT = Path(__file__).parent.parent.parent
SHIPPED = sorted([*(ROOT / "recipes").glob("*.yaml"), *(ROOT / "recipes" / "effects").glob("*.yaml")])

DMT = """
version: 1
name: sweep
models: {tiny: {id: MODEL}}
data:
  math: {from: MATH, do: [{holdout: {amount: 4 rows, near: null}}]}
  chat: {from: CHAT, do: [{holdout: {amount: 4 rows, near: null}}]}
let: {k: none}
stages:
  special: {mix: {math: all}}
  general: {mix: {chat: all, math: $k}, init: special}
train: {epochs: 1, global_batch: 4, max_len: 64}
evaluate: {gold_loss: [math, chat], at: [base, special, general]}
arms: {grid: {k: [none, 1/4, all]}}
"""


@pytest.fixture
def text(tmp_path: Path, tiny_model: Path) -> str:
    for name in ("MATH", "CHAT"):
        rows = [json.dumps({"prompt": f"{name} question {i}?", "completion": f"answer {i}"}) for i in range(24)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    filled = DMT.replace("MODEL", str(tiny_model))
    return filled.replace("MATH", str(tmp_path / "MATH.jsonl")).replace("CHAT", str(tmp_path / "CHAT.jsonl"))


def planned(text: str, tmp_path: Path, *settings: str) -> Plan:
    recipe = loads(text, overrides=settings)
    return make_plan(recipe, expand(recipe), Store(str(tmp_path / "store")))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_recipes_can_be_planned(path: Path, tmp_path: Path) -> None:
    recipe = load(path)
    plan = make_plan(recipe, expand(recipe), Store(str(tmp_path)))
    assert not plan.missing
    assert plan.targets


def test_stage_one_is_trained_once_for_all_k(text: str, tmp_path: Path) -> None:
    plan = planned(text, tmp_path)
    assert len(plan.arms) == 3
    assert len({arm.stages["special"].train.key for arm in plan.arms}) == 1
    assert len({arm.stages["general"].train.key for arm in plan.arms}) == 3
    assert len({arm.points["base"].key for arm in plan.arms}) == 1
    trainings = [n for n in ordered(plan.targets) if n.step == "train"]
    assert len(trainings) == 4


def test_one_schedule_over_both_stages_shares_nothing(text: str, tmp_path: Path) -> None:
    """The learning rate of stage 1 then depends on the length of stage 2."""
    plan = planned(text, tmp_path, "stages.general.schedule=keep")
    assert len({arm.stages["special"].train.key for arm in plan.arms}) == 3
    first, second = (plan.arms[i].stages["special"].train for i in (0, 1))
    assert "math is added" in difference(first, second) or "mix.math" in difference(first, second)


def test_one_pass_of_the_frozen_model_serves_all_weights_of_a_penalty(text: str, tmp_path: Path) -> None:
    """At the target tokens it reads one stored number a token; over the vocabulary it runs the model beside."""
    penalty = "stages.general.objective={kl: {weight: $w, variant: VARIANT}}"
    settings = ["let={k: all, w: 1}", "arms={grid: {w: [0.1, 1]}}"]
    plan = planned(text, tmp_path, *settings, penalty.replace("VARIANT", "target"))
    nodes = ordered(plan.targets)
    passes = [node for node in nodes if node.step == "reference"]
    assert sorted(node.label for node in passes) == ["chat · reference", "math · reference"]
    special = plan.arms[0].stages["special"].train
    assert {node.inputs["model"].key for node in passes} == {special.key}
    assert len([node for node in nodes if node.step == "train"]) == 3
    full = planned(text, tmp_path, *settings, penalty.replace("VARIANT", "full"))
    assert not [node for node in ordered(full.targets) if node.step == "reference"]


def test_reasons_name_the_first_setting_that_differs(text: str, tmp_path: Path) -> None:
    plan = planned(text, tmp_path)
    low, high = (plan.arms[i].stages["general"].train for i in (1, 2))
    assert difference(low, high) == "general · list: mix.math 1/4 and all"


def test_execution_does_not_change_keys_and_settings_do(text: str, tmp_path: Path) -> None:
    plain = planned(text, tmp_path).arms[0].stages["special"].train.key
    assert planned(text, tmp_path, "models.tiny.micro_batch=2").arms[0].stages["special"].train.key == plain
    assert planned(text, tmp_path, "train.checkpoint_every=5").arms[0].stages["special"].train.key == plain
    assert planned(text, tmp_path, "train.lr=0.5").arms[0].stages["special"].train.key != plain
    assert planned(text, tmp_path, "seed=7").arms[0].stages["special"].train.key != plain


def test_the_place_of_the_instruction_is_part_of_what_is_rendered(text: str, tmp_path: Path) -> None:
    plain, after = (
        planned(text, tmp_path, *more).arms[0].stages["special"].train
        for more in ([], ["models.tiny.post_instruction=true"])
    )
    assert after.inputs["tokens.math"].config["chat"]["post_instruction"] is True
    assert after.inputs["tokens.math"].key != plain.inputs["tokens.math"].key
    assert after.key != plain.key


def test_changed_data_changes_keys_and_a_moved_file_does_not(text: str, tmp_path: Path) -> None:
    before = planned(text, tmp_path).arms[0].tables["math"].rows.key
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "MATH.jsonl").rename(moved / "MATH.jsonl")
    text = text.replace(str(tmp_path / "MATH.jsonl"), str(moved / "MATH.jsonl"))
    assert planned(text, tmp_path).arms[0].tables["math"].rows.key == before
    with (moved / "MATH.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"prompt": "one more", "completion": "row"}))
    assert planned(text, tmp_path).arms[0].tables["math"].rows.key != before


def test_every_list_leaves_out_what_any_table_holds_out(text: str, tmp_path: Path) -> None:
    plan = planned(text, tmp_path)
    held = {state.held[0].key for state in plan.arms[0].tables.values()}
    for stage in plan.arms[0].stages.values():
        assert held == {n.key for name, n in stage.compose.inputs.items() if name.startswith("held.")}


def test_inputs_come_first(text: str, tmp_path: Path) -> None:
    seen: set[str] = set()
    for node in ordered(planned(text, tmp_path).targets):
        assert {source.key for source in node.inputs.values()} <= seen
        seen.add(node.key)


@pytest.mark.parametrize(
    ("part", "change", "stale"),
    [
        ("both", "respond: {policy: ssr, judge: text}", True),
        ("response", "corrupt: 1/2", True),
        ("instruction", "respond: {policy: ssr, judge: text}", False),
        ("both", "sample: {amount: 12 rows}", False),
    ],
)
def test_vectors_of_replaced_answers_serve_no_selection(
    text: str, tmp_path: Path, part: str, change: str, stale: bool
) -> None:
    do = f"do: [{{embed: {{text: {part}}}}}, {{{change}}}, {{select: {{method: k_center, amount: 6 rows}}}}]}}\n  chat"
    changed = text.replace("do: [{holdout: {amount: 4 rows, near: null}}]}\n  chat", do)
    plan = planned(changed.replace("gold_loss: [math, chat]", "gold_loss: [chat]"), tmp_path)
    chosen = plan.arms[0].tables["math"].rows
    embedded = chosen.inputs["vectors"].inputs["rows"]
    assert chosen.step == "select"
    assert (embedded.key == chosen.inputs["rows"].key) is stale


def test_rounds_are_ordinary_steps_and_can_be_measured(text: str, tmp_path: Path) -> None:
    rounds = text.replace(
        "do: [{holdout: {amount: 4 rows, near: null}}]}\n  chat",
        "do: [{holdout: {amount: 4 rows, near: null}}, {iterate: {amount: 6 rows, rounds: 2, clusters: 2, "
        "quality: length, train: {epochs: 1}}}]}\n  chat",
    ).replace("at: [base, special, general]", "at: [base, 'math@1', 'math@2', general]")
    plan = planned(rounds, tmp_path)
    arm = plan.arms[0]
    assert list(arm.points) == ["base", "math@1", "math@2", "general"]
    steps = [n.step for n in ordered(plan.targets)]
    assert steps.count("iterate_propose") == 2
    assert steps.count("iterate_update") == 1
    # Round 2 chooses by what the model of round 1 got wrong.
    second = arm.tables["math"].rows
    assert second.inputs["before"].inputs["graded"].inputs["answers"].inputs["model"].key == arm.points["math@1"].key


def test_the_last_round_is_trained_only_where_it_is_measured(text: str, tmp_path: Path) -> None:
    rounds = text.replace(
        "do: [{holdout: {amount: 4 rows, near: null}}]}\n  chat",
        "do: [{holdout: {amount: 4 rows, near: null}}, {iterate: {amount: 6 rows, rounds: 2, clusters: 2, "
        "quality: length, train: {epochs: 1}, score: {cosine: {}}}}]}\n  chat",
    )
    nodes = ordered(planned(rounds, tmp_path).targets)
    labels = [n.label for n in nodes]
    assert "math · round 1 · train" in labels
    assert "math · round 2 · choose" in labels
    assert "math · round 2 · train" not in labels
    (grade,) = [n for n in nodes if n.step == "iterate_grade"]
    assert grade.inputs["grader"].step == "encoder"
    assert grade.config["embed"]["encoder"] == "builtin:all-minilm-l6-v2"


def test_epochs_that_are_measured_are_models_of_one_training(text: str, tmp_path: Path) -> None:
    text = text.replace("epochs: 1", "epochs: 2.5")
    plain = planned(text, tmp_path).arms[0]
    arm = planned(text.replace("at: [base, special, general]", "at: [base, 'special@*', general]"), tmp_path).arms[0]
    assert list(arm.points) == ["base", "special@1", "special@2", "special@3", "general"]
    train = arm.stages["special"].train
    assert [arm.points[f"special@{n}"].step for n in (1, 2, 3)] == ["epoch", "epoch", "train"]
    assert arm.points["special@1"].inputs["train"] == arm.points["special@3"] == train
    assert train.config["epochs"] == [1, 2]
    # What nobody asks for changes no key: a stage's end is its last epoch's.
    assert plain.stages["special"].train.key != train.key
    last = planned(text.replace("at: [base, special, general]", "at: [base, 'special@3', general]"), tmp_path).arms[0]
    assert last.stages["special"].train.key == plain.stages["special"].train.key
    assert last.stages["general"].train.key == plain.stages["general"].train.key


def test_wins_over_the_base_use_the_answers_that_were_graded(text: str, tmp_path: Path) -> None:
    text = text.replace("evaluate: {", "evaluate: {judged: {chat: {judge: {rating: {model: tiny}}, against: base}}, ")
    arm = planned(text, tmp_path).arms[0]
    found = {(m.point, m.task): m.node for m in arm.measures}
    assert [point for point, task in found if task == "chat.wins"] == ["special", "general"]
    wins = found["general", "chat.wins"]
    assert wins.inputs["answers"] == found["general", "chat"]
    assert wins.inputs["against"] == found["base", "chat"]
    assert wins.model == wins.inputs["judge.tiny"].key
    several = planned(text.replace("against: base", "against: base, times: 3"), tmp_path).arms[0]
    assert {m.node.config["seed"] for m in several.measures if m.task.startswith("chat")} == {0}
    assert "seed" not in wins.config


def test_rows_of_a_task_are_in_its_key_and_their_place_is_not(text: str, tmp_path: Path) -> None:
    text = text.replace("evaluate: {", "evaluate: {tasks: [gsm8k], options: {gsm8k: {data: FILE, chat: false}}, ")
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"question": "1 + 1?", "answer": "#### 2"}')
    nodes = []
    for name in ("a", "b"):
        plan = planned(text.replace("FILE", str(tmp_path / f"{name}.jsonl")), tmp_path)
        nodes.append(next(m.node for m in plan.arms[0].measures if m.task == "gsm8k"))
    assert nodes[0].key == nodes[1].key
    assert nodes[0].execution["data"] == {"gsm8k": str(tmp_path / "a.jsonl")}
    assert nodes[0].config["options"] == {"limit": None, "shots": None, "chat": False}
    (tmp_path / "b.jsonl").write_text('{"question": "1 + 2?", "answer": "#### 3"}')
    plan = planned(text.replace("FILE", str(tmp_path / "b.jsonl")), tmp_path)
    assert next(m.node for m in plan.arms[0].measures if m.task == "gsm8k").key != nodes[0].key


def test_arms_that_differ_in_the_scorer_share_the_first_round(text: str, tmp_path: Path) -> None:
    rounds = text.replace(
        "do: [{holdout: {amount: 4 rows, near: null}}]}\n  chat",
        "do: [{holdout: {amount: 4 rows, near: null}}, {iterate: {amount: 6 rows, rounds: 2, clusters: 2, "
        "quality: length, train: {epochs: 1}, score: $scorer, temperature: $t}}]}\n  chat",
    )
    rounds = rounds.replace("let: {", "let: {scorer: {perplexity: {model: current}}, t: 1.0, ")
    arms = "arms: {add: {first: {}, second: {scorer: {cosine: {}}, t: 0.5}}}"
    rounds = "\n".join(arms if line.startswith("arms:") else line for line in rounds.splitlines())
    first, second = planned(rounds, tmp_path).arms
    nodes = [{n.label: n.key for n in ordered(arm.targets)} for arm in (first, second)]
    same = {label for label, key in nodes[0].items() if nodes[1].get(label) == key}
    assert {f"math · round 1 · {word}" for word in ("choose", "train", "answer")} <= same
    assert not {f"math · round {n}" for n in ("1 · grade", "1 · weights", "2 · choose")} & same


def test_figures_say_how_sure_they_are(text: str, tmp_path: Path) -> None:
    plan = planned(text, tmp_path)
    store = Store(str(tmp_path / "store"))
    known = Figures(store)
    assert known.rows(plan.arms[0].tables["math"].rows).certainty.startswith("known after")
    found = plan_record(plan, store)
    assert found["done"] == 0
    assert found["sharing"]["steps"] < found["sharing"]["steps without sharing"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["let.k=50 rows", "arms=~"], "table math: 50 rows asked, 20 there"),
        (["let.k=1/64", "arms=~"], "table math: 1/64 of 20 rows is less than one row"),
        (["train.max_len=5000", "arms=~"], "max_len 5000 is above the model's"),
        (["arms=~"], ""),
    ],
)
def test_a_plan_tells_what_a_run_would_refuse(text: str, tmp_path: Path, settings: list[str], said: str) -> None:
    plan = planned(text, tmp_path, *settings)
    store = Store(str(tmp_path / "store"))
    assert plan_record(plan, store)["refused"] == []  # nothing is known yet
    with Runtime(store, log=tmp_path / "log") as runtime:
        stages = plan.arms[0].stages.values()
        Broker(store, runtime).run([n for s in stages for name, n in s.train.inputs.items() if "tokens" in name])
    found = plan_record(plan, store)["refused"]
    assert [said in line for line in found] == ([True] * len(found) if said else [])
    assert bool(found) == bool(said)
    if said:  # and a run of this one arm does so before its first step
        (tmp_path / "recipe.yaml").write_text(text)
        request = Request(tmp_path / "recipe.yaml", overrides=settings, store=str(tmp_path / "store"))
        terminal = Terminal(io.StringIO(), io.StringIO())
        with pytest.raises(UserError, match=re.escape(said)):
            run(request, terminal, tmp_path / "log")
        assert terminal.err.file.getvalue() == ""  # type: ignore[attr-defined]


def test_made_lists_tell_what_carries_loss(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows of 24 with 4 held out; the prompts are longer than the answers, so most of IM's loss is on them."""
    settings = ["let={k: all, loss: im}", "stages.general.objective=$loss", "arms={grid: {loss: [sft, im]}}"]
    plan = planned(text, tmp_path, *settings)
    store = Store(str(tmp_path / "store"))
    with Runtime(store, log=tmp_path / "log") as runtime:
        Broker(store, runtime).run([stage.compose for arm in plan.arms for stage in arm.stages.values()])
    found = plan_record(plan, store)
    entries = {(entry["stage"], entry["table"], entry["objective"]): entry for entry in found["objective"]}
    assert set(entries) == {
        ("special", "math", "sft"),  # of stage `general` too
        *(("general", table, loss) for table, loss in (("chat", "sft"), ("chat", "im"), ("math", "im"))),
    }
    (sft,) = by_source(entries["general", "chat", "sft"]["shares"])
    (im,) = by_source(entries["general", "chat", "im"]["shares"])
    assert sft["roles"] == {"assistant": 1.0}
    assert im["roles"]["user"] + im["roles"]["assistant"] == pytest.approx(1)
    assert im["trained"] * im["roles"]["assistant"] == pytest.approx(sft["trained"])
    assert "40 rows" in next(e["mixture"] for e in found["objective"] if e["stage"] == "general" and "mixture" in e)
    shares = {line["table"]: line["token_share"] for line in found["stages"] if line["stage"] == "general"}
    assert sum(shares.values()) == pytest.approx(1)
    show(found)
    said = capsys.readouterr().out
    assert "assistant 100.0%" in said
    assert "The paper's own lines, not ours" in said


def test_a_missing_model_is_named_and_the_rest_is_planned(text: str, tmp_path: Path, tiny_model: Path) -> None:
    plan = planned(text.replace(str(tiny_model), "hub:nobody/nothing"), tmp_path)
    assert any("nobody/nothing" in str(error) for error in plan.missing)
    assert plan.arms[0].stages
