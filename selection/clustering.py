"""k-means over vectors that need not fit in memory.

Full Lloyd, as in Diversify and Conquer (arXiv 2409.11378, section 2.1), and not mini-batch: with one matrix product a
chunk it is as fast as the reading, and it has no learning rate. Seeds are random rows: at 512 clusters k-means++ costs
twenty times the iterations that follow and ends at the same inertia (`seeding: k-means++` runs it on a sample).

The same bits come out for any number of threads, workers, part files and any row order: chunks have `CHUNK` rows in id
order, each chunk is one thread's work with a single-threaded BLAS (which is also faster than threads inside BLAS), its
sums are float64, sums of chunks are added in chunk order within a group and groups in group order. This holds on one
kind of processor; another kind may round a near tie differently.

A pass holds one chunk a thread, the sums, and for each row a label and a distance: 8 bytes, where a vector of 384 has
1,536.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from cuvee.config import Config
from cuvee.errors import DataError, UserError
from selection.vectors import CHUNK, Floats, Vectors

GROUP = 16 * CHUNK
"""Rows of one worker's task. Fixed, like `CHUNK`: sums are made per group."""
TILE = 512
"""Rows of one matrix product: its distances to 1,024 centres stay in the cache."""

Labels = npt.NDArray[np.int32]
Reals = npt.NDArray[np.float64]
T = TypeVar("T")
S = TypeVar("S")


class ClusterConfig(Config):
    k: int | Literal["auto"] = Field(default=512, description="number of clusters; auto: see choose_k")
    iterations: int = Field(default=50, ge=1, description="at most so many updates of the centres")
    tolerance: float = Field(default=1e-4, ge=0, description="stop when the inertia falls by a smaller share than this")
    seeding: Literal["random", "k-means++"] = "random"
    restarts: int = Field(default=1, ge=1, description="runs from other seeds; the lowest inertia is kept")
    candidates: tuple[int, ...] = Field(default=(), description="for k: auto; empty is powers of two up to rows / 16")
    sample: int = Field(default=2000, ge=2, description="for k: auto: rows whose silhouette is measured")


