"""k-means over vectors that need not fit in memory.

Full Lloyd, as in Diversify and Conquer (arXiv 2409.11378, section 2.1), and not mini-batch: with one matrix product a
chunk it is as fast as the reading, and it has no learning rate. Seeds are random rows: at 512 clusters k-means++ costs
twenty times the iterations that follow and ends at the same inertia (`seeding: k-means++` runs it on a sample).

The result is the same for any number of threads, workers, part files and any row order (see `assign`). This holds on
one kind of processor; another kind may round a near tie differently.

A pass holds one chunk a thread, the sums, and for each row a label and a distance: 8 bytes, where a vector of 384 has
1,536.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from cuvee.config import Config
from cuvee.errors import DataError, UserError
from selection.assign import Labels, Passes, Step, Workers, check_finite, single_threaded_blas
from selection.vectors import Floats, Vectors

IN_MEMORY = 2**30
"""Vectors of at most so many bytes are read once; larger ones are read again in every pass."""


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


def cluster(
    vectors: Vectors,
    k: int,
    *,
    rng: np.random.Generator,
    config: ClusterConfig | None = None,
    threads: int | None = None,
    workers: Workers | None = None,
    device: str = "cpu",
    progress: Callable[[int, float], None] | None = None,
) -> Clustering:
    """k-means with k centres.

    `threads` of this process (default: all cores), or Ray tasks on `workers` when given (the vectors must
    be a folder). `device` "cuda" makes the matrix products there. `progress` gets (update, inertia).
    Raises DataError for k above the number of distinct rows, and for NaN; UserError for k < 1.
    """
    config = config or ClusterConfig()
    if k < 1:
        raise UserError(f"{k} clusters")
    if k > len(vectors):
        raise DataError(f"{k} clusters of {len(vectors)} rows", field="clusters", remedy="lower clusters")
    if not workers and vectors.folder is not None and len(vectors) * vectors.dim * 4 <= IN_MEMORY:
        vectors = Vectors.of(vectors.ids, vectors.load())
    passes = Passes(vectors, threads or len(os.sched_getaffinity(0)), device, workers)
    with single_threaded_blas():
        runs = (_lloyd(vectors, k, rng, config, passes, progress) for _ in range(config.restarts))
        return min(runs, key=lambda run: run.inertia)


def _lloyd(
    vectors: Vectors,
    k: int,
    rng: np.random.Generator,
    config: ClusterConfig,
    passes: Passes,
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
        check_finite(vectors)
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


def _reseed(vectors: Vectors, centres: Floats, step: Step, empty: npt.NDArray[np.int64]) -> None:
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
