"""Seeded streams.

Every random draw takes a generator from here. A stream is named by the recipe's seed and a path of words
(`stream(seed, "select", "math")`), so that adding one draw never moves another, and the same name gives the same
numbers on any machine and in any process.
"""

from __future__ import annotations

import hashlib

import numpy as np


def stream_seed(seed: int, *path: str | int) -> int:
    """A 64-bit seed for the named stream."""
    text = "\x1f".join([str(int(seed)), *(str(part) for part in path)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def stream(seed: int, *path: str | int) -> np.random.Generator:
    """A generator (PCG64) for the named stream."""
    return np.random.Generator(np.random.PCG64(stream_seed(seed, *path)))
