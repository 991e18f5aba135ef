from __future__ import annotations

import pyarrow as pa

from cuvee import rows
from selection.text import answers, texts

CHAT = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "r"},
    {"role": "assistant", "content": "b"},
]


def column() -> pa.ChunkedArray:
    table = rows.make_table("s", [{"messages": CHAT}, {"messages": CHAT[1:3]}])
    return pa.table({"messages": [CHAT, CHAT[1:3], CHAT[:1]]}, schema=pa.schema([table.schema.field("messages")]))[
        "messages"
    ]


def test_instruction_is_all_but_the_assistant() -> None:
    assert texts(column(), "instruction").to_pylist() == ["S\nq\nr", "q", "S"]
    assert texts(column(), "response").to_pylist() == ["a\nb", "a", ""]
    assert texts(column(), "both").to_pylist() == ["S\nq\na\nr\nb", "q\na", "S"]


def test_answer_is_the_last_assistant_turn() -> None:
    assert answers(column()).to_pylist() == ["b", "a", ""]


def test_slices_and_chunks_give_the_same() -> None:
    whole = column()
    pieces = pa.chunked_array([whole.chunk(0).slice(1, 2), whole.chunk(0).slice(0, 1)])
    assert answers(pieces).to_pylist() == ["a", "", "b"]
    assert texts(pieces, "instruction").to_pylist() == ["q", "S", "S\nq\nr"]
    assert answers(whole.slice(0, 0)).to_pylist() == []
