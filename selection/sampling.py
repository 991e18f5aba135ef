"""How many from each group, and which.

Allocation. A budget is split over groups in proportion to weights, never beyond a group's size, by largest remainder:
what a full group cannot take goes to the others in proportion, so that the counts always sum to the budget. (The
released code of Diversify and Conquer, arXiv 2409.11378, takes the floor and clips: it loses up to K - 1 rows and every
shortfall.)

Draw. Without replacement with probability proportional to weight is the Gumbel-top-k trick: the largest log weight +
Gumbel noise win (Efraimidis and Spirakis 2006; Kool et al. 2019, arXiv 1903.06059). Everything stays in logs, so a
softmax over raw scores cannot overflow. The noise of a row is a hash of its id and the seed: the draw is the same in
any row order, on any number of machines, and a row that is added changes no other row's noise.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuvee.errors import DataError, UserError

Counts = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]
Allocation = Literal["size", "equal"]


def allocate(
    sizes: npt.ArrayLike, budget: int, allocation: Allocation = "size", minimum: int | npt.ArrayLike = 0
) -> Counts:
    """Rows from each group: proportional to its size, or the same number from every group.

    `sizes` (k,) rows in each group, `minimum` at least so many from each (clipped to its size). Sums to
    min(budget, sum(sizes)). Raises UserError when the minimums need more than the budget.
    """
    caps = np.asarray(sizes, dtype=np.int64)
    weights = caps.astype(np.float64) if allocation == "size" else (caps > 0).astype(np.float64)
    return apportion(weights, caps, budget, minimum)


def apportion(weights: npt.ArrayLike, caps: npt.ArrayLike, budget: int, minimum: int | npt.ArrayLike = 0) -> Counts:
    """Split `budget` in proportion to `weights` (k,) within 0 <= minimum <= count <= caps.

    Groups of weight 0 get rows only when all the others are full. Ties of remainders go to the lower group number.
    """
    upper = np.asarray(caps, dtype=np.int64)
    shares = np.asarray(weights, dtype=np.float64)
    if shares.shape != upper.shape or not np.isfinite(shares).all() or (shares < 0).any() or (upper < 0).any():
        raise ValueError("weights and caps must be finite, not negative, and of one shape")
    lower = np.minimum(np.broadcast_to(np.asarray(minimum, dtype=np.int64), upper.shape), upper)
    total = min(int(budget), int(upper.sum()))
    if lower.sum() > total:
        raise UserError(
            f"the minimums need {int(lower.sum())} rows, the budget is {total}", remedy="raise the amount or lower them"
        )
    weighted = shares > 0
    reachable = int(np.where(weighted, upper, lower).sum())
    if reachable < total:  # the weighted groups are full: the rest comes from the others, by size
        lower = np.where(weighted, upper, lower)
        shares = np.where(weighted, 0.0, upper.astype(np.float64))
    return _round(_quotas(shares, lower, upper, total), lower, upper, total)


def _quotas(shares: Reals, lower: Counts, upper: Counts, total: int) -> Reals:
    """clip(scale * shares, lower, upper) for the one scale at which they sum to `total` (bisection)."""
    if not (shares > 0).any():
        return lower.astype(np.float64)
    shares = shares / shares.max()
    low, high = 0.0, 1.0
    while np.clip(high * shares, lower, upper).sum() < total and high < 1e300:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if np.clip(middle * shares, lower, upper).sum() < total:
            low = middle
        else:
            high = middle
    return np.clip(high * shares, lower, upper)


def _round(quotas: Reals, lower: Counts, upper: Counts, total: int) -> Counts:
    quotas = np.round(quotas, 9)  # bisection leaves noise that must not break ties
    counts = np.clip(np.floor(quotas).astype(np.int64), lower, upper)
    while (left := total - int(counts.sum())) > 0:
        order = np.argsort(-(quotas - counts), kind="stable")
        counts[order[counts[order] < upper[order]][:left]] += 1
    return counts


def uniforms(ids: pa.Array | pa.ChunkedArray, seed: int) -> Reals:
    """A number in (0, 1) for each id: a hash of the id's bytes and the seed, made without a Python object a row."""
    column = ids if isinstance(ids, pa.ChunkedArray) else pa.chunked_array([ids])
    parts = [_hash(chunk, seed) for chunk in column.chunks if len(chunk)]
    states = np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)
    return (states >> np.uint64(12)).astype(np.float64) * 2.0**-52 + 2.0**-53


