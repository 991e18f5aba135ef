from __future__ import annotations

from typing import Any

import pytest

from cuvee.errors import DataError, UserError
from cuvee.rows import answer_of, make_table, prompt_of
from selection.pool import recognise, shapes

U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def said(record: dict[str, Any], shape: str | None = None) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in recognise(record, shape)["messages"]]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"messages": [U, A]}, [("user", "q"), ("assistant", "a")]),
        (
            {"messages": [{"role": "developer", "content": "s"}, U, {"role": "model", "content": "a"}]},
            [("system", "s"), ("user", "q"), ("assistant", "a")],
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, A]},
            [("user", "q"), ("assistant", "a")],
        ),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
            [("system", "s"), ("user", "q"), ("assistant", "a")],
        ),
        ({"conversations": ["q", "a"], "source": "lima"}, [("user", "q"), ("assistant", "a")]),
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, [("user", "Add.\n\n1 2"), ("assistant", "3")]),
        ({"instruction": "Add.", "input": "", "response": "3"}, [("user", "Add."), ("assistant", "3")]),
        (
            {"instruction": "Who?", "context": "It was Ana.", "response": "Ana", "category": "qa"},
            [("user", "Who?\n\nIt was Ana."), ("assistant", "Ana")],
        ),
        ({"prompt": "q", "completion": "a"}, [("user", "q"), ("assistant", "a")]),
        ({"prompt": [U], "completion": [A]}, [("user", "q"), ("assistant", "a")]),
        ({"question": "q", "answer": "a"}, [("user", "q"), ("assistant", "a")]),
        (
            {"context": "c", "question": "q", "answers": {"text": ["a", "b", "a"], "answer_start": [0, 1, 0]}},
            [("user", "c\n\nQuestion: q"), ("assistant", "a")],
        ),
    ],
)
def test_shapes_are_recognised_by_their_columns(record: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert said(record) == expected
    make_table("t", [recognise(record)])


def test_what_no_shape_reads_stays_in_meta() -> None:
    row = recognise({"instruction": "i", "output": "o", "id": 7, "category": "x", "empty": None, "weight": 0.5})
    assert row["meta"] == {"id": 7, "category": "x"}
    assert row["weight"] == 0.5


def test_weights_of_turns() -> None:
    first = {"role": "assistant", "content": "x", "train": False}
    row = recognise({"messages": [U, first, U, {**A, "weight": 0.5}]})
    assert [m.get("weight") for m in row["messages"]] == [None, 0.0, None, 0.5]


def test_several_references() -> None:
    assert recognise({"question": "q", "answers": ["a", "b", "a"]})["references"] == ["a", "b"]
    assert recognise({"question": "q", "answer": "a"})["references"] == []
    assert recognise({"messages": [U, A], "references": ["x", "y"]})["references"] == ["x", "y"]


def test_calculator_marks_are_removed_from_answers_only_when_asked() -> None:
    record = {"question": "what is <<this>>", "answer": "48/2 = <<48/2=24>>24\n#### 24"}
    assert answer_of(recognise(record)["messages"]) == record["answer"]
    row = recognise(record, strip_calc=True)
    assert answer_of(row["messages"]) == "48/2 = 24\n#### 24"
    assert prompt_of(row["messages"])[0]["content"] == "what is <<this>>"


def test_a_programming_task_keeps_its_tests() -> None:
    record = {
        "text": "Double.",
        "code": "def f(x):\r\n    return 2 * x\r\n",
        "test_list": ["assert f(1) == 2", "assert f(2) == 4"],
        "test_setup_code": "import math",
        "task_id": 3,
    }
    row = recognise(record)
    assert row["tests"] == ["import math", "assert f(1) == 2", "assert f(2) == 4"]
    assert answer_of(row["messages"]) == "def f(x):\n    return 2 * x"
    assert "Your code should pass these tests:\n\nassert f(1) == 2\nassert f(2) == 4" in row["messages"][0]["content"]
    assert row["meta"] == {"task_id": 3}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": [U]}, "no assistant turn with text"),
        ({"messages": [U, {"role": "assistant", "content": " "}]}, "no assistant turn with text"),
        ({"messages": [A]}, "no turn before the answer"),
        ({"messages": []}, "no messages"),
        ({"messages": "x"}, "messages: is not a list"),
        ({"messages": [U, "x"]}, r"messages\[1\]: is not a turn"),
        ({"messages": [U, {"role": "wizard", "content": "x"}]}, "role 'wizard' is none of"),
        ({"messages": [U, {"role": "assistant", "content": None}]}, r"messages\[1\].content: is not text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, A]}, "parts that are not text"),
        ({"messages": [U, {**A, "weight": 2}]}, "not between 0 and 1"),
        ({"messages": [U, {**A, "weight": "much"}]}, "'much' is not a number"),
        ({"instruction": 3, "output": "x"}, "instruction: is not text"),
        ({"question": "q", "answers": []}, "neither a text nor a list of texts"),
        ({}, r"columns \(none\) fit no known shape"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(record: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        recognise(record)


def test_a_shape_may_be_named() -> None:
    both = {"prompt": "q", "completion": "a", "instruction": "other", "output": "x"}
    assert said(both) == [("user", "other"), ("assistant", "x")]
    assert said(both, "completion") == [("user", "q"), ("assistant", "a")]
    with pytest.raises(DataError, match="question: is missing"):
        recognise({"prompt": "q"}, "qa")
    with pytest.raises(UserError, match='did you mean "alpaca"'):
        recognise(both, "alpacca")
    assert "sharegpt" in shapes()
