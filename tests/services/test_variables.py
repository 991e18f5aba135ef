"""Variables of a recipe."""

from __future__ import annotations

import pytest

from cuvee.errors import RecipeError
from services.variables import resolve
from services.yaml_lines import parse


def test_a_whole_text_keeps_its_kind_and_a_part_is_written_out() -> None:
    document = parse(
        "let: {task: gsm8k, r: 8, scorer: {judge: {model: m}}, where: $task/train}\n"
        'a: {from: $where, r: $r, score: $scorer, name: "s3ft/${task}_x"}\n'
        "mix: {$task: all}\n"
        "price: [$$task, costs $5, ^x$]\n"
        "arms: {grid: {r: [$task]}}\n"
    )
    tree = resolve(document).tree
    assert tree["a"] == {"from": "gsm8k/train", "r": 8, "score": {"judge": {"model": "m"}}, "name": "s3ft/gsm8k_x"}
    assert tree["mix"] == {"gsm8k": "all"}
    assert tree["price"] == ["$task", "costs $5", "^x$"]
    assert tree["arms"] == {"grid": {"r": ["$task"]}}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("let: {task: a}\nb: $tsk", r'2: b: \$tsk is not in `let` \(did you mean "task"\?'),
        ("let: {a: $b, b: $a}", "defined by itself"),
        ("let: {a: {x: 1}}\nb: $a/y", "cannot stand inside a text"),
        ("let: [a]", "not a map"),
    ],
)
def test_faults(text: str, what: str) -> None:
    with pytest.raises(RecipeError, match=what):
        resolve(parse(text, "f"))
