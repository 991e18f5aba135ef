"""Packing: several rows in one sequence, so that no computation is spent on padding.

Rows are packed inside one global batch. The batch, and with it the loss, is therefore the same as without packing;
only the arrangement in memory differs, and no row is moved to another step. The price is a less full last bin.

The packer is best-fit decreasing (Johnson, 1974; at most 11/9 of the least number of bins): longest row first, into
the fullest bin that still takes it. Free space is a whole number of tokens below the capacity, so bins are kept in one
list per free space, and one integer as a bit set tells which lists are not empty; a row costs one shift.

No attention crosses rows: positions restart at every row and no mask is given, from which transformers builds a block
mask, or cumulative lengths for FlashAttention. Whether a model honours that is not a matter of trust: see `leaks`.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np


def pack(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[list[int]]:
    """Bins of row numbers; every row is in exactly one bin and no bin exceeds `capacity` tokens.

    Raises ValueError for a row that is longer than the capacity or empty.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if sizes.size and (sizes.max() > capacity or sizes.min() < 1):
        raise ValueError(f"lengths must lie between 1 and {capacity}")
    bins: list[list[int]] = []
    by_space: list[list[int]] = [[] for _ in range(capacity + 1)]
    occupied = 0
    for row in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[row])
        fitting = occupied >> size
        if fitting:
            space = size + (fitting & -fitting).bit_length() - 1
            number = by_space[space].pop()
            if not by_space[space]:
                occupied ^= 1 << space
            bins[number].append(row)
        else:
            space, number = capacity, len(bins)
            bins.append([row])
        left = space - size
        if left:
            by_space[left].append(number)
            occupied |= 1 << left
    return bins


def balance(lengths: Sequence[int] | np.ndarray, capacity: int, ranks: int) -> list[list[int]]:
    """Like `pack`, with a multiple of `ranks` bins of about equal size, so that no rank waits for another.

    Longest row first into the emptiest bin (Graham, 1969). Falls back to `pack` where that overflows a bin.
    """
    bins = pack(lengths, capacity)
    count = -(-len(bins) // ranks) * ranks
    if ranks == 1 or count > len(lengths):
        return bins
    sizes = np.asarray(lengths, dtype=np.int64)
    loads = [(0, number) for number in range(count)]
    even: list[list[int]] = [[] for _ in range(count)]
    for row in np.argsort(-sizes, kind="stable").tolist():
        load, number = heapq.heappop(loads)
        if load + int(sizes[row]) > capacity:
            return bins
        even[number].append(row)
        heapq.heappush(loads, (load + int(sizes[row]), number))
    return even


def leaks(model: Any, vocabulary: int) -> float:
    """Largest difference of a row's logits when another row is packed before it, relative to the largest logit.

    A few tokens through the real model: about 0 (rounding) where rows are kept apart, about 1 where they are not, as
    in models with a recurrent state that ignores positions.
    """
    import torch

    device = next(model.parameters()).device
    first = torch.arange(1, 7, device=device) % vocabulary
    second = torch.arange(11, 19, device=device) % vocabulary
    positions = torch.cat([torch.arange(6, device=device), torch.arange(8, device=device)])
    was_training = model.training
    model.eval()
    with torch.no_grad():
        alone = model(input_ids=second[None], position_ids=positions[None, 6:], use_cache=False).logits[0]
        packed = model(
            input_ids=torch.cat([first, second])[None], position_ids=positions[None], use_cache=False
        ).logits[0, 6:]
    model.train(was_training)
    return float((packed.float() - alone.float()).abs().max() / alone.float().abs().max())
