"""A fault of known size, the operation `corrupt`: answers that are exchanged among rows.

An experiment about quality needs bad rows that are known to be bad. Exchanging answers keeps every text, length and
style of the pool, so that only the fit of question and answer can tell the rows apart. Rows keep their ids, since they
are the same rows to every question of lineage; what was exchanged is in the column `corrupted`.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from cuvee.amounts import Amount
from cuvee.config import Config
from cuvee.errors import DataError
from cuvee.rng import row_keys, stream
from cuvee.rows import answer_of

COLUMN = "corrupted"
_CARRIED = ("references", "tests")
"""What belongs to an answer and goes with it."""


class CorruptConfig(Config):
    """Rows exchange answers with rows of their own source, or of their own cluster."""

    amount: Amount = Field(default_factory=lambda: Amount.parse("all"), description="fraction of each group's rows")
    within: Literal["source", "cluster"] = "source"
    groups: int | None = Field(default=None, ge=1, description="so many groups, drawn by the seed; all if absent")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"amount": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fraction(self) -> CorruptConfig:
        if self.amount.kind != "fraction":
            raise ValueError(f"cannot corrupt {self.amount}: write a fraction of each group")
        return self


def corrupt(
    table: pa.Table, config: CorruptConfig, seed: int, cluster: pa.Array | None = None
) -> tuple[pa.Table, dict[str, list[Any]]]:
    """The table with exchanged answers and the boolean column `corrupted`, and the groups drawn by name.

    `cluster` (n,) is each row's cluster, for `within: cluster`. The chosen rows of a group hand their answer on in a
    circle, in seeded order, so that none keeps its own; a row whose new answer reads like the old one is not counted
    as corrupted. Raises DataError when fewer groups than asked have two rows to exchange, and for clusters without
    `cluster`.
    """
    group = table["source"] if config.within == "source" else cluster
    if group is None:
        raise DataError("no clusters to exchange within", field="cluster", remedy="write cluster before corrupt")
    names, member = np.unique(group.to_numpy(zero_copy_only=False), return_inverse=True)
    draw = row_keys(seed, "corrupt", ids=table["id"], number=table["target"].to_numpy())
    order = np.lexsort((draw, member))
    sizes = np.bincount(member, minlength=len(names))
    counts = [config.amount.rows_of(int(size)) for size in sizes]
    able = [g for g, count in enumerate(counts) if count > 1]
    wanted = len(able) if config.groups is None else config.groups
    if not able or wanted > len(able):
        raise DataError(
            f"{wanted or 'all'} groups to corrupt, {len(able)} have two rows to exchange", remedy="raise the amount"
        )
    taken = sorted(stream(seed, "corrupt", "groups").permutation(able)[:wanted].tolist())
    starts = np.r_[0, np.cumsum(sizes)]
    donor = np.arange(table.num_rows)
    for g in taken:
        ring = order[starts[g] : starts[g] + counts[g]]
        donor[ring] = np.roll(ring, -1)
    made = _exchange(table, donor)
    return made, {"groups": [names[g].item() if hasattr(names[g], "item") else names[g] for g in taken]}


def _exchange(table: pa.Table, donor: npt.NDArray[np.int64]) -> pa.Table:
    """Every row with the last answer of its donor, and what belongs to that answer."""
    moved = np.flatnonzero(donor != np.arange(table.num_rows))
    messages = table["messages"].to_pylist()
    answers = {int(row): answer_of(messages[donor[row]]) for row in moved}
    changed = np.zeros(table.num_rows, dtype=bool)
    for row, answer in answers.items():
        turn = max(i for i, m in enumerate(messages[row]) if m["role"] == "assistant")
        changed[row] = messages[row][turn]["content"] != answer
        messages[row] = [{**m, "content": answer} if i == turn else m for i, m in enumerate(messages[row])]
    columns = {"messages": pa.array(messages, table.schema.field("messages").type)}
    columns |= {name: table[name].take(pa.array(donor)) for name in _CARRIED if name in table.column_names}
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)
    if COLUMN in table.column_names:
        before = pc.fill_null(table[COLUMN], False).to_numpy(zero_copy_only=False)
        return table.set_column(table.schema.get_field_index(COLUMN), COLUMN, pa.array(before | changed))
    return table.append_column(COLUMN, pa.array(changed))
