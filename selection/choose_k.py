"""How many clusters: a sweep with silhouette and elbow, and a choice that says how little it knows.

The silhouette (Rousseeuw 1987) compares a row's mean distance to its own cluster with that to the nearest other one. It
is measured here for a sample of rows against all rows, exactly: all candidates share the distances, so that a sweep
costs little more than one. Computing it inside the sample alone, as is common, is wrong for many clusters, since most
then have one sampled row. The elbow is the candidate farthest below the chord of inertia over log k (Kneedle, Satopaa
et al. 2011).

Diversify and Conquer (arXiv 2409.11378, section 4.3) recommends the silhouette because it needs no training. It is a
weak guide: over the eight values of their Table 5 it correlates 0.56 (Pearson) with the benchmark average, and the
second best silhouette, k = 4096, trained one of the poor models. A sweep also says nothing on how k should grow with
the budget.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuvee.errors import DataError
from cuvee.rng import stream
from selection.assign import Labels, single_threaded_blas
from selection.clustering import ClusterConfig, cluster, distinct
from selection.vectors import Floats, Vectors

POOL = 262_144
"""Larger pools are swept on so many of their rows, drawn at random."""
TILE = 256

Ints = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]

WEAK = (
    "The silhouette is a weak guide: in the paper's own sweep it correlates 0.56 with the benchmark average over eight"
    " values of k, and its second best value trained a poor model."
)


@dataclass(frozen=True)
class Tried:
    """`error` is the standard error of the mean silhouette over the sampled rows."""

    k: int
    inertia: float
    iterations: int
    silhouette: float
    error: float


@dataclass(frozen=True)
class Choice:
    """`tried` is ascending in k; `elbow` is None for fewer than three candidates."""

    k: int
    elbow: int | None
    reason: str
    tried: tuple[Tried, ...]
    rows: int
    sample: int

    def record(self) -> dict[str, Any]:
        """As plain values, for JSON and the report."""
        return asdict(self)


def choose_k(vectors: Vectors, config: ClusterConfig, *, seed: int) -> Choice:
    """Sweep `config.candidates` (or powers of two) and take the highest silhouette, the smaller k of two equal ones.

    Raises DataError when the pool has fewer distinct rows than the smallest candidate.
    """
    pool = _sampled(vectors, seed)
    candidates = _candidates(pool, config)
    runs = [cluster(pool, k, rng=stream(seed, "choose_k", k), config=config) for k in candidates]
    positions = np.sort(stream(seed, "silhouette").choice(len(pool), min(config.sample, len(pool)), replace=False))
    values = silhouettes(pool, [run.assignment for run in runs], positions)
    tried = tuple(
        Tried(k, run.inertia, run.iterations, float(s.mean()), float(s.std() / np.sqrt(len(s))))
        for k, run, s in zip(candidates, runs, values, strict=True)
    )
    best = max(tried, key=lambda t: (t.silhouette, -t.k))
    bend = elbow([t.k for t in tried], [t.inertia for t in tried])
    return Choice(best.k, bend, _reason(best, bend, tried), tried, len(pool), len(positions))


def _sampled(vectors: Vectors, seed: int) -> Vectors:
    if len(vectors) <= POOL:
        return vectors
    rows = np.sort(stream(seed, "choose_k", "pool").choice(len(vectors), POOL, replace=False))
    return Vectors.of(vectors.ids.take(pa.array(rows)), vectors.take(rows))


def _candidates(pool: Vectors, config: ClusterConfig) -> list[int]:
    kinds = len(distinct(pool))
    wanted = sorted(set(config.candidates)) or [2**i for i in range(2, 13) if 2**i <= len(pool) // 16] or [2]
    possible = [k for k in wanted if k <= kinds]
    if not possible:
        raise DataError(
            f"the smallest number of clusters to try is {wanted[0]}, but only {kinds} rows are distinct",
            field="candidates",
            remedy="remove duplicates, or select without clusters",
        )
    return possible


def silhouettes(vectors: Vectors, assignments: Sequence[Labels], positions: Ints) -> list[Reals]:
    """The silhouette (m,) of the rows at `positions` under each assignment (n,); 0 for a row alone in its cluster."""
    from scipy.sparse import csr_array

    rows = vectors.take(positions)
    ks = [int(labels.max()) + 1 for labels in assignments]
    sums = [np.zeros((len(rows), k)) for k in ks]
    tiles = [slice(start, start + TILE) for start in range(0, len(rows), TILE)]

    def add(tile: slice, start: int, block: Floats, members: list[Any]) -> None:
        apart = _distances(rows[tile], block)
        own = positions[tile] - start
        inside = np.flatnonzero((own >= 0) & (own < len(block)))
        apart[inside, own[inside]] = 0.0
        for total, member in zip(sums, members, strict=True):
            total[tile] += (member @ apart.T).T

    with single_threaded_blas(), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        for start, block in vectors.blocks():
            size = len(block)
            members = [
                csr_array((np.ones(size), (labels[start : start + size], np.arange(size))), shape=(k, size))
                for labels, k in zip(assignments, ks, strict=True)
            ]
            list(threads.map(add, tiles, [start] * len(tiles), [block] * len(tiles), [members] * len(tiles)))
    return [
        _silhouette(total, np.bincount(labels, minlength=k), labels[positions])
        for total, labels, k in zip(sums, assignments, ks, strict=True)
    ]


def _distances(rows: Floats, block: Floats) -> Reals:
    squares = np.einsum("ij,ij->i", rows, rows)[:, None] + np.einsum("ij,ij->i", block, block)[None]
    return np.sqrt(np.maximum(squares - 2 * (rows @ block.T), 0)).astype(np.float64)


def _silhouette(sums: Reals, sizes: Ints, own: Labels) -> Reals:
    at = np.arange(len(own))
    inside = sums[at, own] / np.maximum(sizes[own] - 1, 1)
    means = np.divide(sums, sizes, out=np.full(sums.shape, np.inf), where=sizes > 0)
    means[at, own] = np.inf
    outside = means.min(axis=1)
    wider = np.maximum(inside, outside)
    known = (sizes[own] > 1) & np.isfinite(outside) & (wider > 0)
    return np.divide(outside - inside, wider, out=np.zeros(len(own)), where=known)


def elbow(ks: Sequence[int], inertias: Sequence[float]) -> int | None:
    """The k farthest below the chord from the first to the last candidate, over log k; None for fewer than three."""
    if len(ks) < 3 or inertias[0] <= inertias[-1]:
        return None
    x = np.log(np.array(ks, dtype=np.float64))
    y = np.array(inertias, dtype=np.float64)
    across, down = (x - x[0]) / (x[-1] - x[0]), (y - y[-1]) / (y[0] - y[-1])
    return int(ks[int(np.argmax(1 - across - down))])


def _reason(best: Tried, bend: int | None, tried: Sequence[Tried]) -> str:
    if len(tried) == 1:
        return f"{best.k} was the only candidate."
    close = [t.k for t in tried if t.k != best.k and best.silhouette - t.silhouette <= 2 * best.error]
    parts = [f"k = {best.k} has the highest mean silhouette, {best.silhouette:.3f} (standard error {best.error:.3f})."]
    if close:
        parts.append(f"Within two standard errors: {', '.join(map(str, close))}.")
    if bend is not None:
        parts.append(f"The elbow of the inertia is at {bend}{', too' if bend == best.k else ''}.")
    return " ".join([*parts, WEAK])
