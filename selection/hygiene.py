"""What the cleaning operations share: the words of a text, and the table that says what was removed and why.

Every operation returns the rows that stay and a table of those that do not. A row that vanishes without a reason is
the fault that users of data tools complain about most, so the reason is part of the result and not of a log.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from cuvee.protocols import Message
from cuvee.rows import answer_of, prompt_of

REMOVED = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("target", pa.int32(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("stays", pa.string()),
        pa.field("against", pa.string()),
        pa.field("item", pa.int64()),
        pa.field("span", pa.string()),
    ]
)
"""One row a removal. `stays`: the id that is kept instead. `against`, `item`, `span`: the table that a row overlaps
with, the number of its text there, and the overlapping words as they stand in our row."""

# Scripts that write no spaces: each character counts as a word, or a paragraph would be one.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\u0e00-\u0e7f]|[^\W_]+")


def words(text: str) -> list[str]:
    """The words of a text, case folded, without punctuation."""
    return [word.casefold() for word in _WORD.findall(text)]


def word_spans(text: str) -> tuple[list[str], list[tuple[int, int]]]:
    """The words as `words` gives them, and where each stands in the text (start, end)."""
    found = list(_WORD.finditer(text))
    return [m.group().casefold() for m in found], [m.span() for m in found]


def asked_text(messages: Sequence[Message]) -> str:
    """The prompt without system turns: one long system text would make every prompt look like every other."""
    return "\n".join(m["content"] for m in prompt_of(messages) if m["role"] != "system")


def full_text(messages: Sequence[Message]) -> str:
    """Prompt and last answer, without system turns."""
    return f"{asked_text(messages)}\n{answer_of(messages)}"


def split(table: pa.Table, gone: Mapping[int, Mapping[str, Any]]) -> tuple[pa.Table, pa.Table]:
    """(kept, removed): `gone` maps positions in `table` to what `REMOVED` says of them, `reason` at the least."""
    stays = np.ones(table.num_rows, dtype=bool)
    stays[list(gone)] = False
    return table.filter(pa.array(stays)), removed(table, gone)


def removed(table: pa.Table, gone: Mapping[int, Mapping[str, Any]]) -> pa.Table:
    """The removal table alone, in the order of `table`."""
    places = sorted(gone)
    about = table.select(["id", "target", "source"]).take(pa.array(places, pa.int64())).to_pylist()
    rows = [{**row, **gone[place]} for row, place in zip(about, places, strict=True)]
    return pa.Table.from_pylist(rows, schema=REMOVED)


def conversations(table: pa.Table) -> Iterable[tuple[Message, ...]]:
    """The conversations of a table in its order, a batch at a time."""
    for batch in table.select(["messages"]).to_batches(max_chunksize=4096):
        for messages in batch.column(0).to_pylist():
            yield tuple(messages)
