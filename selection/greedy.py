"""Greedy choices over whole vectors: k-center, Deita's filter, QDIT.

They need all vectors in memory, and each choice looks at the choices before. What makes them usable beyond a few
thousand rows is laziness that changes nothing of the result: bounds that can only fall tell which rows need not be
looked at, and work on many rows is one matrix product.

k-center: farthest-first traversal (Gonzalez 1985), a 2-approximation; the paper's "k equals the number of data points"
is read as one centre a chosen row.
Deita (arXiv 2312.15685): by falling quality, keep a row when it is far enough from all kept. The threshold is a cosine,
0.9 as in Deita's own code; the released code of arXiv 2409.11378 keeps squared L2 distances of at least 0.9, which for
unit vectors is `threshold: 0.55`.
QDIT (arXiv 2311.14736): argmax of (1 - alpha) * gain in facility location + alpha * quality, the gain being summed over
the rows to cover; lazy greedy (Minoux 1978).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from selection.vectors import Floats

Order = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]

BATCH = 512


def unit(rows: Floats) -> Floats:
    """Rows scaled to length 1; a zero row stays zero."""
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)


def k_center(rows: Floats, budget: int) -> Order:
    """The first `budget` rows of the farthest-first traversal of `rows` (n, d), in the order of choice.

    Starts at the row nearest to the mean. Ties go to the lower position.
    """
    n = len(rows)
    budget = min(budget, n)
    if not budget:
        return np.zeros(0, dtype=np.int64)
    mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    order = [int(np.argmin(_distances(rows, mean[None])[:, 0]))]
    nearest = _distances(rows, rows[order])[:, 0]
    nearest[order] = -1.0
    while len(order) < budget:
        # Distances to the chosen only fall, so a candidate that stays above the best of the others is the farthest.
        width = min(BATCH, n)
        far = np.argpartition(-nearest, width - 1)[:width]
        far = far[np.lexsort((far, -nearest[far]))]
        others = nearest[far[-1]] if width < n else -np.inf
        here, among = nearest[far].copy(), _distances(rows[far], rows[far])
        chosen: list[int] = []
        while len(order) + len(chosen) < budget:
            best = int(np.argmax(here))
            if here[best] < 0 or (chosen and here[best] <= others):
                break
            chosen.append(int(far[best]))
            here = np.minimum(here, among[:, best])
            here[best] = -1.0
        order += chosen
        nearest = np.minimum(nearest, _distances(rows, rows[chosen]).min(axis=1))
        nearest[order] = -1.0
    return np.array(order, dtype=np.int64)


def _distances(rows: Floats, centres: Floats) -> Floats:
    """Squared distances (n, m), never negative; exactly 0 between identical rows is not promised."""
    squares = np.einsum("ij,ij->i", rows, rows)[:, None] + np.einsum("ij,ij->i", centres, centres)[None]
    return np.maximum(squares - 2 * (rows @ centres.T), 0)


def deita(rows: Floats, quality: Reals, budget: int, threshold: float = 0.9) -> Order:
    """By falling quality, the rows whose cosine with every kept row is at most `threshold`, in the order of choice.

    May return fewer than `budget`: then nothing else is far enough. Ties of quality go to the lower position.
    """
    ranked = np.lexsort((np.arange(len(rows)), -quality))
    kept = np.zeros((min(budget, len(rows)), rows.shape[1]), dtype=np.float32)
    order: list[int] = []
    for start in range(0, len(ranked), BATCH):
        batch = ranked[start : start + BATCH]
        candidates = unit(rows[batch])
        near = np.any(candidates @ kept[: len(order)].T > threshold, axis=1)
        among = candidates @ candidates.T > threshold
        for i in np.flatnonzero(~near):
            if len(order) == len(kept):
                return np.array(order, dtype=np.int64)
            if not near[i]:
                kept[len(order)] = candidates[i]
                order.append(int(batch[i]))
                near |= among[i]
    return np.array(order, dtype=np.int64)


def qdit(rows: Floats, quality: Reals, budget: int, alpha: float = 0.5, cover: Order | None = None) -> Order:
    """Greedy (1 - alpha) * sum over `cover` of the rise of the best cosine + alpha * quality, in the order of choice.

    `cover`: positions of the rows to cover (default: all; n * |cover| products are made once, so a sample of some
    thousands is the practical choice for a large pool). Cosines below 0 count as 0.
    """
    rows = unit(rows)
    targets = rows if cover is None else rows[cover]
    covered = np.zeros(len(targets), dtype=np.float32)
    size = max(1, 2**24 // max(len(targets), 1))
    value = np.empty(len(rows))
    for start in range(0, len(rows), size):
        here = slice(start, start + size)
        value[here] = _value(rows[here], quality[here], targets, covered, alpha)
    order: list[int] = []
    fresh = np.ones(len(rows), dtype=bool)
    while len(order) < min(budget, len(rows)):
        # Gains only fall (submodular), so a row whose renewed value is still the largest is the choice.
        best = int(np.argmax(value))
        if fresh[best]:
            order.append(best)
            covered = np.maximum(covered, targets @ rows[best])
            value[best] = -np.inf
            fresh[:] = False
            continue
        width = min(32, len(rows) - len(order))
        stale = np.argpartition(-value, width - 1)[:width]
        stale = stale[~fresh[stale] & np.isfinite(value[stale])]
        value[stale] = _value(rows[stale], quality[stale], targets, covered, alpha)
        fresh[stale] = True
    return np.array(order, dtype=np.int64)


def _value(rows: Floats, quality: Reals, targets: Floats, covered: Floats, alpha: float) -> Reals:
    gain = np.maximum(rows @ targets.T - covered, 0).sum(axis=1, dtype=np.float64)
    return (1 - alpha) * gain + alpha * quality
