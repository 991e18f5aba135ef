"""Tokenised rows on the worker's disk, memory-mapped, in the order in which training asks for them.

Parquet is good to store and slow to pick single rows from. So the first worker of each machine copies the rows that
the plan names from the Parquet parts into flat arrays once (4 + 1 + 2 bytes per token, at the speed of the disk), and
all workers map these: a row is then three slices, the page cache holds what is hot, and neither the driver nor any
worker holds the data. The copy is keyed by the plan and the parts, and is removed when the run succeeds.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cuvee.errors import DataError

_ARRAYS: dict[str, type[np.generic]] = {
    "ids": np.int32,
    "roles": np.uint8,
    "turns": np.int16,
    "scale": np.float32,
    "lengths": np.int64,
    "source": np.int32,
    "weight": np.float32,
    "smoothing": np.float32,
    "order": np.int64,
    "reference": np.float32,
    "referenced": np.int64,
}
_AT_THE_END = ("lengths", "order", "referenced")


@dataclass(frozen=True)
class Corpus:
    """N rows and a plan of P positions. Token arrays are concatenated; row i is `starts[i]:starts[i + 1]`."""

    ids: np.ndarray
    roles: np.ndarray
    turns: np.ndarray
    scale: np.ndarray | None
    """(tokens,) factor of the loss of each token; absent when no row has one."""
    starts: np.ndarray
    source: np.ndarray
    """(N,) index into `sources`."""
    weight: np.ndarray
    smoothing: np.ndarray
    """(N,) of the row; NaN where the row has none."""
    order: np.ndarray
    """(P,) row number at each position of the plan."""
    sources: tuple[str, ...]
    reference: np.ndarray | None = None
    """(tokens,) log-probability of each token under a frozen model; absent when none were given."""
    referenced: np.ndarray | None = None
    """(N,) how many tokens of each row, from its start, have one (the first counts, though it has none)."""

    @property
    def lengths(self) -> np.ndarray:
        """(N,) tokens of each row, before truncation."""
        return np.diff(self.starts)


def parts_of(folders: Sequence[Path]) -> list[Path]:
    """The Parquet parts of several folders, in order. Raises DataError for a folder without any."""
    parts: list[Path] = []
    for folder in folders:
        found = sorted(Path(folder).glob("*.parquet"))
        if not found:
            raise DataError("no Parquet parts", path=str(folder))
        parts += found
    return parts


def digest(plan: Path | None, folders: Sequence[Path], salt: str = "") -> str:
    """Names a copy: changes when a file, or the time it was written, changes."""
    parts = parts_of(folders) + ([plan] if plan else [])
    facts = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in parts]
    return hashlib.blake2b(json.dumps([facts, salt]).encode(), digest_size=12).hexdigest()


def build(plan: Path | None, folders: Sequence[Path], folder: Path, reference: Sequence[Path] = ()) -> None:
    """Copy the rows named by `plan` (all rows, in stored order, when None) into flat arrays in `folder`.

    A row that stands in several folders is taken from the first. `reference` has a folder of log-probabilities for
    every folder of tokens, with the same parts and the same rows in them. Raises DataError for a row of the plan that
    is in none of them, for a copy of a row that has another length, or for log-probabilities of other rows.
    """
    scratch = folder.with_name(f"{folder.name}.{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    wanted = _keys(pq.read_table(plan, columns=["id", "target"])) if plan else None
    distinct = pc.unique(wanted) if wanted is not None else None
    row_of = np.full(len(distinct) if distinct is not None else 0, -1, dtype=np.int64)
    lengths: list[np.ndarray] = []
    sources: dict[str, int] = {}
    rows = 0
    referenced: list[np.ndarray] = []
    scaled = False
    files = {name: (scratch / f"{name}.bin").open("wb") for name in _ARRAYS if name not in _AT_THE_END}
    try:
        for part, beside in _with_reference(folders, reference):
            at = 0
            for batch in pq.ParquetFile(part).iter_batches(batch_size=65_536):
                table = pa.Table.from_batches([batch]).combine_chunks()
                if beside is not None:
                    table = _joined(table, beside.slice(at, table.num_rows), part)
                    at += table.num_rows
                if distinct is not None:
                    place = pc.index_in(_keys(table), value_set=distinct).fill_null(-1).to_numpy()
                    place, table = _new_rows(place, table, row_of, lengths, part)
                    row_of[place] = rows + np.arange(len(place))
                if not table.num_rows:
                    continue
                sizes = pc.list_value_length(table["ids"]).to_numpy().astype(np.int64)
                for name in ("ids", "roles", "turns"):
                    _values(table[name], _ARRAYS[name]).tofile(files[name])
                scale = table["scale"]
                scaled |= scale.null_count < len(scale)
                _scales(scale, sizes).tofile(files["scale"])
                if beside is not None:
                    known = pc.list_value_length(table["logprobs"]).to_numpy().astype(np.int64)
                    _filled(_values(table["logprobs"], np.float32), known, sizes).tofile(files["reference"])
                    referenced.append(known)
                for name in table["source"].unique().to_pylist():
                    sources.setdefault(name, len(sources))
                codes = pc.index_in(table["source"], value_set=pa.array(list(sources)))
                codes.to_numpy().astype(np.int32).tofile(files["source"])
                for name in ("weight", "smoothing"):
                    table[name].to_numpy().astype(np.float32).tofile(files[name])
                lengths.append(sizes)
                rows += table.num_rows
    finally:
        for file in files.values():
            file.close()
    if wanted is None or distinct is None:
        order = np.arange(rows, dtype=np.int64)
    else:
        if (row_of < 0).any():
            missing = distinct.filter(pa.array(row_of < 0))
            raise DataError(
                f"{len(missing)} rows of the plan have no tokens, the first is {missing[0].as_py()}",
                path=str(plan),
                remedy="give the token folders of every table in the mix",
            )
        order = row_of[pc.index_in(wanted, value_set=distinct).to_numpy()]
    if not scaled:
        (scratch / "scale.bin").unlink()
    if reference:
        np.concatenate([*referenced, np.zeros(0, np.int64)]).tofile(scratch / "referenced.bin")
    (np.concatenate(lengths) if lengths else np.zeros(0, np.int64)).tofile(scratch / "lengths.bin")
    order.tofile(scratch / "order.bin")
    (scratch / "sources.json").write_text(json.dumps(list(sources)))
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)


def open_corpus(folder: Path) -> Corpus:
    """Map what `build` wrote."""
    arrays = {name: _map(folder / f"{name}.bin", dtype) for name, dtype in _ARRAYS.items()}
    return Corpus(
        ids=arrays["ids"],
        roles=arrays["roles"],
        turns=arrays["turns"],
        scale=arrays["scale"] if (folder / "scale.bin").exists() else None,
        starts=np.concatenate([[0], np.cumsum(arrays["lengths"])]),
        source=arrays["source"],
        weight=arrays["weight"],
        smoothing=arrays["smoothing"],
        order=arrays["order"],
        sources=tuple(json.loads((folder / "sources.json").read_text())),
        **({n: arrays[n] for n in ("reference", "referenced")} if (folder / "referenced.bin").exists() else {}),
    )


def _with_reference(folders: Sequence[Path], reference: Sequence[Path]) -> Iterator[tuple[Path, pa.Table | None]]:
    """The parts of the folders, each with the log-probabilities of its rows."""
    besides: Sequence[Path | None] = reference or [None] * len(folders)
    for folder, beside in zip(folders, besides, strict=True):
        for part in parts_of([folder]):
            yield part, None if beside is None else pq.read_table(beside / part.name)


def _joined(table: pa.Table, beside: pa.Table, part: Path) -> pa.Table:
    """The rows with their log-probabilities."""
    if not _keys(beside).equals(_keys(table)):
        raise DataError("the log-probabilities are of other rows", path=str(part))
    return table.append_column("logprobs", beside["logprobs"].combine_chunks())


def _filled(values: np.ndarray, known: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """`values` of the first `known` tokens of rows of `sizes` tokens; NaN for the others."""
    out = np.full(int(sizes.sum()), np.nan, np.float32)
    starts = np.cumsum(sizes) - sizes
    out[np.repeat(starts - (np.cumsum(known) - known), known) + np.arange(int(known.sum()))] = values
    return out


def _map(path: Path, dtype: type[np.generic]) -> np.ndarray:
    if not path.exists() or path.stat().st_size == 0:
        return np.zeros(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")


def _keys(table: pa.Table) -> pa.Array:
    joined = pc.binary_join_element_wise(table["id"], table["target"].cast(pa.string()), "/")
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined


def _new_rows(
    place: np.ndarray, table: pa.Table, row_of: np.ndarray, lengths: list[np.ndarray], part: Path
) -> tuple[np.ndarray, pa.Table]:
    """Of a batch, the rows that the plan wants and no earlier part held: their place in the plan, and the table."""
    first = np.zeros(len(place), dtype=bool)
    first[np.unique(place, return_index=True)[1]] = True
    known = (place >= 0) & (row_of[place] >= 0) if len(row_of) else np.zeros(len(place), bool)
    if known.any():
        held = np.concatenate(lengths)[row_of[place[known]]]
        sizes = pc.list_value_length(table["ids"]).to_numpy()[known]
        if (held != sizes).any():
            row = table["id"].to_pylist()[int(np.flatnonzero(known)[np.flatnonzero(held != sizes)[0]])]
            raise DataError(f"row {row} has another number of tokens than in an earlier folder", path=str(part))
    chosen = (place >= 0) & first & ~known
    return place[chosen], table.filter(pa.array(chosen))


def _values(column: pa.ChunkedArray, dtype: type[np.generic]) -> np.ndarray:
    flat = pc.list_flatten(column)
    return flat.to_numpy().astype(dtype, copy=False)


def _scales(column: pa.ChunkedArray, sizes: np.ndarray) -> np.ndarray:
    """Factors of all tokens; rows without any count 1."""
    given = column.is_valid().to_numpy()
    out = np.ones(int(sizes.sum()), dtype=np.float32)
    out[np.repeat(given, sizes)] = _values(column, np.float32)
    return out
