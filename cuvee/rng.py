"""Seeded streams.

Every random draw takes a generator from here. A stream is named by the recipe's seed and a path of words
(`stream(seed, "select", "math")`), so that adding one draw never moves another, and the same name gives the same
numbers on any machine and in any process.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def stream_seed(seed: int, *path: str | int) -> int:
    """A 64-bit seed for the named stream."""
    text = "\x1f".join([str(int(seed)), *(str(part) for part in path)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def stream(seed: int, *path: str | int) -> np.random.Generator:
    """A generator (PCG64) for the named stream."""
    return np.random.Generator(np.random.PCG64(stream_seed(seed, *path)))


def row_keys(
    seed: int, *path: str | int, ids: pa.Array | pa.ChunkedArray, number: np.ndarray | None = None
) -> np.ndarray:
    """One 64-bit number for each row (uint64, shape [rows]): a draw that belongs to the row itself.

    It depends on the stream, the id and the optional `number` (target, copy) alone, so that sorting by it gives a
    permutation that is the same for any row order and any split into blocks, and that adding rows never reorders the
    others: prefixes of it nest. Ties are left to the caller (sort by id next).
    """
    words, lengths = _words(ids)
    state = _mix(np.uint64(stream_seed(seed, *path)) ^ lengths)
    for column in range(words.shape[1]):
        state = np.where(lengths > 8 * column, _mix(state ^ words[:, column]), state)  # no trace of the padding
    return state if number is None else _mix(state ^ np.asarray(number).astype(np.uint64))


def _words(ids: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """The UTF-8 bytes of each id, padded with zeros to 64-bit words (shape [rows, words]), and their lengths."""
    chunked = ids if isinstance(ids, pa.ChunkedArray) else pa.chunked_array([ids])
    array = pc.cast(chunked, pa.large_binary()).combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # combine_chunks keeps an empty chunked array
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], pa.large_binary())
    if array.null_count:
        raise ValueError("a row without an id")
    _, offset_buffer, data = array.buffers()
    if len(array) == 0:
        return np.zeros((0, 0), np.uint64), np.zeros(0, np.uint64)
    offsets = np.frombuffer(offset_buffer, np.int64)[array.offset : array.offset + len(array) + 1]
    lengths = np.diff(offsets)
    width = -(-int(lengths.max()) // 8) * 8
    padded = np.zeros((len(array), width), np.uint8)
    filled = np.arange(width) < lengths[:, None]
    padded[filled] = np.frombuffer(data or b"", np.uint8)[offsets[0] : offsets[-1]]
    return padded.view("<u8").astype(np.uint64, copy=False), lengths.astype(np.uint64)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014) after one step of its counter."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
