"""One pass of k-means: every row to its nearest centre, and the sums that make the next centres.

The same bits come out for any number of threads, workers and part files: a chunk of `CHUNK` rows is one thread's work
with a single-threaded BLAS (which is also faster than threads inside BLAS), its sums are float64, sums of chunks are
added in chunk order within a group of `GROUP` rows, and groups in order. A group is a worker's task: at 1,024 clusters
of 384 its sums are 3 MB, so that a pass over 100 million rows moves 2.4 GB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from cuvee.errors import DataError, UserError
from selection.vectors import CHUNK, Floats, Vectors

GROUP = 16 * CHUNK
TILE = 1024
"""Rows of one matrix product: its distances to 1,024 centres are 4 MB."""

Labels = npt.NDArray[np.int32]
Reals = npt.NDArray[np.float64]
T = TypeVar("T")
S = TypeVar("S")


@dataclass
class Step:
    """One pass over rows: labels and squared distances (rows,), sums (k, d), counts (k,), inertia."""

    labels: Labels
    squares: Floats
    sums: Reals
    counts: npt.NDArray[np.int64]
    inertia: float


@dataclass(frozen=True)
class Workers:
    """`count` Ray tasks at a time with Ray's `options`. `bring` finds the folder of the vectors on their machine."""

    count: int
    options: Mapping[str, Any] = field(default_factory=dict)
    bring: Callable[[Path], Path] = Path


class Passes:
    """Assigns every row to its nearest centre, on threads here or on Ray workers, with the same bits."""

    def __init__(self, vectors: Vectors, threads: int, device: str, workers: Workers | None = None) -> None:
        if workers and vectors.folder is None:
            raise UserError("workers need vectors in a folder", remedy="write them with write_vectors")
        self.vectors, self.threads, self.workers, self.device = vectors, threads, workers, device

    def __call__(self, centres: Floats, exact: bool = False) -> Step:
        if not np.isfinite(centres).all():
            check_finite(self.vectors)
        n = len(self.vectors)
        groups = self._on_workers(self.workers, centres, exact) if self.workers else self._on_threads(centres, exact)
        step = _join(groups, n, centres.shape)
        if not np.isfinite(step.inertia):
            check_finite(self.vectors)
        return step

    def _on_threads(self, centres: Floats, exact: bool) -> Iterator[Step]:
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

    def _on_workers(self, workers: Workers, centres: Floats, exact: bool) -> Iterator[Step]:
        import ray

        gpus = 1 if self.device == "cuda" else 0
        options: dict[str, Any] = {"num_cpus": 1, "num_gpus": gpus, "scheduling_strategy": "SPREAD", **workers.options}
        task = ray.remote(**options)(assign_group)
        handle = ray.put(centres)
        folder = self.vectors.folder
        assert folder is not None
        refs = _ahead(
            iter(range(0, len(self.vectors), GROUP)),
            lambda start: task.remote(workers.bring, folder, start, handle, exact, self.device),
            workers.count,
        )
        for ref in refs:
            yield ray.get(ref)


def assign_group(
    bring: Callable[[Path], Path], folder: Path, start: int, centres: Floats, exact: bool, device: str
) -> Step:
    """A worker's task: the pass over the `GROUP` rows from `start`."""
    vectors = Vectors.open(bring(folder))
    stop = min(start + GROUP, len(vectors))
    with single_threaded_blas():
        steps = (_assign(block, centres, exact, device) for _, block in vectors.blocks(start, stop))
        return _join(steps, stop - start, centres.shape)


def _join(steps: Iterable[Step], rows: int, shape: tuple[int, ...]) -> Step:
    """Consecutive steps as one; sums are added in the order given."""
    whole = Step(
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


def _assign(block: Floats, centres: Floats, exact: bool, device: str) -> Step:
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
    members = csc_array((np.ones(len(block)), labels, np.arange(len(block) + 1)), shape=(k, len(block)))
    sums = members @ block.astype(np.float64)
    return Step(labels, squares, sums, np.bincount(labels, minlength=k), float(squares.sum(dtype=np.float64)))


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


def check_finite(vectors: Vectors) -> None:
    for start, block in vectors.blocks():
        bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
        if len(bad):
            name = vectors.ids[start + int(bad[0])].as_py()
            raise DataError(
                f"the vector of row {name} is not finite", path=str(vectors.folder or ""), field="embedding"
            )
