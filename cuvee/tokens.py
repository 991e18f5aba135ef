"""Rows as token ids with roles: what packing, training, scoring and the preview read.

The table holds what the text is, not what is trained: weights follow from the objective when they are needed
(`training.objective`), so that one table serves every arm of a comparison of objectives.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cuvee import rows
from cuvee.chat import Chat
from cuvee.errors import DataError, TemplateError

TOKENS_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("target", pa.int32(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("ids", pa.list_(pa.int32()), nullable=False),
        pa.field("roles", pa.list_(pa.uint8()), nullable=False),
        pa.field("turns", pa.list_(pa.int16()), nullable=False),
        pa.field("scale", pa.list_(pa.float32())),
        pa.field("weight", pa.float32()),
        pa.field("smoothing", pa.float32()),
    ]
)
"""`ids`, `roles` (indices into `ROLE_NAMES`) and `turns` as in `cuvee.chat.Rendered`. `scale`: the weight of each
token's message, null when all are 1. `weight`: of the row, absent is 1. `smoothing`: label smoothing of the row."""

SMOOTHING = "score.smoothing"
"""The column of a table of rows that holds each row's label smoothing."""

NOTES = b"cuvee.notes"


@dataclass(frozen=True)
class Rejected:
    """A row that cannot be rendered, and why."""

    id: str
    target: int
    source: str
    reason: str


def tokenise(table: pa.Table, chat: Chat) -> tuple[pa.Table, list[Rejected]]:
    """A table of `TOKENS_SCHEMA` sorted by (id, target), and the rows that could not be rendered.

    `table` has the columns of `cuvee.rows.SCHEMA`; label smoothing of a row is a score of that name, in
    `score.smoothing`. A template that refuses every conversation is refused before the first row.
    """
    _ = chat.stop_ids  # raises for a template that cannot be used at all
    tokens: list[dict[str, Any]] = []
    rejected: list[Rejected] = []
    notes: Counter[str] = Counter()
    wanted = [
        name for name in ("id", "target", "source", "messages", "weight", SMOOTHING) if name in table.column_names
    ]
    for row in rows.records(table.select(wanted)):
        smoothing = row.get(SMOOTHING)
        try:
            if smoothing is not None and not 0 <= smoothing < 1:
                raise DataError(f"label smoothing {smoothing:g} is not in [0, 1)", field=SMOOTHING)
            rendered = chat.render(row["messages"])
        except (TemplateError, DataError) as error:
            rejected.append(Rejected(row["id"], row["target"], row["source"], str(error)))
            continue
        notes.update({note.split(":")[0] for note in rendered.notes})
        weights = np.asarray([m.get("weight", 1.0) for m in row["messages"]] + [1.0], np.float32)
        tokens.append(
            {
                "id": row["id"],
                "target": row["target"],
                "source": row["source"],
                "ids": rendered.ids,
                "roles": rendered.roles,
                "turns": rendered.turns,
                "scale": weights[rendered.turns] if (weights != 1).any() else None,
                "weight": row.get("weight"),
                "smoothing": smoothing,
            }
        )
    result = rows.sort(pa.Table.from_pylist(tokens, schema=TOKENS_SCHEMA))
    counts = json.dumps(dict(sorted(notes.items())))
    return result.replace_schema_metadata({NOTES: counts.encode()}), sorted(rejected, key=lambda r: (r.id, r.target))


def notes(table: pa.Table) -> dict[str, int]:
    """Rows by kind of difference between their messages and their text, as `tokenise` counted them."""
    return json.loads((table.schema.metadata or {}).get(NOTES, b"{}"))
