from __future__ import annotations

import pytest

from cuvee.errors import UserError
from training.deepspeed_config import settings, stage_of
from training.settings import Execution, TrainConfig

CONFIG = TrainConfig(lr=1e-4, clip=0.5)


def test_stages_and_offload() -> None:
    made = settings(CONFIG, Execution(zero=3, offload="parameters"), "bf16")
    assert made["zero_optimization"]["stage"] == 3
    assert made["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert made["zero_optimization"]["offload_param"]["device"] == "cpu"
    assert made["bf16"] == {"enabled": True}
    assert made["gradient_clipping"] == 0.5


def test_the_engine_clips_at_stage_0() -> None:
    assert settings(CONFIG, Execution(zero=0, deepspeed={"gradient_clipping": 0.5}), "fp32")["gradient_clipping"] == 0.0


def test_half_precision_keeps_master_weights() -> None:
    assert stage_of(Execution(zero=0), "bf16") == 1
    assert stage_of(Execution(zero=0), "fp32") == 0


def test_raw_settings_are_merged() -> None:
    raw = {"zero_optimization": {"stage": "auto", "reduce_bucket_size": 1000}, "flops_profiler": {"enabled": False}}
    made = settings(CONFIG, Execution(zero=2, deepspeed=raw), "fp32")
    assert made["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000}
    assert made["flops_profiler"] == {"enabled": False}


@pytest.mark.parametrize(
    ("raw", "place"),
    [
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps"),
        ({"optimizer": {"type": "Lamb", "params": {}}}, "optimizer"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler"),
        ({"gradient_clipping": 1.0}, "gradient_clipping"),
        ({"bf16": {"enabled": True}}, "bf16.enabled"),
    ],
)
def test_raw_settings_that_contradict_the_recipe_are_refused(raw: dict[str, object], place: str) -> None:
    with pytest.raises(UserError, match=place):
        settings(CONFIG, Execution(zero=2, deepspeed=raw), "fp32")
