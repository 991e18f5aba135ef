"""Held-out things in two halves: `validation`, by which a search chooses, and `test`, by which its choice is measured.

Whatever chooses the best of many has seen luck as well as merit, so the same rows cannot also say how good the choice
is. Names are ordered by hash and dealt alternately, so that halves are as equal as can be, the same for any order of
arrival, and rows with one prompt fall together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import pyarrow as pa

from cuvee import rows
from cuvee.errors import DataError

Half = Literal["validation", "test"]


def members(names: Sequence[str], half: str) -> list[bool]:
    """Which of the names belong to the half. Equal names fall together."""
    if half not in ("validation", "test"):
        raise ValueError(f"{half!r} is no half")
    order = sorted(set(names), key=lambda name: (hashlib.blake2b(name.encode(), person=b"halves").digest(), name))
    wanted = set(order[0 if half == "validation" else 1 :: 2])
    return [name in wanted for name in names]


def halve(table: pa.Table, half: str, what: str = "the table") -> pa.Table:
    """The rows of a half, by their prompts. Raises DataError when there are none: one prompt cannot serve both."""
    prompts = [rows.prompt_hash(record["messages"]) for record in rows.records(table.select(["messages"]))]
    kept = table.filter(pa.array(members(prompts, half), pa.bool_()))
    if kept.num_rows == 0:
        raise DataError(f"{what} has no {half} half", remedy="hold out more rows: a search needs both halves")
    return kept
