"""Messages over pipes: eight bytes of length, then the bytes."""

from __future__ import annotations

import os

LIMIT = 64 << 20
"""Longest message in bytes. A program that answers more is cut off rather than read."""


def send(fd: int, data: bytes) -> None:
    view = memoryview(len(data).to_bytes(8, "little") + data)
    while view:
        view = view[os.write(fd, view) :]


def receive(fd: int) -> bytes | None:
    """None at the end of the stream. Raises ValueError for a message over the limit."""
    head = _exactly(fd, 8)
    if head is None:
        return None
    size = int.from_bytes(head, "little")
    if size > LIMIT:
        raise ValueError(f"a message of {size} bytes")
    return _exactly(fd, size)


def _exactly(fd: int, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        piece = os.read(fd, min(size - len(data), 1 << 20))
        if not piece:
            return None
        data += piece
    return bytes(data)
