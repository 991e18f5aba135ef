"""The rest of the matrix: every ZeRO stage, numbers of workers, accumulation, packing, and ways to go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cuvee.errors import DataError, UserError
from tests.training.conftest import CONFIG, SHARD_ALL, Expected, Fit, assert_same, losses_of
from tests.training.plain import Data, weights_of
from training.objective import Objective
from training.settings import Lora

pytestmark = pytest.mark.slow

PLAIN = CONFIG.model_copy(update={"checkpoint_every": None})


@pytest.mark.parametrize(
    ("execution", "packing"),
    [
        ({"zero": 0, "workers": 2, "micro_batch": 2}, False),
        ({"zero": 1, "workers": 2, "micro_batch": 2}, True),
        ({"zero": 2, "workers": 2, "micro_batch": 1}, False),
        ({"zero": 2, "workers": 2, "micro_batch": 4}, True),
        ({"zero": 3, "workers": 2, "deepspeed": SHARD_ALL}, False),
    ],
    ids=str,
)
def test_same_losses_and_weights(fit: Fit, expected: Expected, execution: dict[str, Any], packing: bool) -> None:
    assert_same(fit(PLAIN.model_copy(update={"packing": packing}), execution=execution), expected)


LAYOUTS: dict[str, dict[str, Any]] = {
    "0": {"zero": 0},
    "0, two workers": {"zero": 0, "workers": 2},
    "1, two workers": {"zero": 1, "workers": 2},
    "2": {"zero": 2},
    "2, two workers": {"zero": 2, "workers": 2},
    "3, two workers": {"zero": 3, "workers": 2, "deepspeed": SHARD_ALL},
}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("0", "0, two workers"),
        ("0, two workers", "3, two workers"),
        ("1, two workers", "0"),
        ("2, two workers", "2"),
        ("3, two workers", "2, two workers"),
    ],
)
def test_a_run_goes_on_in_another_layout(fit: Fit, expected: Expected, tmp_path: Path, before: str, after: str) -> None:
    fit(work=tmp_path / "work", execution=LAYOUTS[before])
    resumed = fit(work=tmp_path / "work", execution=LAYOUTS[after])
    assert resumed.summary["resumed_at"] == 14
    assert_same(resumed, expected)


def test_adapters_go_on_in_another_layout(fit: Fit, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"lora": Lora(r=4), "lr": 1e-2})
    first = fit(config, work=tmp_path / "work", execution=LAYOUTS["2, two workers"])
    resumed = fit(config, work=tmp_path / "work", execution=LAYOUTS["0"])
    assert resumed.summary["resumed_at"] == 14
    np.testing.assert_allclose(losses_of(resumed), losses_of(first), rtol=0, atol=2e-5)


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


def test_length_grouping_trains_the_same_rows(fit: Fit, data: Data) -> None:
    result = fit(PLAIN.model_copy(update={"length_grouping": True}), validation={"a": data.folder})
    assert result.summary["tokens"] == sum(len(data.rows[i]["ids"]) for i in data.order)


def test_an_objective_that_trains_nothing_is_an_error(fit: Fit) -> None:
    with pytest.raises(DataError, match="no token of the first 10 batches carries loss"):
        fit(PLAIN, objective=Objective(weights={"assistant": 0}))


def test_a_folder_that_a_worker_does_not_see_is_an_error(fit: Fit, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not see"):
        fit(PLAIN, init_state=tmp_path / "absent")
