"""Subsets by amount, the operation `sample`.

Every source has one seeded order and an amount is a prefix of it, so that the subsets of a scaling curve (DMT's 1/256
to 1) nest, and a larger one differs from a smaller one by the added rows alone. A fraction is taken of each source by
itself, rounded down: `floor(k N_i)` reproduces DMT's counts, and a fraction of the union would not. A number of rows is
shared among the sources by size, and these subsets nest as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import model_validator

from cuvee.amounts import Amount
from cuvee.config import Config
from cuvee.errors import DataError
from cuvee.rng import row_keys
from cuvee.rows import sort


class SampleConfig(Config):
    """`amount`: a fraction of each source, or rows of all together."""

    amount: Amount

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"amount": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _subset(self) -> SampleConfig:
        if self.amount.kind not in ("fraction", "rows"):
            raise ValueError(
                f"cannot sample {self.amount}: write a fraction or rows; `mix` repeats rows and counts tokens"
            )
        return self


def sample(table: pa.Table, amount: Amount, seed: int) -> pa.Table:
    """The asked rows, sorted as every table. Raises DataError when there are not so many, or when a fraction of a
    source rounds to no row."""
    names, source = np.unique(table.column("source").to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
    size = np.bincount(source, minlength=len(names))
    rank = _ranks(table, source, seed)
    if amount.kind == "fraction":
        wanted = np.asarray([amount.rows_of(int(n)) for n in size], np.int64)
        if amount.value and (wanted == 0).any():
            poor = int(np.flatnonzero(wanted == 0)[0])
            raise DataError(f"{amount} of the {size[poor]} rows of {names[poor]} is no row", remedy="ask for more")
        return sort(table.filter(pa.array(rank < wanted[source]))) if len(names) else table
    rows = amount.rows_of(table.num_rows)
    if rows > table.num_rows:
        raise DataError(f"{rows} rows asked of {table.num_rows}", remedy="ask for less; `mix` can repeat rows")
    # Rows in the order of their share of the source: any prefix holds every source in proportion.
    order = np.lexsort((source, (rank + 0.5) / size[source]))
    return sort(table.take(pa.array(order[:rows])))


def _ranks(table: pa.Table, source: np.ndarray, seed: int) -> np.ndarray:
    """The place of each row in the seeded order of its source, from 0, shape (rows,)."""
    target = table.column("target").to_numpy()
    draw = row_keys(seed, "sample", ids=table.column("id"), number=target)
    order = np.lexsort((target, table.column("id").to_numpy(zero_copy_only=False).astype(str), draw, source))
    rank = np.empty(table.num_rows, np.int64)
    first = np.r_[0, np.cumsum(np.bincount(source))]
    rank[order] = np.arange(table.num_rows) - first[source[order]]
    return rank
