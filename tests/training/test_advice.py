"""Lengths and lines worked out by hand, and one row for each warning."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest

from cuvee import rows
from cuvee.chat import Chat
from cuvee.tokens import TOKENS_SCHEMA, tokenise
from tests.tiny import tiny_tokenizer
from training.advice import advise, warnings
from training.objective import Objective


def tokens(*entries: tuple[str, list[int], int]) -> pa.Table:
    """(source, roles, the id of every token)."""
    return pa.Table.from_pylist(
        [
            {"id": f"{i:032x}", "target": 0, "source": source, "ids": [token] * len(roles), "roles": roles}
            | {"turns": [-1 if r == 0 else 0 for r in roles]}
            for i, (source, roles, token) in enumerate(entries)
        ],
        schema=TOKENS_SCHEMA,
    )


def test_lengths_ratio_and_the_papers_lines() -> None:
    table = tokens(("a", [0, 2, 2, 2, 4, 0, 3, 3], 1), ("a", [0, 1, 2, 0, 0, 3, 3], 1), ("b", [2, 0, 3, 3, 3, 3], 1))
    a, b, mixture = advise(table)
    assert (a.source, a.rows, a.instruction, a.output, a.ratio) == ("a", 2, 3.0, 2.0, 1.5)
    assert (b.rows, b.ratio, mixture.rows, mixture.ratio) == (1, 0.25, 3, 7 / 8)
    assert a.line_ratio == pytest.approx(18.85 * math.log(1.5) + 25.83)
    assert a.line_rows == pytest.approx(-39.37 * math.log(2) + 431.74)
    assert (a.nearest.name, b.nearest.name) == ("Less BBH ICL", "Alpagasus Dolly 9k")
    assert "paper's own lines, not ours" in str(a)


def test_the_lines_agree_with_the_numbers_that_the_method_file_reads_off_the_plot() -> None:
    """1,000 rows: about 160 %; 35,000 rows: about 20 %."""
    for count, gain in ((1_000, 160), (35_000, 20)):
        assert -39.37 * math.log(count) + 431.74 == pytest.approx(gain, abs=1)


def test_rows_without_prompt_or_without_answer_have_no_line() -> None:
    no_answer, no_prompt, _ = advise(tokens(("a", [0, 2, 2], 1), ("b", [0, 3, 3], 1)))
    assert (no_answer.ratio, no_answer.line_ratio) == (math.inf, None)
    assert (no_prompt.ratio, no_prompt.line_ratio) == (0.0, None)
    assert "none by ratio" in str(no_prompt)
    assert advise(tokens()) == []


def found(table: pa.Table, objective: Any = "sft", max_len: int | None = None) -> list[str]:
    return warnings(table, Objective.parse(objective), stop_ids=[7], max_len=max_len)


def test_nothing_to_warn_of() -> None:
    assert found(tokens(("a", [0, 2, 3], 7))) == []


def test_rows_that_train_nothing() -> None:
    assert "1 of 2 rows train nothing" in found(tokens(("a", [0, 2], 7), ("a", [0, 2, 3], 7)))[0]


def test_cut_answers() -> None:
    lines = found(tokens(("a", [0, 2, 3, 3, 3], 7), ("a", [0, 2, 3], 7)), max_len=3)
    assert lines == ["1 of 2 rows lose part of an answer at 3 tokens, so the model does not see it end"]
    cut_off = tokens(("a", [0, 2, 2, 3, 3], 7))
    assert any("train nothing" in line for line in found(cut_off, max_len=3))
    assert not any("train nothing" in line for line in found(cut_off, "im", max_len=3))


def test_end_tokens_outside_the_loss() -> None:
    assert "end token is not" in found(tokens(("a", [0, 2, 3], 1)))[0]


def test_a_turn_that_is_not_trained_needs_no_end_token() -> None:
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "no", "weight": 0.0},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "yes"},
    ]
    chat = Chat(tiny_tokenizer())
    table, _ = tokenise(rows.make_table("s", [{"messages": messages}]), chat)
    assert warnings(table, Objective.parse("sft"), stop_ids=chat.stop_ids) == []


@pytest.mark.parametrize(("weight", "word"), [(1.0, "nothing is learnt"), (0.1, "no penalty"), (2.0, "loss rises")])
def test_a_penalty_that_is_none_is_named(weight: float, word: str) -> None:
    objective = {"kl": {"weight": weight, "variant": "target"}}
    assert word in found(tokens(("a", [0, 2, 3], 7)), objective)[0]
    assert found(tokens(("a", [0, 2, 3], 7)), {"kl": {"weight": weight}}) == []
