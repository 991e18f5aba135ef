"""Several objectives at once: which arms no other arm beats in everything.

An arm is dominated when another is at least as good in every objective and better in one. What is left is the front;
without it, what is left is the second rank, and so on (Deb et al., NSGA-II, 2002). Within a rank, arms in emptier
regions come first, so that a few finalists span the trade-off.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def costs(values: npt.ArrayLike, lower: Sequence[bool]) -> Floats:
    """(arms, objectives) with less being better everywhere; `lower` says where it is so already."""
    table = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if table.shape[1] != len(lower):
        raise ValueError("values and directions differ in number")
    return table * np.where(np.asarray(lower, dtype=bool), 1.0, -1.0)


def ranks(values: npt.ArrayLike, lower: Sequence[bool]) -> npt.NDArray[np.int64]:
    """0 for the front, 1 for what it alone dominates, and so on; -1 for arms with a missing value (NaN)."""
    table = costs(values, lower)
    rank = np.full(len(table), -1, dtype=np.int64)
    left = np.flatnonzero(np.isfinite(table).all(axis=1))
    number = 0
    while len(left):
        here = table[left]
        no_worse = (here[:, None, :] <= here[None, :, :]).all(axis=2)
        better = (here[:, None, :] < here[None, :, :]).any(axis=2)
        beaten = (no_worse & better).any(axis=0)
        rank[left[~beaten]] = number
        left = left[beaten]
        number += 1
    return rank


def front(values: npt.ArrayLike, lower: Sequence[bool]) -> npt.NDArray[np.bool_]:
    """Which arms are not dominated. Equal arms are on the front together."""
    return ranks(values, lower) == 0


def crowding(values: npt.ArrayLike) -> Floats:
    """The crowding distance of each arm among these: infinite at the ends of an objective, large in empty regions."""
    table = np.atleast_2d(np.asarray(values, dtype=np.float64))
    total = np.zeros(len(table))
    for column in table.T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]]
        total[order[[0, -1]]] = np.inf
        if span > 0:
            total[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return total


def choose(values: npt.ArrayLike, lower: Sequence[bool], count: int) -> list[int]:
    """The first `count` arms by rank, then by crowding distance, then by order. With one objective: the best ones."""
    table, rank = costs(values, lower), ranks(values, lower)
    chosen: list[int] = []
    for number in range(int(rank.max(initial=-1)) + 1):
        members = np.flatnonzero(rank == number)
        distance = crowding(table[members])
        chosen += [int(members[i]) for i in np.argsort(-distance, kind="stable")]
    return chosen[:count]


def hypervolume(values: npt.ArrayLike, lower: Sequence[bool], reference: Sequence[float]) -> float:
    """The area that two objectives dominate up to the `reference` point, in the product of their units."""
    table = costs(values, lower)
    if table.shape[1] != 2:
        raise ValueError("the area is defined for two objectives")
    corner = costs([reference], lower)[0]
    inside = table[np.isfinite(table).all(axis=1) & (table < corner).all(axis=1)]
    area, height = 0.0, float(corner[1])
    for x, y in inside[np.lexsort((inside[:, 1], inside[:, 0]))]:
        if y < height:
            area += (float(corner[0]) - float(x)) * (height - float(y))
            height = float(y)
    return area
