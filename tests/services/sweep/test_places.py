"""How many arms fit, and where the engine goes."""

from __future__ import annotations

from typing import Any

import pytest

from services.graph import Node
from services.sweep.places import Places, places


def training(**execution: Any) -> Node:
    return Node("train", "t", {}, {}, "train-1", execution={"execution": execution})


LAPTOP = [{"CPU": 2.0}]
EIGHT = [{"CPU": 32.0, "GPU": 8.0}]


@pytest.mark.parametrize(
    ("trainings", "nodes", "limit", "expected"),
    [
        ([training()], LAPTOP, None, Places(1, False)),  # it takes all CPUs
        ([training(cpus_per_worker=0.5)], LAPTOP, None, Places(4, False)),  # no second model beside trainings
        ([training(cpus_per_worker=0.5), training(cpus_per_worker=1, workers=2)], LAPTOP, None, Places(1, False)),
        ([training(cpus_per_worker=0.5)], LAPTOP, 2, Places(2, False)),
        ([training(cpus_per_worker=2)], [{"CPU": 4.0}, {"CPU": 4.0}], None, Places(3, True)),
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
        ([], LAPTOP, None, Places(1, False)),
    ],
)
def test_places(trainings: list[Node], nodes: list[dict[str, float]], limit: int | None, expected: Places) -> None:
    assert places(trainings, nodes, limit) == expected
