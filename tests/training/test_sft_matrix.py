"""The rest of the matrix: every ZeRO stage, numbers of workers, accumulation, packing, and ways to go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cuvee.errors import UserError
from tests.training.conftest import CONFIG, SHARD_ALL, Expected, Fit, assert_same, losses_of
from tests.training.plain import Data, weights_of
from training.objective import KL, Objective
from training.settings import Lora
from training.sft import TrainConfig, TrainResult

pytestmark = pytest.mark.slow

PLAIN = CONFIG.model_copy(update={"checkpoint_every": None})


@pytest.mark.parametrize(
    ("execution", "packing"),
    [
        ({"zero": 0, "micro_batch": 2}, False),
        ({"zero": 0, "workers": 2}, False),
        ({"zero": 0, "micro_batch": 1}, True),
        ({"zero": 1, "micro_batch": 2}, False),
        ({"zero": 1, "workers": 2, "micro_batch": 2}, True),
        ({"zero": 2, "micro_batch": 8}, False),
        ({"zero": 2, "workers": 2, "micro_batch": 2}, False),
        ({"zero": 3, "micro_batch": 2, "gradient_checkpointing": True, "deepspeed": SHARD_ALL}, False),
        ({"zero": 3, "workers": 2, "deepspeed": SHARD_ALL}, False),
        ({"zero": 2, "offload": "optimiser"}, False),
        ({"zero": 3, "offload": "parameters", "deepspeed": SHARD_ALL}, False),
        ({"attention": "eager"}, True),
    ],
    ids=str,
)
def test_same_losses_and_weights(fit: Fit, expected: Expected, execution: dict[str, Any], packing: bool) -> None:
    assert_same(fit(PLAIN.model_copy(update={"packing": packing}), execution=execution), expected)


@pytest.fixture(scope="module")
def portable(fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainResult, Path]:
    work = tmp_path_factory.mktemp("portable") / "work"
    return fit(work=work, execution={"checkpoints": "portable"}), work


@pytest.mark.parametrize(
    "execution",
    [
        {"zero": 0, "workers": 1},
        {"zero": 0, "workers": 2},
        {"zero": 1, "workers": 2},
        {"zero": 2, "workers": 1},
        {"zero": 3, "workers": 2, "deepspeed": SHARD_ALL},
    ],
    ids=str,
)
def test_a_portable_checkpoint_goes_on_in_any_layout(
    fit: Fit, portable: tuple[TrainResult, Path], expected: Expected, tmp_path: Path, execution: dict[str, Any]
) -> None:
    first, work = portable
    shutil.copytree(work, tmp_path / "work")
    resumed = fit(work=tmp_path / "work", execution=execution)
    assert resumed.summary["resumed_at"] == 14
    assert_same(resumed, expected)
    if execution == {"zero": 0, "workers": 1}:
        one, two = weights_of(first.model), weights_of(resumed.model)
        assert all((one[name] == two[name]).all() for name in one)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_a_sharded_checkpoint_goes_on_with_another_number_of_workers(
    fit: Fit, expected: Expected, tmp_path: Path, zero: int, before: int, after: int
) -> None:
    raw = {"deepspeed": SHARD_ALL} if zero == 3 else {}
    fit(work=tmp_path / "work", execution={"zero": zero, "workers": before, **raw})
    resumed = fit(work=tmp_path / "work", execution={"zero": zero, "workers": after, **raw})
    assert resumed.summary["resumed_at"] == 14
    assert_same(resumed, expected)


def test_a_sharded_checkpoint_of_another_stage_is_refused(fit: Fit, tmp_path: Path) -> None:
    fit(work=tmp_path / "work")
    with pytest.raises(UserError, match=r"at ZeRO 0 .* at ZeRO 2"):
        fit(work=tmp_path / "work", execution={"zero": 2})


def test_a_checkpoint_of_another_run_is_refused(fit: Fit, tmp_path: Path) -> None:
    fit(work=tmp_path / "work")
    with pytest.raises(UserError, match="another plan, configuration or seed"):
        fit(CONFIG.model_copy(update={"lr": 1e-4}), work=tmp_path / "work")


@pytest.mark.parametrize("second", [{"zero": 0}, {"zero": 2, "workers": 2}], ids=str)
def test_two_stages_with_the_optimiser_kept_are_one(
    fit: Fit, data: Data, expected: Expected, tmp_path: Path, second: dict[str, Any]
) -> None:
    """Ten steps, then ten more under the same schedule: as one run of twenty."""
    plan = pq.read_table(data.plan)
    for name, part in (("first", plan.slice(0, 80)), ("second", plan.slice(80))):
        pq.write_table(part, tmp_path / f"{name}.parquet")
    one = fit(PLAIN, plan=tmp_path / "first.parquet", keep_state=True, steps_total=20)
    two = fit(
        PLAIN,
        plan=tmp_path / "second.parquet",
        model=one.model,
        init_state=one.state,
        steps_before=10,
        steps_total=20,
        execution=second,
    )
    np.testing.assert_allclose(losses_of(one) + losses_of(two), expected[0], rtol=0, atol=2e-5)
    saved = weights_of(two.model)
    for name, tensor in expected[1].items():
        np.testing.assert_allclose(saved[name], tensor, rtol=0, atol=4e-4, err_msg=name)


def test_half_precision_is_near(fit: Fit, expected: Expected) -> None:
    result = fit(PLAIN.model_copy(update={"precision": "bf16"}))
    assert (result.summary["precision"], result.summary["zero"]) == ("bf16", 1)
    np.testing.assert_allclose(losses_of(result), expected[0], rtol=0, atol=0.1)
    assert all(str(tensor.dtype) == "torch.bfloat16" for tensor in weights_of(result.model).values())


def test_length_grouping_trains_the_same_rows(fit: Fit, data: Data) -> None:
    result = fit(PLAIN.model_copy(update={"length_grouping": True}), validation={"a": data.folder})
    assert result.summary["tokens"] == sum(len(data.rows[i]["ids"]) for i in data.order)


@pytest.mark.parametrize("lora", [None, Lora(r=4)], ids=["full", "lora"])
def test_the_released_penalty_learns_nothing_and_the_true_one_holds_back(
    fit: Fit, data: Data, lora: Lora | None
) -> None:
    config = PLAIN.model_copy(update={"lora": lora, "weight_decay": 0.0, "lr": 1e-2})
    free = fit(config, validation={"a": data.folder}).summary["validation"]["a"]["all"]
    losses = {}
    for name, kl in (("full", KL(weight=5)), ("target", KL(weight=1, variant="target"))):
        result = fit(config, validation={"a": data.folder}, objective=Objective(kl=kl))
        losses[name] = result.summary["validation"]["a"]["all"]
        lines = [json.loads(line) for line in result.metrics.read_text().splitlines()]
        if name == "target":
            assert all(line["grad_norm"] < 1e-4 for line in lines)
    assert losses["target"] == pytest.approx(6.95, abs=0.1)
    assert free < losses["full"] < losses["target"]


def test_noise_is_the_same_after_a_resume(fit: Fit, tmp_path: Path) -> None:
    config, objective = CONFIG, Objective(neftune=5)
    first = fit(config, objective=objective, work=tmp_path / "work")
    resumed = fit(config, objective=objective, work=tmp_path / "work")
    assert resumed.summary["resumed_at"] == 14
    one, two = weights_of(first.model), weights_of(resumed.model)
    assert all((one[name] == two[name]).all() for name in one)


def test_ia3_trains_and_merges(fit: Fit, tiny_model: Path) -> None:
    config = TrainConfig.model_validate({**PLAIN.model_dump(), "ia3": True, "lr": 3e-2})
    result = fit(config)
    assert losses_of(result)[-1] < losses_of(result)[0]
    assert weights_of(result.model).keys() == weights_of(tiny_model).keys()
