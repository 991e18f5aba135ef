"""Near duplicates by MinHash (Broder 1997): groups of texts that share most of their word 5-grams.

The signatures come from rensa; banding and grouping are array operations here, because an index that answers one query
at a time would lose that speed, and because its answers depend on the order of insertion. Groups are connected
components over verified pairs: the result is a property of the set of texts, not of their order.

Five-grams keep numbers apart: two word problems from one template with other figures share few of them, as they
should, while a passage with another question shares most.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from selection.hygiene import words

PERMUTATIONS = 128
BANDS = 16
"""16 bands of 8 values: pairs of Jaccard similarity 0.8 become candidates with probability 0.95, of 0.5 with 0.06."""
GRAM = 5
_SEED = 20_240_917
_CHUNK = 8192


def signatures(texts: Sequence[str]) -> NDArray[np.uint32]:
    """MinHash signatures, shape (texts, PERMUTATIONS). Texts shorter than five words are one gram."""
    from rensa import RMinHash

    parts = [np.empty((0, PERMUTATIONS), np.uint32)]
    for start in range(0, len(texts), _CHUNK):
        grams = [_grams(text) for text in texts[start : start + _CHUNK]]
        matrix = RMinHash.digest_matrix_from_token_sets(grams, PERMUTATIONS, _SEED)
        parts.append(np.asarray(matrix.to_rows(), np.uint32))
    return np.concatenate(parts)


def _grams(text: str) -> list[str]:
    w = words(text)
    return [" ".join(w[i : i + GRAM]) for i in range(max(len(w) - GRAM + 1, 1))]


def near_groups(texts: Sequence[str], threshold: float) -> NDArray[np.int64]:
    """A group number for each text, shape (texts,); the number is the smallest index of the group's members.

    `threshold` is a Jaccard similarity in (0, 1], estimated with a standard error of at most 0.045. Empty texts
    are near nothing. The grouping does not depend on the order of the texts except for the numbers.
    """
    import scipy.sparse
    import scipy.sparse.csgraph

    n = len(texts)
    group = np.arange(n, dtype=np.int64)
    live = np.asarray([i for i, text in enumerate(texts) if words(text)], np.int64)
    if live.size < 2:
        return group
    left, right = _pairs(signatures([texts[i] for i in live]), threshold)
    graph = scipy.sparse.coo_matrix((np.ones(left.size, np.int8), (left, right)), shape=(live.size, live.size))
    _, label = scipy.sparse.csgraph.connected_components(graph, directed=False)
    first = np.full(int(label.max()) + 1, live.size, np.int64)
    np.minimum.at(first, label, np.arange(live.size))
    group[live] = live[first[label]]
    return group


def _pairs(rows: NDArray[np.uint32], threshold: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs that share a band and whose signatures agree in at least `threshold` of their values.

    In each bucket every text is compared with a leader; those that are unlike it form a bucket of their own, until none
    is left, so that a bucket with two groups in it yields both.
    """
    width = PERMUTATIONS // BANDS
    order = np.lexsort(rows.T[::-1])  # leaders follow from the values, not from the order given
    ranked = np.ascontiguousarray(rows[order])
    lefts, rights = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for band in range(BANDS):
        key = np.ascontiguousarray(ranked[:, band * width : (band + 1) * width]).view(f"V{4 * width}").ravel()
        _, bucket = np.unique(key, return_inverse=True)
        member = np.argsort(bucket, kind="stable")
        while member.size:
            _, starts, inverse = np.unique(bucket[member], return_index=True, return_inverse=True)
            leader = member[starts][inverse]
            alike = _agreement(ranked, member, leader) >= threshold
            found = alike & (member != leader)
            lefts.append(order[leader[found]])
            rights.append(order[member[found]])
            member = member[~alike]
    return np.concatenate(lefts), np.concatenate(rights)


def _agreement(rows: NDArray[np.uint32], a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.float64]:
    parts = [np.empty(0)]
    for start in range(0, a.size, _CHUNK):
        stop = start + _CHUNK
        parts.append((rows[a[start:stop]] == rows[b[start:stop]]).mean(axis=1))
    return np.concatenate(parts)
