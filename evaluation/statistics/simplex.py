"""Points of a search space that fill it evenly.

Scrambled Sobol points (Owen, 1998) leave smaller gaps than independent draws of the same number, which is what a budget
of a few dozen arms needs. Shares that sum to one come from them by exponential variables: if u_i are uniform, then
-ln(u_i) divided by their sum is uniform on the simplex (Devroye, "Non-Uniform Random Variate Generation", 1986,
ch. XI), so that no source is favoured and the order of the sources means nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
EDGE = 1e-9
"""How near to 0 and 1 a coordinate may come: their logarithms must exist."""


def sobol(count: int, dims: int, rng: np.random.Generator, *, start: int = 0) -> Floats:
    """Points `start` to `start + count` of a scrambled sequence, shape (count, dims), strictly inside (0, 1).

    Generators that were seeded alike give the same sequence, so that a search can be continued at any point.
    """
    from scipy.stats import qmc

    if dims < 1 or count < 0 or start < 0:
        raise ValueError("dims must be at least 1, count and start not negative")
    whole = 1 << max(0, int(start + count - 1).bit_length())  # scipy warns of numbers that are no powers of two
    points = qmc.Sobol(dims, scramble=True, rng=rng).random(whole)[start : start + count]
    return np.clip(points, EDGE, 1 - EDGE)


def simplex(points: npt.ArrayLike, floor: float = 0.0) -> Floats:
    """Shares from points of the unit cube, shape (points, sources): positive, each row summing to one.

    `floor` is the least share of each source; what is left of one after the floors is shared out.
    """
    cube = np.clip(np.atleast_2d(np.asarray(points, dtype=np.float64)), EDGE, 1 - EDGE)
    sources = cube.shape[1]
    if sources < 2:
        raise ValueError("one source has nothing to share out")
    if not 0 <= floor < 1 / sources:
        raise ValueError(f"a floor of {floor} leaves nothing to share among {sources} sources")
    waits = -np.log(cube)
    return floor + (1 - floor * sources) * waits / waits.sum(axis=1, keepdims=True)
