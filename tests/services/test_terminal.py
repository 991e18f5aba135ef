"""What the terminal says of work that goes on."""

from __future__ import annotations

import pytest

from services.terminal import pace


@pytest.mark.parametrize(
    ("done", "seconds", "said"),
    [(0, 5.0, ""), (3, 0.0, ""), (32, 10.0, "3.2/s"), (10, 10.0, "1.0/s"), (3, 24.3, "8.1 s each")],
)
def test_pace(done: int, seconds: float, said: str) -> None:
    assert pace(done, seconds) == said
