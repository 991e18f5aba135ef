"""Rows to tokens: order, weights, rejects, and counts of differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cuvee import rows
from cuvee.chat import ROLE_NAMES, Chat
from cuvee.errors import TemplateError
from cuvee.tokens import TOKENS_SCHEMA, notes, tokenise
from tests.cuvee.table import source
from tests.tiny import tiny_tokenizer


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def test_rows_become_tokens_in_the_order_of_stored_tables() -> None:
    chat = Chat(tiny_tokenizer())
    table = rows.make_table("s", ({"messages": [user(f"q{i}"), answer(f"a{i}")]} for i in range(20)))
    backwards = table.take(pa.array(range(19, -1, -1)))
    tokens, rejected = tokenise(backwards, chat)
    assert rejected == []
    assert tokens.schema.equals(TOKENS_SCHEMA)
    assert tokens["id"].to_pylist() == table["id"].to_pylist()
    assert tokens.equals(tokenise(table, chat)[0])
    first = tokens.to_pylist()[0]
    rendered = chat.render(table["messages"][0].as_py())
    assert first["ids"] == rendered.ids.tolist()
    assert first["roles"] == rendered.roles.tolist()
    assert first["turns"] == rendered.turns.tolist()
    assert (first["scale"], first["weight"], first["smoothing"]) == (None, None, None)


def test_the_weight_of_a_message_is_that_of_its_tokens_and_end_token() -> None:
    chat = Chat(tiny_tokenizer())
    messages = [user("q"), answer("wrong", weight=0.0), user("really?"), answer("right", weight=0.5)]
    row = {"messages": messages, "weight": 0.25}
    tokens, _ = tokenise(rows.make_table("s", [row]), chat)
    record = tokens.to_pylist()[0]
    turns, scale = np.array(record["turns"]), np.array(record["scale"])
    assert {t: set(scale[turns == t]) for t in (-1, 0, 1, 2, 3)} == {-1: {1}, 0: {1}, 1: {0}, 2: {1}, 3: {0.5}}
    assert record["weight"] == 0.25
    ends = np.array(record["ids"]) == chat.stop_ids[0]
    assert scale[ends & (np.array(record["roles"]) == ROLE_NAMES.index("assistant"))].tolist() == [0, 0.5]


def test_a_row_that_cannot_be_rendered_comes_back_with_its_reason() -> None:
    chat = Chat(tiny_tokenizer(source("gemma2").replace("<end_of_turn>", "<|im_end|>")))
    system = {"role": "system", "content": "Be brief."}
    table = rows.make_table(
        "s", [{"messages": [user("q"), answer("a")]}, {"messages": [system, user("q"), answer("a")]}]
    )
    tokens, rejected = tokenise(table, chat)
    assert tokens.num_rows == 1
    assert len(rejected) == 1
    assert {tokens["id"][0].as_py(), rejected[0].id} == set(table["id"].to_pylist())
    assert "message 0" in rejected[0].reason
    assert "System role not supported" in rejected[0].reason


def test_a_template_that_suits_no_row_is_an_error_and_not_a_table_of_rejects() -> None:
    chat = Chat(tiny_tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}"))
    with pytest.raises(TemplateError, match="end token"):
        tokenise(rows.make_table("s", [{"messages": [user("q"), answer("a")]}]), chat)


def test_rows_whose_text_differs_from_their_messages_are_counted() -> None:
    chat = Chat(tiny_tokenizer(source("tulu")), template="tulu")
    texts = ("plain", " padded ", "also\n")
    table = rows.make_table("s", [{"messages": [user(text), answer(" a")]} for text in texts[:2]])
    table = pa.concat_tables([table, rows.make_table("t", [{"messages": [user(texts[2]), answer("a")]}])])
    assert notes(tokenise(table, chat)[0]) == {"stripped": 3}
    assert notes(tokenise(table.slice(0, 0), chat)[0]) == {}


def test_smoothing_of_a_row_is_its_score_of_that_name() -> None:
    table = rows.make_table("s", [{"messages": [user(word), answer("a")]} for word in "xyz"])
    table = table.append_column("score.smoothing", pa.array([0.125, None, 1.5], pa.float64()))
    tokens, rejected = tokenise(table, Chat(tiny_tokenizer()))
    assert tokens["smoothing"].to_pylist() == [0.125, None]
    assert [r.reason for r in rejected] == ["score.smoothing: label smoothing 1.5 is not in [0, 1)"]
