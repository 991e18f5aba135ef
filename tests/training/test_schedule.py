from __future__ import annotations

import pytest

from training.schedule import learning_rate, warmup_steps
from training.settings import TrainConfig


def rates(steps: int, **settings: object) -> list[float]:
    config = TrainConfig(lr=1.0, **settings)  # type: ignore[arg-type]
    return [learning_rate(config, step, steps) for step in range(steps)]


def test_cosine_by_hand() -> None:
    assert rates(6, schedule="cosine", warmup=2) == pytest.approx([0.5, 1, 1, 0.853553, 0.5, 0.146447], abs=1e-6)


def test_linear_by_hand() -> None:
    assert rates(5, schedule="linear", warmup=1) == pytest.approx([1, 1, 0.75, 0.5, 0.25])


def test_constant_after_warm_up() -> None:
    assert rates(4, schedule="constant", warmup=0.5) == [0.5, 1, 1, 1]


@pytest.mark.parametrize(
    ("warmup", "steps", "expected"), [(0.03, 10, 1), (0, 10, 0), (0.5, 7, 4), (3, 10, 3), (30, 10, 10)]
)
def test_warm_up_as_share_or_as_number(warmup: float, steps: int, expected: int) -> None:
    assert warmup_steps(TrainConfig(warmup=warmup), steps) == expected


def test_every_step_moves() -> None:
    for schedule in ("cosine", "linear", "constant"):
        assert min(rates(50, schedule=schedule, warmup=0.1)) > 0
