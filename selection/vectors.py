"""Vectors on disk: one embedding a row, sorted by id, read in blocks.

The reader never holds more than a few blocks. Blocks have `CHUNK` rows counted from the first id, whatever the part
files or row groups are: everything that sums over blocks (clustering, silhouette) is therefore a function of the
vectors alone, not of how they were written. A thousand floats compress badly and decode slowly, so the parts are plain
float32. 100 million rows of 384 are 154 GB in 191 parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cuvee.errors import DataError

CHUNK = 8192
"""Rows in a block, and in a row group on disk. Fixed: it decides in which order sums are made."""
PART_CHUNKS = 64

Floats = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int64]


class Vectors:
    """n vectors of `dim` float32 in the order of their ids. Open a folder with `open`, wrap arrays with `of`."""

    def __init__(self, source: _Folder | _Memory) -> None:
        self._source = source

    @classmethod
    def open(cls, folder: Path) -> Vectors:
        """Vectors of `write_vectors`, or any folder of Parquet parts sorted by id with columns id and embedding."""
        return cls(_Folder(folder))

    @classmethod
    def of(cls, ids: Sequence[str] | pa.Array | pa.ChunkedArray, array: npt.NDArray[Any]) -> Vectors:
        """Vectors in memory, `array` (n, d), in any order of ids. The array is not copied when it is float32."""
        return cls(_Memory(ids, array))

    def __len__(self) -> int:
        return self._source.rows

    @property
    def dim(self) -> int:
        return self._source.dim

    @property
    def folder(self) -> Path | None:
        """Where the parts are; None in memory."""
        return self._source.folder

    @property
    def meta(self) -> Mapping[str, str]:
        """What the writer said of the vectors, such as the embedding's config."""
        return self._source.meta

    @cached_property
    def ids(self) -> pa.ChunkedArray:
        """All ids, ascending. Raises DataError when they are not, or when one is there twice."""
        ids = self._source.ids()
        if len(ids) > 1:
            before, after = ids.slice(0, len(ids) - 1), ids.slice(1)
            wrong = pc.index(pc.less(before, after), False).as_py()
            if wrong >= 0:
                pair = (before[wrong].as_py(), after[wrong].as_py())
                fault = "is there twice" if pair[0] == pair[1] else f"comes before {pair[1]!r}"
                raise DataError(
                    f"vectors must be sorted by distinct id: {pair[0]!r} {fault}", path=str(self.folder or "")
                )
        return ids

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, Floats]]:
        """(position of the first row, block) in id order; blocks of `CHUNK` rows, the last one shorter.

        `start` must be a multiple of `CHUNK`. Blocks are read-only views: copy what you keep.
        """
        if start % CHUNK:
            raise ValueError(f"start {start} is no multiple of {CHUNK}")
        yield from self._source.blocks(start, min(len(self) if stop is None else stop, len(self)))

    def take(self, positions: npt.ArrayLike) -> Floats:
        """The rows at `positions` (m,), in that order, as an own array (m, d)."""
        wanted = np.asarray(positions, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"position out of 0..{len(self) - 1}")
        return self._source.take(wanted)

    def find(self, ids: pa.Array | pa.ChunkedArray) -> Positions:
        """The position of each id, -1 for an id that has no vector."""
        known = self.ids.cast(pa.large_string()).combine_chunks()  # 2 GB of ids is only 67 million rows
        found = pc.index_in(ids.cast(pa.large_string()), value_set=known)
        return np.asarray(pc.fill_null(found, -1), dtype=np.int64)

    def load(self) -> Floats:
        """All rows as one array (n, d). Only for methods that cannot do without."""
        array = np.empty((len(self), self.dim), dtype=np.float32)
        for start, block in self.blocks():
            array[start : start + len(block)] = block
        return array


class _Memory:
    folder: Path | None = None

    def __init__(self, ids: Sequence[str] | pa.Array | pa.ChunkedArray, array: npt.NDArray[Any]) -> None:
        if array.ndim != 2 or len(ids) != len(array):
            raise DataError(f"{len(ids)} ids for an array of shape {array.shape}")
        self._array = np.asarray(array, dtype=np.float32)
        self._ids = ids if isinstance(ids, pa.ChunkedArray) else pa.chunked_array([pa.array(ids, pa.string())])
        order = np.asarray(pc.sort_indices(self._ids), dtype=np.int64)
        self._order = None if np.array_equal(order, np.arange(len(order))) else order
        self.rows, self.dim = self._array.shape
        self.meta: Mapping[str, str] = {}

    def ids(self) -> pa.ChunkedArray:
        return self._ids if self._order is None else self._ids.take(pa.array(self._order))

    def blocks(self, start: int, stop: int) -> Iterator[tuple[int, Floats]]:
        for first in range(start, stop, CHUNK):
            last = min(first + CHUNK, stop)
            yield first, self._array[first:last] if self._order is None else self._array[self._order[first:last]]

    def take(self, positions: Positions) -> Floats:
        return self._array[positions if self._order is None else self._order[positions]]


