"""What the terminal says of work that goes on."""

from __future__ import annotations

import io
import math
from types import SimpleNamespace

import pytest
from rich.console import Console

from services.commands.recipes import show_results
from services.terminal import pace


@pytest.mark.parametrize(
    ("done", "seconds", "said"),
    [(0, 5.0, ""), (3, 0.0, ""), (32, 10.0, "3.2/s"), (10, 10.0, "1.0/s"), (3, 24.3, "8.1 s each")],
)
def test_pace(done: int, seconds: float, said: str) -> None:
    assert pace(done, seconds) == said


def test_a_contrast_is_told_with_interval_and_corrected_p() -> None:
    out = Console(file=io.StringIO(), width=200)
    several = {"name": "less drift", "mean": -0.1652, "low": -0.2942, "high": -0.0361, "n": 4, "p_holm": 7.7e-05}
    one = {"name": "one seed", "mean": 0.5, "low": math.nan, "high": math.nan, "n": 1, "p_holm": math.nan}
    contrasts = [{**several, "verdict": "as expected: less"}, {**one, "verdict": "greater, of one seed: no interval"}]
    found = {"changes": [], "scores": [], "retention": [], "contamination": [], "contrasts": contrasts, "noise": []}
    show_results(SimpleNamespace(out=out), found)
    assert out.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "contrast less drift: -0.1652 (-0.2942 to -0.0361), p (Holm) <0.001: as expected: less",
        "contrast one seed: +0.5000: greater, of one seed: no interval",
    ]
