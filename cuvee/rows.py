"""Rows and their identity.

A row is a conversation with what is needed to judge it. Its id is a hash of source name, canonical content and the
occurrence number among identical rows of that source, so that it survives reordering, sharding and re-reading, and
two identical rows stay two rows. A target is (id, target number): one prompt may have several answers.

Tables are Arrow tables of `SCHEMA`, plus any columns that steps add (`score.<name>`, `cluster`, `tag.<name>`), kept
sorted by (id, target). On disk a table is a folder of Parquet parts.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from cuvee.errors import DataError
from cuvee.protocols import Message

ROLES = ("system", "user", "assistant", "tool")

MESSAGES = pa.list_(
    pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string()), pa.field("weight", pa.float32())])
)
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("target", pa.int32(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("messages", MESSAGES, nullable=False),
        pa.field("references", pa.list_(pa.string())),
        pa.field("tests", pa.list_(pa.string())),
        pa.field("weight", pa.float32()),
        pa.field("meta", pa.string()),
    ]
)
"""`references`: golds for judges (default: the last assistant turn). `weight`: of the row's loss, absent is 1.
`meta`: a JSON object with whatever else the source said."""

PART_ROWS = 65_536


def canonical(messages: Sequence[Mapping[str, Any]]) -> str:
    """The text that identifies a conversation: NFC, line ends as newline, outer white space dropped."""
    turns = [[str(m["role"]), _clean(str(m["content"]))] for m in messages]
    return json.dumps(turns, ensure_ascii=False, separators=(",", ":"))


def _clean(text: str) -> str:
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n")).strip()


def row_id(source: str, messages: Sequence[Mapping[str, Any]], n: int = 0) -> str:
    """32 hex digits from source, content and the occurrence number `n` (0 for the first)."""
    text = f"{source}\x1f{canonical(messages)}\x1f{n}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def prompt_of(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Everything before the last assistant turn."""
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=len(messages))
    return tuple(messages[:last])


def answer_of(messages: Sequence[Message]) -> str:
    """The text of the last assistant turn; empty if there is none."""
    return next((m["content"] for m in reversed(messages) if m["role"] == "assistant"), "")


def with_answer(messages: Sequence[Message], answer: str) -> tuple[Message, ...]:
    """The same prompt with another last answer."""
    return (*prompt_of(messages), Message(role="assistant", content=answer))


def prompt_hash(messages: Sequence[Message]) -> str:
    """A hash of the prompt alone, case and white space folded: rows that differ in the answer only share it."""
    folded = " ".join(canonical(prompt_of(messages)).casefold().split())
    return hashlib.blake2b(folded.encode(), digest_size=16).hexdigest()


def check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raises DataError when the conversation cannot be trained on."""
    if not messages:
        raise DataError("no messages", field="messages")
    for i, message in enumerate(messages):
        if message.get("role") not in ROLES:
            raise DataError(f"role {message.get('role')!r} is none of {', '.join(ROLES)}", field=f"messages[{i}].role")
        if not isinstance(message.get("content"), str):
            raise DataError("content is not text", field=f"messages[{i}].content")
        weight = message.get("weight")
        if weight is not None and not 0 <= float(weight) <= 1:
            raise DataError(f"weight {weight} is not between 0 and 1", field=f"messages[{i}].weight")
    if not any(m["role"] == "assistant" and _clean(m["content"]) for m in messages):
        raise DataError("no assistant turn with text", field="messages")
    if all(m["role"] == "assistant" for m in messages):
        raise DataError("no turn before the answer", field="messages")


def make_table(source: str, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """A table from dicts with `messages` and, optionally, `references`, `tests`, `weight`, `meta`; assigns the ids.

    Identical rows get occurrence numbers in the order given; which of them is first makes no difference to the set.
    """
    seen: dict[str, int] = {}
    records: list[dict[str, Any]] = []
    for row in rows:
        check_messages(row["messages"])
        content = canonical(row["messages"])
        n = seen.get(content, 0)
        seen[content] = n + 1
        meta = row.get("meta")
        answer = answer_of(row["messages"])
        records.append(
            {
                "id": row_id(source, row["messages"], n),
                "target": 0,
                "source": source,
                "messages": [
                    {"role": m["role"], "content": m["content"], "weight": m.get("weight")} for m in row["messages"]
                ],
                "references": list(row.get("references") or [answer]),
                "tests": list(row.get("tests") or []),
                "weight": row.get("weight"),
                "meta": json.dumps(meta, ensure_ascii=False, sort_keys=True, default=str) if meta else None,
            }
        )
    return sort(pa.Table.from_pylist(records, schema=SCHEMA))


def sort(table: pa.Table) -> pa.Table:
    """Sorted by (id, target), the order of every stored table."""
    return table.take(pc.sort_indices(table, sort_keys=[("id", "ascending"), ("target", "ascending")]))


def write(table: pa.Table, folder: Path) -> None:
    """Write as Parquet parts of `PART_ROWS` rows. The schema is written also when the table is empty."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, max(table.num_rows, 1), PART_ROWS)):
        pq.write_table(table.slice(start, PART_ROWS), folder / f"part-{number:05d}.parquet", compression="zstd")


def stream(folder: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The table of a folder part by part, in stored order, so that no more than one part is held."""
    for part in parts_of(folder):
        yield pq.read_table(part, columns=list(columns) if columns else None)


def columns_of(folder: Path) -> list[str]:
    """The columns of a stored table."""
    return list(pq.read_schema(parts_of(folder)[0]).names)


def parts_of(folder: Path) -> list[Path]:
    """The parts of a stored table in order. Raises DataError when there are none."""
    if parts := sorted(folder.glob("*.parquet")):
        return parts
    raise DataError("no Parquet parts", path=str(folder))


def read(folder: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The whole table of a folder of parts, in stored order."""
    return pads.dataset([str(p) for p in parts_of(folder)]).to_table(columns=list(columns) if columns else None)


def records(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows as dicts, a batch at a time; message weights that are absent are left out."""
    for batch in table.to_batches(max_chunksize=4096):
        for record in batch.to_pylist():
            if "messages" in record:
                record["messages"] = tuple(
                    {k: v for k, v in message.items() if v is not None} for message in record["messages"]
                )
            yield record