class _Folder:
    def __init__(self, folder: Path) -> None:
        self.folder: Path | None = folder
        self._paths = sorted(folder.glob("*.parquet"))
        if not self._paths:
            raise DataError("no Parquet parts", path=str(folder), remedy="embed the table first")
        groups: list[tuple[int, int, int]] = []  # part, row group, rows
        for part, path in enumerate(self._paths):
            meta = pq.read_metadata(path)
            groups += [(part, i, meta.row_group(i).num_rows) for i in range(meta.num_row_groups)]
        self._groups = [group for group in groups if group[2]]
        self._starts = np.cumsum([0, *(group[2] for group in self._groups)])
        self.rows = int(self._starts[-1])
        schema = pq.read_schema(self._paths[0])
        kind = schema.field("embedding").type if "embedding" in schema.names else None
        if kind is None or not pa.types.is_fixed_size_list(kind) or not pa.types.is_float32(kind.value_type):
            raise DataError("embedding is no fixed-size list of float32", path=str(self._paths[0]), field="embedding")
        self.dim = int(kind.list_size)
        self.meta = {k.decode(): v.decode() for k, v in (schema.metadata or {}).items() if not k.startswith(b"ARROW")}

    def ids(self) -> pa.ChunkedArray:
        columns = [pq.read_table(path, columns=["id"])["id"].cast(pa.string()) for path in self._paths]
        return pa.chunked_array([chunk for column in columns for chunk in column.chunks], type=pa.string())

    def blocks(self, start: int, stop: int) -> Iterator[tuple[int, Floats]]:
        """Row groups in order, cut and joined to `CHUNK` rows; an aligned row group is passed on without a copy."""
        position, held = start, np.empty((0, self.dim), dtype=np.float32)
        for rows in self._ranges(start, stop):
            held = np.concatenate([held, rows]) if len(held) else rows
            while len(held) >= CHUNK:
                yield position, held[:CHUNK]
                position, held = position + CHUNK, held[CHUNK:]
        if len(held):
            yield position, held

    def _ranges(self, start: int, stop: int) -> Iterator[Floats]:
        opened, file = -1, None
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        for number in range(first, len(self._groups)):
            begin, end = int(self._starts[number]), int(self._starts[number + 1])
            if begin >= stop:
                return
            part, group, _ = self._groups[number]
            if file is None or part != opened:
                opened, file = part, pq.ParquetFile(self._paths[part])
            yield self._read(file, group)[max(start - begin, 0) : min(stop, end) - begin]

    def _read(self, file: pq.ParquetFile, group: int) -> Floats:
        column = file.read_row_group(group, columns=["embedding"], use_threads=False)["embedding"]
        if column.null_count:
            raise DataError("a row has no embedding", path=str(self.folder), field="embedding")
        parts = [np.asarray(chunk.flatten()).reshape(-1, self.dim) for chunk in column.chunks]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def take(self, positions: Positions) -> Floats:
        out = np.empty((len(positions), self.dim), dtype=np.float32)
        owner = np.searchsorted(self._starts, positions, side="right") - 1
        for number in np.unique(owner):
            part, group, _ = self._groups[number]
            here = np.flatnonzero(owner == number)
            out[here] = self._read(pq.ParquetFile(self._paths[part]), group)[positions[here] - self._starts[number]]
        return out


def write_vectors(
    folder: Path,
    blocks: Iterator[tuple[pa.Array | Sequence[str], npt.NDArray[Any]]],
    *,
    dim: int,
    meta: Mapping[str, str] | None = None,
) -> int:
    """Write (ids, array (m, dim)) blocks that come sorted by id; returns the rows written.

    Blocks may have any size: they are cut to row groups of `CHUNK` and parts of `PART_CHUNKS` row groups.
    """
    folder.mkdir(parents=True, exist_ok=True)
    schema = vector_schema(dim, meta)
    rows, part = 0, 0
    writer = pq.ParquetWriter(folder / "part-00000.parquet", schema, compression="none", use_dictionary=False)
    try:
        for table in _aligned(blocks, schema, dim):
            if rows and rows % (CHUNK * PART_CHUNKS) == 0:
                writer.close()
                part += 1
                path = folder / f"part-{part:05d}.parquet"
                writer = pq.ParquetWriter(path, schema, compression="none", use_dictionary=False)
            writer.write_table(table, row_group_size=CHUNK)
            rows += table.num_rows
    finally:
        writer.close()
    return rows


def vector_schema(dim: int, meta: Mapping[str, str] | None = None) -> pa.Schema:
    """Parquet decodes a list that may hold nulls half as fast, so neither the rows nor their numbers may."""
    numbers = pa.list_(pa.field("element", pa.float32(), nullable=False), dim)
    fields = [pa.field("id", pa.string(), nullable=False), pa.field("embedding", numbers, nullable=False)]
    return pa.schema(fields, metadata=dict(meta or {}))


def _aligned(
    blocks: Iterator[tuple[pa.Array | Sequence[str], npt.NDArray[Any]]], schema: pa.Schema, dim: int
) -> Iterator[pa.Table]:
    held = schema.empty_table()
    for ids, array in blocks:
        if array.ndim != 2 or array.shape[1] != dim or len(ids) != len(array):
            raise DataError(f"{len(ids)} ids for an array of shape {array.shape}, dimension {dim}")
        values = pa.array(np.ascontiguousarray(array, dtype=np.float32).reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(values, type=schema.field("embedding").type)
        held = pa.concat_tables([held, pa.table([pa.array(ids, pa.string()), column], schema=schema)])
        while held.num_rows >= CHUNK:
            yield held.slice(0, CHUNK).combine_chunks()
            held = held.slice(CHUNK)
    if held.num_rows:
        yield held.combine_chunks()
