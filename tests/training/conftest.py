"""One set of rows, the plain loop's answer to it, and a way to run the trainer on it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.plain import Data, make_data, plain_loop, weights_of
from training.objective import Objective
from training.sft import Execution, TrainConfig, TrainResult, train

# Ray Train asks its workers every two seconds how they are; a run of twenty steps is over by then.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")

CONFIG = TrainConfig(
    lr=3e-3,
    warmup=0.1,
    global_batch=8,
    max_len=64,
    weight_decay=0.1,
    precision="fp32",
    checkpoint_every=7,
    checkpoint_minutes=None,
)
STEPS = 20
SHARD_ALL = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}

Fit = Callable[..., TrainResult]
Expected = tuple[list[float], dict[str, Any]]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return make_data(tmp_path_factory.mktemp("data"), rows=80, epochs=2)


@pytest.fixture(scope="session")
def expected(tiny_model: Path, data: Data) -> Expected:
    """Losses and final weights of the plain loop."""
    return plain_loop(tiny_model, data, lr=3e-3, batch=8, warmup=2, decay=0.1)


@pytest.fixture(scope="session")
def fit(ray_session: None, tiny_model: Path, data: Data, tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """Runs the trainer: `fit(config, execution={…}, …)` with the arguments of `train`, all of which have a default."""

    def run(config: TrainConfig = CONFIG, **settings: Any) -> TrainResult:
        folder = tmp_path_factory.mktemp("fit")
        execution = Execution(**{"micro_batch": 8, **settings.pop("execution", {})})
        given: dict[str, Any] = {
            "plan": data.plan,
            "tokens": [data.folder],
            "model": tiny_model,
            "objective": Objective(),
            "work": folder / "work",
            **settings,
        }
        return train(config=config, execution=execution, seed=0, out=folder / "out", stage="only", **given)

    return run


def losses_of(result: TrainResult) -> list[float]:
    return [json.loads(line)["loss"] for line in result.metrics.read_text().splitlines()]


def assert_same(result: TrainResult, expected: Expected, tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(losses_of(result), expected[0], rtol=0, atol=tolerance)
    saved = weights_of(result.model)
    for name, tensor in expected[1].items():
        np.testing.assert_allclose(saved[name], tensor, rtol=0, atol=20 * tolerance, err_msg=name)
