"""The trainer against a plain PyTorch loop: same losses and weights, however the work is cut up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cuvee.errors import UserError
from tests.training.conftest import CONFIG, SHARD_ALL, STEPS, Expected, Fit, assert_same, losses_of
from tests.training.plain import Data, plain_loss, weights_of, write_reference, write_tokens
from training.objective import KL, Objective
from training.settings import Lora
from training.sft import TrainResult

MARK = 77
"""Rows of the plan after which a model is kept: inside the tenth batch of eight."""
GOLDEN = Path(__file__).parent / "golden_loss.txt"


@pytest.fixture(scope="module")
def straight(fit: Fit, data: Data, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainResult, Path]:
    """One undisturbed run on one worker, and its work folder."""
    folder = tmp_path_factory.mktemp("straight")
    held_out = write_tokens(data.rows[:12], folder / "held_out")
    seen: list[int] = []
    result = fit(
        work=folder / "work",
        validation={"held out": held_out},
        keep_state=True,
        progress=lambda line: seen.append(line["step"]),
        recipe="version: 1",
        marks={"early": MARK},
    )
    assert seen == list(range(STEPS))
    return result, folder / "work"


def test_losses_and_weights_are_those_of_a_plain_loop(straight: tuple[TrainResult, Path], expected: Expected) -> None:
    assert expected[0][-1] < expected[0][0] - 1, "the reference must learn, or this says nothing"
    assert_same(straight[0], expected)


def test_the_loss_curve_is_the_golden_one(straight: tuple[TrainResult, Path]) -> None:
    np.testing.assert_allclose(losses_of(straight[0]), np.loadtxt(GOLDEN), rtol=0, atol=1e-4)


def test_a_line_a_step_and_a_summary(straight: tuple[TrainResult, Path], data: Data) -> None:
    result, _ = straight
    lines = [json.loads(line) for line in result.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(STEPS))
    answers = sum(int((data.rows[i]["roles"][1:] == 3).sum()) for i in data.order)
    assert sum(line["tokens_trained"] for line in lines) == answers == result.summary["tokens_trained"]
    assert sum(line["tokens"] for line in lines) == sum(len(data.rows[i]["ids"]) for i in data.order)
    assert set(lines[0]["loss_by_source"]) == {"math", "code"}
    assert lines[0]["lr"] == pytest.approx(1.5e-3)
    assert lines[1]["lr"] == pytest.approx(3e-3)
    assert all(line["grad_norm"] > 0 and line["memory_gb"] > 0 for line in lines)
    assert result.summary["steps"] == STEPS
    assert json.loads((result.model.parent / "train.json").read_text()) == result.summary


def test_the_exported_model_is_the_trained_one(straight: tuple[TrainResult, Path], data: Data) -> None:
    """The loss on held-out rows, by the engine before export and by transformers after it."""
    from transformers import AutoTokenizer

    result, _ = straight
    assert result.summary["validation"]["held out"]["all"] == pytest.approx(
        plain_loss(result.model, data.rows[:12]), abs=1e-5
    )
    assert AutoTokenizer.from_pretrained(result.model).chat_template
    card = (result.model / "README.md").read_text()
    assert "| math |" in card
    assert "version: 1" in card


def test_a_run_that_is_resumed_ends_with_the_same_bits(
    fit: Fit, straight: tuple[TrainResult, Path], data: Data, tmp_path: Path
) -> None:
    first, work = straight
    shutil.copytree(work, tmp_path / "work")
    resumed = fit(work=tmp_path / "work", validation={}, marks={"early": MARK})
    assert resumed.summary["resumed_at"] == 14
    assert losses_of(resumed) == losses_of(first)
    one, two = weights_of(first.model), weights_of(resumed.model)
    assert one.keys() == two.keys()
    assert all((one[name] == two[name]).all() for name in one)
    # The mark lies before the checkpoint: its model is the one that the first run wrote.
    early = [weights_of(result.model.parent / "marked" / "early") for result in (first, resumed)]
    assert all((early[0][name] == early[1][name]).all() for name in early[0])


def test_the_model_at_a_mark_is_the_one_that_trained_on(straight: tuple[TrainResult, Path], data: Data) -> None:
    """Its loss on the next batch is the loss that the run then had."""
    result, _ = straight
    model = result.model.parent / "marked" / "early"
    following = [data.rows[i] for i in data.order[80:88]]
    assert plain_loss(model, following) == pytest.approx(losses_of(result)[10], abs=1e-5)
    assert "| taken after step | 10 |" in (model / "README.md").read_text()


def test_packed_and_accumulated_on_two_workers_at_zero_3(fit: Fit, expected: Expected) -> None:
    config = CONFIG.model_copy(update={"packing": True, "checkpoint_every": None})
    result = fit(config, execution={"workers": 2, "zero": 3, "micro_batch": 1, "deepspeed": SHARD_ALL})
    assert result.summary["workers"] == 2
    assert_same(result, expected)


def test_lora_trains_little_and_exports_a_plain_model(fit: Fit, tiny_model: Path, data: Data) -> None:
    config = CONFIG.model_copy(update={"lora": Lora(r=4, alpha=8, dropout=0.1), "checkpoint_every": None, "lr": 2e-2})
    result = fit(config, validation={"held out": data.folder}, execution={"gradient_checkpointing": True})
    before, after = weights_of(tiny_model), weights_of(result.model)
    assert before.keys() == after.keys()
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed
    assert all("proj" in name for name in changed)
    assert losses_of(result)[-1] < losses_of(result)[0] - 0.2
    assert result.summary["validation"]["held out"]["all"] == pytest.approx(
        plain_loss(result.model, data.rows), abs=1e-5
    )


def test_stored_log_probabilities_reach_the_loss(fit: Fit, data: Data, expected: Expected, tmp_path: Path) -> None:
    """Where the frozen model is certain of every token, half the penalty takes half of the loss."""
    beside = write_reference(
        data.rows, [np.zeros(len(row["ids"]), np.float32) for row in data.rows], tmp_path / "beside"
    )
    objective = Objective(kl=KL(weight=0.5, variant="target"))
    result = fit(objective=objective, reference=[beside])
    assert losses_of(result)[0] == pytest.approx(expected[0][0] / 2, abs=2e-5)


def test_errors_in_data_are_returned_and_not_tried_again(fit: Fit, data: Data, tmp_path: Path) -> None:
    short = write_tokens(data.rows[:70], tmp_path / "short")
    with pytest.raises(UserError, match="10 rows of the plan have no tokens"):
        fit(tokens=[short])


def test_wrong_settings_are_refused_before_anything_starts(fit: Fit) -> None:
    with pytest.raises(UserError, match="above the model's 512"):
        fit(CONFIG.model_copy(update={"max_len": 1024}))
    with pytest.raises(UserError, match="do not fit this cluster"):
        fit(execution={"workers": 40})
    with pytest.raises(UserError, match="GB"):
        fit(execution={"memory_gb": 0.1})
    with pytest.raises(UserError, match="no optimiser to keep"):
        fit(CONFIG.model_copy(update={"lora": Lora()}), init_state=Path("anywhere"))
    with pytest.raises(UserError, match="biases"):
        fit(CONFIG.model_copy(update={"bias_only": True}))
    with pytest.raises(UserError, match="log-probabilities of all tokens"):
        fit(objective=Objective(kl=KL(variant="target")))