@dataclass(frozen=True)
class Clustering:
    """`assignment` (n,) and `distance` (n,), Euclidean to the own centre, are in the order of the vectors' ids.

    `inertia` is the sum of squared distances; `history` the inertia before each update, of the run that was kept.
    """

    centres: Floats
    assignment: Labels
    distance: Floats
    inertia: float
    iterations: int
    history: tuple[float, ...] = field(default=())

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        return np.bincount(self.assignment, minlength=len(self.centres))

    def write(self, folder: Path, ids: pa.ChunkedArray) -> None:
        """As `assignment.parquet` (id, cluster, distance), `centres.npy` and `clustering.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        columns = [ids, pa.array(self.assignment), pa.array(self.distance)]
        pq.write_table(pa.table(columns, names=["id", "cluster", "distance"]), folder / "assignment.parquet")
        np.save(folder / "centres.npy", self.centres)
        facts = {"inertia": self.inertia, "iterations": self.iterations, "history": list(self.history)}
        (folder / "clustering.json").write_text(json.dumps(facts))

    @classmethod
    def read(cls, folder: Path) -> Clustering:
        table = pq.read_table(folder / "assignment.parquet", columns=["cluster", "distance"])
        facts = json.loads((folder / "clustering.json").read_text())
        return cls(
            centres=np.load(folder / "centres.npy"),
            assignment=table["cluster"].to_numpy(),
            distance=table["distance"].to_numpy(),
            inertia=facts["inertia"],
            iterations=facts["iterations"],
            history=tuple(facts["history"]),
        )


def cluster(
    vectors: Vectors,
    k: int,
    *,
    rng: np.random.Generator,
    config: ClusterConfig | None = None,
    threads: int | None = None,
    workers: int = 0,
    device: str = "cpu",
    progress: Callable[[int, float], None] | None = None,
) -> Clustering:
    """k-means with k centres.

    `threads` of this process (default: all cores), or `workers` Ray tasks at a time when given (the vectors must be a
    folder that the workers see). `device` "cuda" makes the matrix products there. `progress` gets (update, inertia).
    Raises DataError for k above the number of distinct rows, and for NaN; UserError for k < 1.
    """
    config = config or ClusterConfig()
    if k < 1:
        raise UserError(f"{k} clusters")
    if k > len(vectors):
        raise DataError(f"{k} clusters of {len(vectors)} rows", field="clusters", remedy="lower clusters")
    passes = _Passes(vectors, threads or len(os.sched_getaffinity(0)), workers, device)
    with single_threaded_blas():
        runs = (_lloyd(vectors, k, rng, config, passes, progress) for _ in range(config.restarts))
        return min(runs, key=lambda run: run.inertia)


def _lloyd(
    vectors: Vectors,
    k: int,
    rng: np.random.Generator,
    config: ClusterConfig,
    passes: _Passes,
    progress: Callable[[int, float], None] | None,
) -> Clustering:
    centres = seeds(vectors, k, rng, config.seeding)
    history: list[float] = []
    while len(history) < config.iterations:
        step = passes(centres)
        history.append(step.inertia)
        if progress:
            progress(len(history), step.inertia)
        empty = np.flatnonzero(step.counts == 0)
        if len(empty):
            _reseed(vectors, centres, step, empty)
        filled = step.counts > 0
        centres[filled] = (step.sums[filled] / step.counts[filled, None]).astype(np.float32)
        if not len(empty) and len(history) > 1 and history[-2] - history[-1] <= config.tolerance * history[-2]:
            break
    last = passes(centres, exact=True)
    return Clustering(centres, last.labels, np.sqrt(last.squares), last.inertia, len(history), tuple(history))


# seeding


def seeds(vectors: Vectors, k: int, rng: np.random.Generator, seeding: str = "random") -> Floats:
    """k distinct rows (k, d) to start from. Raises DataError when there are not so many."""
    if seeding == "k-means++":
        from sklearn.cluster import kmeans_plusplus

        positions = np.sort(rng.choice(len(vectors), min(len(vectors), 16 * k), replace=False))
        rows, _ = kmeans_plusplus(vectors.take(positions), k, random_state=int(rng.integers(2**31)))
    else:
        rows = vectors.take(np.sort(rng.choice(len(vectors), k, replace=False)))
    if not np.isfinite(rows).all():
        _check_finite(vectors)
    if len(np.unique(rows, axis=0)) == k:
        return np.ascontiguousarray(rows, dtype=np.float32)
    # Duplicates among the rows drawn: draw from the first of each kind instead.
    kinds = distinct(vectors)
    if len(kinds) < k:
        raise DataError(
            f"{k} clusters, but only {len(kinds)} of the {len(vectors)} vectors are distinct",
            field="clusters",
            remedy="lower clusters, or remove duplicates first",
        )
    return vectors.take(np.sort(rng.choice(kinds, k, replace=False)))


def distinct(vectors: Vectors) -> npt.NDArray[np.int64]:
    """Positions of the first row of each kind of identical rows, by a 64-bit hash: 8 bytes a row of memory."""
    width = vectors.dim + vectors.dim % 2
    factors = np.random.Generator(np.random.PCG64(0)).integers(0, 2**63, width // 2, dtype=np.uint64) * 2 + 1
    hashes = np.empty(len(vectors), dtype=np.uint64)
    for start, block in vectors.blocks():
        padded = np.zeros((len(block), width), dtype=np.float32)
        padded[:, : vectors.dim] = block + 0.0  # -0.0 equals 0.0
        words = padded.view(np.uint64)
        words ^= words >> np.uint64(29)
        hashes[start : start + len(block)] = (words * factors).sum(axis=1, dtype=np.uint64)
    return np.sort(np.unique(hashes, return_index=True)[1]).astype(np.int64)


def _check_finite(vectors: Vectors) -> None:
    for start, block in vectors.blocks():
        bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
        if len(bad):
            name = vectors.ids[start + int(bad[0])].as_py()
            raise DataError(
                f"the vector of row {name} is not finite", path=str(vectors.folder or ""), field="embedding"
            )


def _reseed(vectors: Vectors, centres: Floats, step: _Step, empty: npt.NDArray[np.int64]) -> None:
    """Give each empty cluster the farthest row that is left, and take the row out of the sums of its old cluster."""
    many = min(len(vectors), 4 * len(empty) + 64)
    far = np.argpartition(-step.squares, many - 1)[:many]
    far = far[np.lexsort((far, -step.squares[far]))]
    rows = vectors.take(far)
    _, first = np.unique(rows, axis=0, return_index=True)
    waiting = list(empty[::-1])
    for i in np.sort(first):
        row, old = rows[i].astype(np.float64), step.labels[far[i]]
        apart = ((row - centres[old]) ** 2).sum() > 1e-10 * max((row**2).sum(), 1e-30)
        if not waiting:
            return
        if apart and step.counts[old] > 1:
            new = waiting.pop()
            step.sums[old] -= row
            step.counts[old] -= 1
            step.sums[new], step.counts[new] = row, 1


# passes


@dataclass
class _Step:
    """One pass over rows: labels and squared distances (rows,), sums (k, d), counts (k,), inertia."""

    labels: Labels
    squares: Floats
    sums: Reals
    counts: npt.NDArray[np.int64]
    inertia: float


class _Passes:
    """Assigns every row to its nearest centre, on threads here or on Ray workers, with the same bits."""

    def __init__(self, vectors: Vectors, threads: int, workers: int, device: str) -> None:
        if workers and vectors.folder is None:
            raise UserError("workers need vectors in a folder", remedy="write them with write_vectors")
        self.vectors, self.threads, self.workers, self.device = vectors, threads, workers, device

    def __call__(self, centres: Floats, exact: bool = False) -> _Step:
        if not np.isfinite(centres).all():
            _check_finite(self.vectors)
        n = len(self.vectors)
        groups = self._on_workers(centres, exact) if self.workers else self._on_threads(centres, exact)
        step = _join(groups, n, centres.shape)
        if not np.isfinite(step.inertia):
            _check_finite(self.vectors)
        return step

    def _on_threads(self, centres: Floats, exact: bool) -> Iterator[_Step]:
        with ThreadPoolExecutor(self.threads) as pool:
            chunks = _ahead(
                self.vectors.blocks(),
                lambda item: pool.submit(_assign, item[1], centres, exact, self.device),
                2 * self.threads,
            )
            steps = (future.result() for future in chunks)
            for start in range(0, len(self.vectors), GROUP):
                rows = min(GROUP, len(self.vectors) - start)
                yield _join(islice(steps, -(-rows // CHUNK)), rows, centres.shape)

    def _on_workers(self, centres: Floats, exact: bool) -> Iterator[_Step]:
        import ray

        gpus = 1 if self.device == "cuda" else 0
        task = ray.remote(num_cpus=1, num_gpus=gpus)(assign_group)
        handle = ray.put(centres)
        folder = str(self.vectors.folder)
        refs = _ahead(
            iter(range(0, len(self.vectors), GROUP)),
            lambda start: task.remote(folder, start, handle, exact, self.device),
            self.workers,
        )
        for ref in refs:
            yield ray.get(ref)


def assign_group(folder: str, start: int, centres: Floats, exact: bool, device: str) -> _Step:
    """A worker's task: the pass over the `GROUP` rows from `start`."""
    vectors = Vectors.open(Path(folder))
    stop = min(start + GROUP, len(vectors))
    with single_threaded_blas():
        steps = (_assign(block, centres, exact, device) for _, block in vectors.blocks(start, stop))
        return _join(steps, stop - start, centres.shape)


