"""The exact list of a stage: every training example in order, and what was asked against what was realised.

Weights that are rows to one tool and tokens to another, and interleaving that repeats rows in silence, are what users
of trainers complain about. Here a mix is amounts (`cuvee.amounts`), and its result is a table that can be read.

**Which rows.** Each row has a number of its own, drawn from the seed and its (id, target); an amount takes the rows
with the lowest. So the subsets of all fractions nest, a row's luck is the same in every table that holds it, and
neither the order of rows nor the presence of others matters. A fraction is floor(k n) of the table as it enters the
mix (DMT, arXiv 2310.05492, prints 430, 78 and 336 rows for k = 1/256); zero rows are refused unless a `minimum` is
set. Tokens are taken in whole rows until the amount is first reached. The subset is the same in every epoch: the paper
does not say, and a fixed one is what its row counts mean.

**How often.** `2x` repeats inside an epoch; an epoch of 1.5 takes of each table the floor of half of its rows, so that
a part of an epoch has the mix of the whole. Every epoch has its own order.

**In which order.** `shuffle` is a uniform permutation of the epoch. `stratified` spreads each (table, source) evenly,
so that any stretch has the stage's mix within a few rows: among the first rows of an epoch, one of S strata with share
p is off by at most (1 + S p) / 2 rows. Neither blocks by table, which would turn multi-task training into sequential.

**One row by several tables.** A row keeps its identity, so it is trained on as often as its tables ask; `shared` counts
it. Its text must be the same in all of them (the plan names rows, not tables): different lengths are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cuvee.amounts import Amount
from cuvee.errors import UserError
from cuvee.rng import row_keys

PLAN = pa.schema(
    [
        pa.field("stage", pa.string(), nullable=False),
        pa.field("epoch", pa.int32(), nullable=False),
        pa.field("position", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("target", pa.int32(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
    ]
)
"""`position` counts from 0 through all epochs of the stage; `tokens` after truncation."""

Order = Literal["shuffle", "stratified"]


@dataclass(frozen=True)
class Mixture:
    """`plan` has the schema PLAN, a row per training example, in the order of training.

    `realised` has one entry a table: `table`, `asked` (the amount as text), `available` rows, `rows` in an epoch,
    `unique` rows, `examples` in all epochs, `repeat` (examples per unique row), `tokens` in all epochs, `token_share`
    and `row_share` of the stage, `truncated` rows (unique), `dropped` rows where over-long ones are, `overshoot` in
    tokens where tokens were asked, and `raised` where the minimum added rows. `unique` and `shared` are of the stage:
    distinct rows, and those that several tables bring.
    """

    plan: pa.Table
    realised: list[dict[str, Any]]
    unique: int
    shared: int


@dataclass(frozen=True)
class _Drawn:
    """Rows of a table as drawn, the likeliest to be kept first; each is trained on `copies` times an epoch."""

    table: str
    rows: pa.Table
    copies: np.ndarray
    facts: dict[str, Any]

    @property
    def epoch_rows(self) -> int:
        return int(self.copies.sum())


def compose(
    stage: str,
    mix: Mapping[str, Amount],
    lengths: Mapping[str, pa.Table],
    *,
    epochs: float,
    seed: int,
    order: Order = "shuffle",
    max_len: int | None = None,
    over_long: Literal["truncate", "drop"] = "truncate",
    minimum: int = 0,
    sample_seed: int | None = None,
) -> Mixture:
    """The list of one stage.

    `lengths` has, for every table of the mix, its rows as columns id, target, source and tokens (as rendered, before
    truncation to `max_len`), each (id, target) once; a column `count`, of a selection with replacement, says how often
    a row stands for itself. Rows above `max_len` are truncated, or dropped before amounts are taken. A fraction gives
    `minimum` at least. `seed` moves the order, `sample_seed` (the same if absent) which rows are drawn.

    Raises UserError when an amount gives no rows, asks for more than there is, or when there are no epochs.
    """
    if not epochs > 0:
        raise UserError(f"stage {stage}: {epochs} epochs", remedy="write a number above 0")
    draw = seed if sample_seed is None else sample_seed
    limit = np.iinfo(np.int32).max if max_len is None else max_len
    drawn = [
        _draw(stage, name, amount, lengths[name], draw, limit, over_long == "drop", minimum)
        for name, amount in sorted(mix.items())
        if amount.value > 0
    ]
    if not drawn:
        raise UserError(f"stage {stage}: nothing to train on", remedy="every amount is none")
    parts = []
    for epoch in range(math.ceil(epochs)):
        share = min(1.0, epochs - epoch)
        parts += _epoch(stage, drawn, epoch, share, seed, order)
    if not sum(part.num_rows for part in parts):
        raise UserError(f"stage {stage}: {epochs} epochs of it are less than one row", remedy="raise epochs")
    table = pa.concat_tables(parts)
    unique, shared = _identities(stage, drawn)
    plan = pa.table(
        [
            pa.array([stage], pa.string()).take(pa.array(np.zeros(table.num_rows, np.int64))),
            table["epoch"],
            pa.array(np.arange(table.num_rows, dtype=np.int64)),
            *(table[name] for name in ("id", "target", "source", "tokens")),
        ],
        schema=PLAN,
    )
    return Mixture(plan.combine_chunks(), _realised(drawn, table), unique, shared)


def _draw(
    stage: str, name: str, amount: Amount, table: pa.Table, seed: int, limit: int, drop: bool, minimum: int
) -> _Drawn:
    place = f"stage {stage}, table {name}"
    facts: dict[str, Any] = {"table": name, "asked": str(amount), "available": table.num_rows}
    if drop:
        table = table.filter(pc.less_equal(table["tokens"], limit))
        facts["dropped"] = facts["available"] - table.num_rows
    size = table.num_rows
    if size == 0:
        raise UserError(f"{place}: the table is empty" + (f" without rows above {limit} tokens" if drop else ""))
    target = table["target"].to_numpy().astype(np.int64)
    keys = row_keys(seed, "sample", ids=table["id"], number=target)
    table = table.append_column("key", pa.array(keys)).sort_by(
        [("key", "ascending"), ("id", "ascending"), ("target", "ascending")]
    )
    raw = table["tokens"].to_numpy().astype(np.int64)
    tokens = np.minimum(raw, limit)
    if amount.kind == "tokens":
        total = np.cumsum(tokens)
        asked = int(amount.value)
        if total[-1] < asked:
            raise UserError(f"{place}: {amount} asked, {total[-1]} there", remedy='repeat the table, as "2x"')
        count = int(np.searchsorted(total, asked)) + 1
        facts["overshoot"] = int(total[count - 1]) - asked
    else:
        count = amount.rows_of(size)
        if amount.kind == "rows" and count > size:
            raise UserError(f"{place}: {amount} asked, {size} there", remedy='repeat the table, as "2x"')
        if amount.kind == "fraction" and count < min(minimum, size):
            facts["raised"] = min(minimum, size) - count
            count = min(minimum, size)
        if count == 0:
            raise UserError(
                f"{place}: {amount} of {size} rows is less than one row", remedy="raise the amount, or set `minimum`"
            )
    full, rest = divmod(count, size)
    kept = min(count, size)
    copies = np.full(kept, full, np.int64)
    copies[:rest] += 1
    if "count" in table.column_names:
        copies *= table["count"].to_numpy()[:kept]
    facts["truncated"] = int((raw[:kept] > tokens[:kept]).sum())
    rows = pa.table(
        {
            "id": table["id"].slice(0, kept),
            "target": pc.cast(table["target"], pa.int32()).slice(0, kept),
            "source": table["source"].slice(0, kept),
            "tokens": pa.array(tokens[:kept].astype(np.int32)),
        }
    )
    return _Drawn(name, rows.combine_chunks(), copies, facts)


def _epoch(stage: str, drawn: list[_Drawn], epoch: int, share: float, seed: int, order: Order) -> list[pa.Table]:
    """The examples of one epoch in order, as id, target, source, tokens, epoch and the number of the table."""
    pieces = []
    for number, one in enumerate(drawn):
        index = np.repeat(np.arange(len(one.copies)), one.copies)
        copy = np.arange(len(index)) - np.repeat(np.cumsum(one.copies) - one.copies, one.copies)
        rows = one.rows.take(pa.array(index))
        path = ("order", stage, epoch, one.table)
        target = rows["target"].to_numpy().astype(np.uint64)
        keys = row_keys(seed, *path, ids=rows["id"], number=(copy.astype(np.uint64) << np.uint64(32)) | target)
        rank = np.lexsort((copy, index, keys))[: math.floor(share * len(index) + 1e-9)]
        pieces.append(
            rows.take(pa.array(rank))
            .append_column("key", pa.array(keys[rank]))
            .append_column("table", pa.array(np.full(len(rank), number, np.int32)))
        )
    joined = pa.concat_tables(pieces).combine_chunks()
    keys = joined["key"].to_numpy()
    place = keys if order == "shuffle" else _spread(joined)
    sequence = np.lexsort((joined["table"].to_numpy(), keys, place))
    chosen = joined.take(pa.array(sequence)).drop_columns(["key"])
    return [chosen.append_column("epoch", pa.array(np.full(len(sequence), epoch, np.int32)))]


def _spread(joined: pa.Table) -> np.ndarray:
    """Where in the epoch, between 0 and 1, each row falls when every (table, source) is spread evenly, shape (rows,).

    The i-th of n rows of a stratum stands at (i + 1/2) / n; i counts in the order of the rows' keys.
    """
    source = joined["source"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    stratum = np.unique(joined["table"].to_numpy().astype(np.int64) << 32 | source, return_inverse=True)[1]
    by_key = np.lexsort((joined["key"].to_numpy(), stratum))
    counts = np.bincount(stratum)
    within = np.arange(len(stratum)) - np.repeat(np.cumsum(counts) - counts, counts)
    place = np.empty(len(stratum))
    place[by_key] = (within + 0.5) / np.repeat(counts, counts)
    return place


def _identities(stage: str, drawn: list[_Drawn]) -> tuple[int, int]:
    """(distinct rows, rows that several tables bring). Raises UserError for a row whose text differs between tables."""
    rows = pa.concat_tables([one.rows for one in drawn])
    seen = rows.group_by(["id", "target"]).aggregate([("tokens", "min"), ("tokens", "max"), ("tokens", "count")])
    differs = seen.filter(pc.not_equal(seen["tokens_min"], seen["tokens_max"]))
    if differs.num_rows:
        first = pc.min(differs["id"]).as_py()
        raise UserError(
            f"stage {stage}: {differs.num_rows} rows have different texts in two tables, the first is {first}",
            remedy="mix only one of these tables",
        )
    return seen.num_rows, pc.sum(pc.greater(seen["tokens_count"], 1)).as_py() or 0


def _realised(drawn: list[_Drawn], examples: pa.Table) -> list[dict[str, Any]]:
    number = examples["table"].to_numpy()
    count = np.bincount(number, minlength=len(drawn))
    tokens = np.bincount(number, weights=examples["tokens"].to_numpy(), minlength=len(drawn)).astype(np.int64)
    return [
        {
            **one.facts,
            "rows": one.epoch_rows,
            "unique": one.rows.num_rows,
            "examples": int(count[i]),
            "repeat": float(count[i]) / one.rows.num_rows,
            "tokens": int(tokens[i]),
            "row_share": float(count[i] / count.sum()),
            "token_share": float(tokens[i] / tokens.sum()) if tokens.sum() else 0.0,
        }
        for i, one in enumerate(drawn)
    ]
