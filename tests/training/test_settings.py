from __future__ import annotations

import pytest
from pydantic import ValidationError

from training.settings import Execution, Lora, TrainConfig


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 0},
        {"warmup": 1.5},
        {"betas": (0.9, 1.0)},
        {"qlora": True},
        {"lora": {"r": 4}, "ia3": True},
        {"clip": 0},
        {"learning_rate": 1e-4},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TrainConfig.model_validate(settings)


@pytest.mark.parametrize(
    "settings", [{"offload": "parameters", "zero": 2}, {"offload": "optimiser"}, {"zero": 4}, {"workers": 0}]
)
def test_execution_that_makes_no_sense_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Execution.model_validate(settings)


def test_checkpoints_are_not_in_the_key() -> None:
    often = TrainConfig(checkpoint_every=1, checkpoint_minutes=None, keep=9)
    assert often.key() == TrainConfig().key()
    assert TrainConfig(lora=Lora(r=4)).key() != TrainConfig().key()