def _join(steps: Iterable[_Step], rows: int, shape: tuple[int, ...]) -> _Step:
    """Consecutive steps as one; sums are added in the order given."""
    whole = _Step(
        np.empty(rows, dtype=np.int32), np.empty(rows, dtype=np.float32), np.zeros(shape), np.zeros(shape[0], int), 0.0
    )
    at = 0
    for step in steps:
        end = at + len(step.labels)
        whole.labels[at:end], whole.squares[at:end] = step.labels, step.squares
        whole.sums += step.sums
        whole.counts += step.counts
        whole.inertia += step.inertia
        at = end
    return whole


def _ahead(items: Iterator[S], start: Callable[[S], T], many: int) -> Iterator[T]:
    """What `start` returns for each item, in order, with up to `many` started before the first is taken."""
    waiting: list[T] = [start(item) for item in islice(items, many)]
    while waiting:
        yield waiting.pop(0)
        waiting += [start(item) for item in islice(items, 1)]


def _assign(block: Floats, centres: Floats, exact: bool, device: str) -> _Step:
    """The pass over one chunk. `exact`: distances from differences, not from the expanded square."""
    from scipy.sparse import csc_array

    k = len(centres)
    half = (centres.astype(np.float64) ** 2).sum(axis=1).astype(np.float32) / 2
    nearest = _nearest_cpu if device == "cpu" else _nearest_torch
    labels, best = nearest(block, centres, half, device)
    if exact:
        squares = np.concatenate([_squares(block[i : i + TILE] - centres[labels[i : i + TILE]]) for i in _tiles(block)])
    else:
        squares = np.maximum(_squares(block) - 2 * best, 0)
    sums = np.zeros(centres.shape)
    for i in _tiles(block):
        tile = block[i : i + TILE].astype(np.float64)
        ones = (np.ones(len(tile)), labels[i : i + TILE], np.arange(len(tile) + 1))
        sums += csc_array(ones, shape=(k, len(tile))) @ tile
    return _Step(labels, squares, sums, np.bincount(labels, minlength=k), float(squares.sum(dtype=np.float64)))


def _nearest_cpu(block: Floats, centres: Floats, half: Floats, device: str) -> tuple[Labels, Floats]:
    """argmax of x.c - |c|^2 / 2, which is the nearest centre, and its value. Ties go to the lower number."""
    labels, best = np.empty(len(block), dtype=np.int32), np.empty(len(block), dtype=np.float32)
    scores = np.empty((TILE, len(centres)), dtype=np.float32)
    for i in _tiles(block):
        tile = block[i : i + TILE]
        here = np.matmul(tile, centres.T, out=scores[: len(tile)])
        here -= half
        labels[i : i + TILE] = here.argmax(axis=1)
        best[i : i + TILE] = here[np.arange(len(tile)), labels[i : i + TILE]]
    return labels, best


def _nearest_torch(block: Floats, centres: Floats, half: Floats, device: str) -> tuple[Labels, Floats]:
    import torch

    rows, middle = torch.tensor(block, device=device), torch.tensor(centres, device=device)
    best, labels = (rows @ middle.T - torch.tensor(half, device=device)).max(dim=1)
    return labels.to(torch.int32).cpu().numpy(), best.cpu().numpy()


def _tiles(block: Floats) -> range:
    return range(0, len(block), TILE)


def _squares(rows: Floats) -> Floats:
    return np.einsum("ij,ij->i", rows, rows)


def single_threaded_blas() -> Any:
    """Context manager: threads are ours, over chunks, so that a product has the same bits on any number of them."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(limits=1, user_api="blas")