def _hash(chunk: pa.Array, seed: int) -> npt.NDArray[np.uint64]:
    """Eight bytes at a time, and at last the length, so that an id's hash does not depend on the ids beside it."""
    chunk = chunk.cast(pa.large_string())
    if chunk.null_count:
        raise DataError("a row has no id", field="id")
    _, offset_buffer, data_buffer = chunk.buffers()
    offsets = np.frombuffer(offset_buffer, dtype=np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
    data = np.frombuffer(data_buffer, dtype=np.uint8) if data_buffer else np.zeros(0, dtype=np.uint8)
    lengths = np.diff(offsets)
    width = -(-int(lengths.max()) // 8) * 8
    if (lengths == width).all():  # ids of one length, as ours are
        padded = data[offsets[0] : offsets[-1]].reshape(len(chunk), width)
    else:
        padded = np.zeros((len(chunk), width), dtype=np.uint8)
        padded[np.arange(width) < lengths[:, None]] = data[offsets[0] : offsets[-1]]
    state = np.full(len(chunk), np.uint64(seed % 2**64))
    for i, word in enumerate(padded.view(np.dtype("<u8")).T):
        state = np.where(lengths > 8 * i, _mix(state ^ word), state)
    return _mix(state ^ lengths.astype(np.uint64))


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al. 2014): every bit of the input changes half of the output's."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def log_weights(
    quality: Reals, weighting: Literal["proportional", "softmax"] = "proportional", temperature: float = 1.0
) -> Reals:
    """Log of each row's weight: log q, or q / temperature for a softmax. Raises DataError for NaN or a negative q."""
    wrong = ~np.isfinite(quality)
    if wrong.any():
        raise DataError(f"{int(wrong.sum())} of {len(quality)} rows have no finite quality")
    if weighting == "softmax":
        return quality / temperature
    if (quality < 0).any():
        raise DataError(
            f"{int((quality < 0).sum())} of {len(quality)} qualities are negative and cannot be proportions",
            remedy="write weighting: softmax",
        )
    with np.errstate(divide="ignore"):
        return np.log(quality)


def softmax(x: npt.ArrayLike, temperature: float = 1.0) -> Reals:
    """exp(x / temperature) over its sum, without overflow. -inf has probability 0; all -inf is uniform."""
    scaled = np.asarray(x, dtype=np.float64) / temperature
    top = scaled.max(initial=-np.inf)
    if not np.isfinite(top):
        return np.full(len(scaled), 1.0 / max(len(scaled), 1))
    powers = np.exp(scaled - top)
    return powers / powers.sum()


def draw_groups(log_weight: Reals, group: npt.NDArray[Any], counts: Counts, noise: Reals) -> npt.NDArray[np.int64]:
    """`counts[g]` rows of each group g without replacement: positions, ascending. One sort for all groups."""
    gumbel = -np.log(-np.log(noise))
    # Rows of weight 0 come after all others of their group, in the order of their noise.
    dead = np.isneginf(log_weight)
    order = np.argsort(-np.where(dead, gumbel, log_weight + gumbel), kind="stable")
    if dead.any():
        order = order[np.argsort(dead[order], kind="stable")]
    # Stable sorts by falling importance are one sort by all keys; up to 16 bits numpy's is a radix sort.
    order = order[np.argsort(group[order].astype(np.min_scalar_type(len(counts))), kind="stable")]
    return np.sort(leading(order, group, counts))


def leading(order: npt.NDArray[np.int64], group: npt.NDArray[Any], counts: Counts) -> npt.NDArray[np.int64]:
    """The first `counts[g]` rows of each group, of positions in an order that has the groups one after the other."""
    sizes = np.bincount(group, minlength=len(counts))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return order[rank < counts[group[order]]]


def draw_counts(
    log_weight: Reals, group: npt.NDArray[Any], counts: Counts, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """With replacement: how often each row is drawn, (n,), `counts[g]` times in group g (the paper's multinomial)."""
    out = np.zeros(len(group), dtype=np.int64)
    order = np.argsort(group, kind="stable")
    ends = np.cumsum(np.bincount(group, minlength=len(counts)))
    for number, end in enumerate(ends):
        members = order[0 if number == 0 else ends[number - 1] : end]
        if len(members) and counts[number]:
            out[members] = rng.multinomial(counts[number], softmax(log_weight[members]))
    return out


def probabilities(log_weight: Reals, group: npt.NDArray[Any]) -> Reals:
    """The probability of each row in a single draw from its group; uniform in a group whose weights are all 0."""
    k = int(group.max()) + 1 if len(group) else 0
    top = np.full(k, -np.inf)
    np.maximum.at(top, group, log_weight)
    top[np.isneginf(top)] = 0.0
    powers = np.exp(log_weight - top[group])
    sums = np.bincount(group, weights=powers, minlength=k)
    sizes = np.bincount(group, minlength=k)
    return np.where(sums[group] > 0, powers / np.where(sums[group] > 0, sums[group], 1.0), 1.0 / sizes[group])
