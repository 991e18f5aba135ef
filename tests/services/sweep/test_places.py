"""How many arms fit, and where the engine goes."""

from __future__ import annotations

from typing import Any

import pytest

from services.capacity import Capacity, Group
from services.graph import Node
from services.sweep.places import Places, places


def training(**execution: Any) -> Node:
    return Node("train", "t", {}, {}, "train-1", execution={"execution": execution})


LAPTOP = [Group("laptop", 2.0)]
EIGHT = [Group("eight", 32.0, 8.0)]


@pytest.mark.parametrize(
    ("trainings", "groups", "limit", "expected"),
    [
        ([training()], LAPTOP, None, Places(1, False)),  # it takes all CPUs
        ([training(cpus_per_worker=0.5)], LAPTOP, None, Places(4, False)),  # no second model beside trainings
        ([training(cpus_per_worker=0.5), training(cpus_per_worker=1, workers=2)], LAPTOP, None, Places(1, False)),
        ([training(cpus_per_worker=0.5)], LAPTOP, 2, Places(2, False)),
        ([training(cpus_per_worker=2)], [Group("four", 4.0, up=2, most=2)], None, Places(3, True)),
        ([training(use_gpu=True)], EIGHT, None, Places(7, True)),  # one GPU for the engine
        ([training()], EIGHT, None, Places(7, True)),
        ([training(use_gpu=True, workers=4)], EIGHT, None, Places(1, True)),
        ([training(use_gpu=True, workers=8)], EIGHT, None, Places(1, False)),  # they take turns
        ([training(workers=2)], [*EIGHT, *EIGHT], 3, Places(3, True)),
        (
            [training(use_gpu=True, workers=16)],
            EIGHT,
            None,
            Places(1, False),
        ),  # the training itself says that it is too large
        # Machines with GPUs that nobody has asked for yet.
        ([training()], [Group("head", 6.0), Group("gpu", 44.0, 4.0, up=0, most=4)], None, Places(15, True)),
        ([], LAPTOP, None, Places(1, False)),
    ],
)
def test_places(trainings: list[Node], groups: list[Group], limit: int | None, expected: Places) -> None:
    assert places(trainings, Capacity(tuple(groups)), limit) == expected
