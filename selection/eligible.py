"""The rows that a selector chooses from, as arrays in id order.

Everything that a table, its vectors and its clusters bring is checked and brought into one order here, so that the
methods see plain arrays and the order of the table makes no difference.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cuvee.errors import DataError
from selection.clustering import Clustering
from selection.text import answers
from selection.vectors import Floats, Vectors

Ints = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Eligible:
    """Rows in id order; arrays are (n,). `index` is the position among the vectors."""

    ids: pa.ChunkedArray
    quality: Reals | None = None
    cluster: npt.NDArray[np.int32] | None = None
    distance: Floats | None = None
    vectors: Vectors | None = None
    index: Ints | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, rows: Ints) -> Eligible:
        """These rows only."""
        columns = {name: getattr(self, name) for name in ("quality", "cluster", "distance", "index")}
        taken = {name: None if values is None else values[rows] for name, values in columns.items()}
        return replace(self, ids=self.ids.take(pa.array(rows)), **taken)

    def rows(self) -> Floats:
        """The vectors as one array (n, d)."""
        if self.vectors is None or self.index is None:
            raise DataError("the method needs embeddings and there are none", field="embedding", remedy="embed first")
        # Both are in id order, so as many of them are the same.
        return self.vectors.load() if len(self.index) == len(self.vectors) else self.vectors.take(self.index)

    def scores(self) -> Reals:
        if self.quality is None:
            raise DataError("the method needs a quality and there is none", field="quality")
        return self.quality

    def clusters(self) -> Ints:
        if self.cluster is None:
            raise DataError("the method needs clusters and there are none", field="cluster", remedy="cluster first")
        return self.cluster.astype(np.int64)


def gather(
    table: pa.Table,
    *,
    quality: str | None = None,
    missing: Literal["error", "exclude"] = "error",
    vectors: Vectors | None = None,
    clustering: Clustering | None = None,
) -> tuple[Eligible, Ints]:
    """The rows of `table`, one for each id, and the position of each in the table (of its first target).

    `clustering` is in the order of `vectors`' ids, or of the table's; without it columns `cluster` and `distance` are
    taken. `quality` names a column `score.<name>` or <name>; "length" is made here. A row without quality is NaN when
    `missing` is "exclude". Raises DataError for rows without vector, cluster or quality.
    """
    order, ids = by_id(table)
    index = None if vectors is None else _find(ids, vectors)
    cluster, distance = _clusters(table, order, index, clustering)
    scores = None if quality is None else _quality(table, order, quality, missing)
    return Eligible(ids, scores, cluster, distance, vectors, index), order


def by_id(table: pa.Table) -> tuple[Ints, pa.ChunkedArray]:
    """Positions of the rows in id order, one for each id (its first target), and the ids."""
    keys = [("id", "ascending")] + ([("target", "ascending")] if "target" in table.column_names else [])
    order = np.asarray(pc.sort_indices(table.select([name for name, _ in keys]), sort_keys=keys), dtype=np.int64)
    ids = table["id"].take(pa.array(order))
    if len(ids) > 1:
        first = np.concatenate([[True], np.asarray(pc.not_equal(ids.slice(1), ids.slice(0, len(ids) - 1)))])
        order, ids = order[first], ids.filter(pa.array(first))
    return order, ids


def _quality(table: pa.Table, order: Ints, name: str, missing: str) -> Reals:
    column = next((c for c in (f"score.{name}", name) if c in table.column_names), None)
    if column is None and name == "length":
        return np.asarray(pc.utf8_length(answers(table["messages"])), dtype=np.float64)[order]
    if column is None:
        raise DataError(
            f"no column score.{name}", field=f"score.{name}", remedy=f"add a step score: {{{name}: ...}} before select"
        )
    values = table[column]
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise DataError(f"is {values.type}, not a number", field=column, remedy="a quality is a number for each row")
    scores = pc.fill_null(values.cast(pa.float64()), float("nan")).to_numpy()[order]
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad) and missing == "error":
        first = table["id"][int(order[bad[0]])].as_py()
        raise DataError(
            f"{len(bad)} of {len(scores)} rows have no finite score, the first is {first}",
            field=column,
            remedy="score them, or write missing: exclude",
        )
    return np.where(np.isfinite(scores), scores, np.nan)


def _find(ids: pa.ChunkedArray, vectors: Vectors) -> Ints:
    index = vectors.find(ids)
    absent = np.flatnonzero(index < 0)
    if len(absent):
        raise DataError(
            f"{len(absent)} of {len(ids)} rows have no embedding, the first is {ids[int(absent[0])].as_py()}",
            path=str(vectors.folder or ""),
            remedy="embed the same table",
        )
    return index


def _clusters(
    table: pa.Table, order: Ints, index: Ints | None, clustering: Clustering | None
) -> tuple[npt.NDArray[np.int32] | None, Floats | None]:
    if clustering is not None:
        if index is None:
            if len(clustering.assignment) != len(order):
                raise DataError(f"{len(clustering.assignment)} rows are clustered, the table has {len(order)}")
            index = np.arange(len(order))
        return clustering.assignment[index], clustering.distance[index]
    if "cluster" in table.column_names:
        column = table["cluster"]
        if column.null_count:
            raise DataError(f"{column.null_count} rows have no cluster", field="cluster")
        near = table["distance"].to_numpy()[order].astype(np.float32) if "distance" in table.column_names else None
        return column.to_numpy()[order].astype(np.int32), near
    return None, None
