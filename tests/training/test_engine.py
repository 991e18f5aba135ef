"""The engine alone, on one rank in this process: ZeRO stages, accumulation, packing, adapters, penalties, resumes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.errors import DataError, UserError
from tests.training.conftest import CONFIG, SHARD_ALL, STEPS, Expected
from tests.training.plain import Data, plain_norm, write_reference
from training import checkpoint, schedule
from training.batches import Batches
from training.corpus import Corpus, build, open_corpus
from training.engine import Engine
from training.export import export
from training.model import state_dict
from training.objective import KL, Objective, token_weights
from training.settings import Execution, TrainConfig


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import torch.distributed as dist

    store = tmp_path_factory.mktemp("store") / "store"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
            patch.setenv(name, value)
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
        yield
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def corpus(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus") / "flat"
    build(data.plan, [data.folder], folder)
    return open_corpus(folder)


@pytest.fixture(scope="module")
def logprobs(tiny_model: Path, data: Data) -> list[np.ndarray]:
    """Each row's tokens under the untrained model in plain transformers; 0 for the first."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    found = []
    with torch.inference_mode():
        for row in data.rows:
            ids = torch.tensor(row["ids"], dtype=torch.long)
            said = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
            found.append(np.concatenate([[0], said.gather(-1, ids[1:, None])[:, 0].numpy()]).astype(np.float32))
    return found


@pytest.fixture(scope="module")
def referenced(data: Data, logprobs: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The corpus with the log-probabilities of the untrained model."""
    folder = tmp_path_factory.mktemp("referenced")
    build(data.plan, [data.folder], folder / "flat", [write_reference(data.rows, logprobs, folder / "reference")])
    return open_corpus(folder / "flat")


class Trainer:
    """An engine with its batches; `run` takes the steps from one number to another and returns their losses."""

    def __init__(
        self, model: Path, corpus: Corpus, config: TrainConfig, execution: Execution, objective: Objective, **given: Any
    ) -> None:
        import torch

        self.config = config
        self.batches = Batches(
            corpus,
            partial(token_weights, objective),
            config,
            normalise=objective.normalise,
            seed=0,
            micro_batch=execution.micro_batch,
        )
        precision = "bf16" if config.precision == "bf16" else "fp32"
        device = torch.device("cpu")
        self.engine = Engine(model, objective, config, execution, precision, seed=0, device=device, **given)

    def run(self, start: int = 0, stop: int = STEPS) -> list[float]:
        losses = []
        for step in range(start, stop):
            rate = schedule.learning_rate(self.config, step, STEPS)
            sums, _ = self.engine.update(step, self.batches.micros(step), len(self.batches.corpus.sources), rate)
            losses.append(sums.loss)
        return losses

    def held_out(self) -> float:
        sums = self.engine.evaluate(map(self.batches.micros, range(10)), len(self.batches.corpus.sources))
        return float(sums.weighted.sum() / sums.weight.sum())

    def weights(self) -> dict[str, Any]:
        return state_dict(self.engine.module)


Make = Callable[..., Trainer]


@pytest.fixture(scope="module")
def make(one_rank: None, tiny_model: Path, corpus: Corpus) -> Make:
    def trainer(
        config: dict[str, Any] | None = None,
        execution: dict[str, Any] | None = None,
        objective: Objective | None = None,
        model: Path = tiny_model,
        corpus: Corpus = corpus,
        **given: Any,
    ) -> Trainer:
        settings = TrainConfig.model_validate({**CONFIG.model_dump(), **(config or {})})
        where = Execution.model_validate({"micro_batch": 8, **(execution or {})})
        return Trainer(model, corpus, settings, where, objective or Objective(), **given)

    return trainer


LAYOUTS: dict[str, dict[str, Any]] = {
    "0": {"zero": 0},
    "1": {"zero": 1},
    "2": {"zero": 2},
    "3": {"zero": 3, "deepspeed": SHARD_ALL},
}


@pytest.mark.parametrize("micro_batch", [8, 2])
@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("zero", LAYOUTS)
def test_losses_and_weights_are_those_of_a_plain_loop(
    make: Make, expected: Expected, zero: str, packing: bool, micro_batch: int
) -> None:
    trainer = make({"packing": packing}, {**LAYOUTS[zero], "micro_batch": micro_batch})
    np.testing.assert_allclose(trainer.run(), expected[0], rtol=0, atol=2e-5)
    found = trainer.weights()
    for name, tensor in expected[1].items():
        np.testing.assert_allclose(found[name], tensor, rtol=0, atol=4e-4, err_msg=name)


@pytest.mark.parametrize("zero", ["0", "2"])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_gradients_are_cut_to_the_asked_norm_and_the_norm_before_is_told(
    make: Make, tiny_model: Path, data: Data, zero: str, clip: float | None
) -> None:
    norm = plain_norm(tiny_model, [data.rows[i] for i in data.order[:8]])
    assert norm > 0.05
    trainer = make({"clip": clip, "weight_decay": 0.0}, LAYOUTS[zero])
    used: list[float] = []
    optimiser = getattr(trainer.engine.engine.optimizer, "optimizer", trainer.engine.engine.optimizer)

    def look(*_: Any) -> None:
        grads = [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
        used.append(float(sum((g.double() ** 2).sum() for g in grads)) ** 0.5)

    optimiser.register_step_pre_hook(look)
    trainer.run(0, 1)
    np.testing.assert_allclose(trainer.engine.norm, norm, rtol=1e-4)
    # Sharded, DeepSpeed steps each group of parameters by itself.
    np.testing.assert_allclose(np.linalg.norm(used), norm if clip is None else clip, rtol=1e-4)


@pytest.mark.parametrize(
    "execution",
    [
        {"gradient_checkpointing": True},
        {"zero": 3, "gradient_checkpointing": True, "deepspeed": SHARD_ALL},
        {"zero": 2, "offload": "optimiser"},
        {"zero": 3, "offload": "parameters", "deepspeed": SHARD_ALL},
        {"attention": "eager"},
    ],
    ids=str,
)
def test_what_saves_memory_changes_nothing(make: Make, expected: Expected, execution: dict[str, Any]) -> None:
    np.testing.assert_allclose(make(execution=execution).run(stop=6), expected[0][:6], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("config", "before", "after"),
    [
        *[({}, layout, layout) for layout in LAYOUTS],
        *[({}, *pair) for pair in (("0", "3"), ("1", "0"), ("2", "3"), ("3", "0"), ("3", "2"))],
        *[({"lora": {"r": 4}}, *pair) for pair in (("0", "0"), ("0", "2"), ("2", "3"), ("3", "0"))],
        *[({"precision": "bf16"}, *pair) for pair in (("1", "1"), ("1", "3"), ("2", "1"), ("3", "2"))],
    ],
    ids=str,
)
def test_a_checkpoint_goes_on(make: Make, tmp_path: Path, config: dict[str, Any], before: str, after: str) -> None:
    """In the same layout to the same bits, in another one to the last digits."""
    first = make(config, LAYOUTS[before])
    first.run(stop=4)
    first.engine.save(tmp_path / "checkpoint", {"step": 4, "fingerprint": "f"})
    straight = first.run(4, 8)
    folder = tmp_path / "checkpoint"
    assert checkpoint.read_facts(folder, "f")["step"] == 4
    if before != after:
        checkpoint.to_portable(folder, tmp_path / "portable")
        folder = tmp_path / "portable"
    second = make(config, LAYOUTS[after], resume=folder)
    resumed = second.run(4, 8)
    one, two = first.weights(), second.weights()
    if before == after:
        assert resumed == straight
        assert all((one[name] == two[name]).all() for name in one)
    else:
        tolerance = 0.02 if config.get("precision") == "bf16" else 2e-5
        np.testing.assert_allclose(resumed, straight, rtol=0, atol=tolerance)
        for name in one:
            np.testing.assert_allclose(two[name].float(), one[name].float(), rtol=0, atol=20 * tolerance, err_msg=name)


def test_a_checkpoint_of_another_run_is_refused(make: Make, tmp_path: Path) -> None:
    trainer = make()
    trainer.run(stop=1)
    trainer.engine.save(tmp_path, {"step": 1, "fingerprint": "f"})
    with pytest.raises(UserError, match="another plan, configuration or seed"):
        checkpoint.read_facts(tmp_path, "g")


@pytest.mark.parametrize(("before", "after"), [("0", "0"), ("0", "2"), ("3", "0"), ("1", "3")])
def test_the_optimiser_of_an_earlier_stage_goes_on(
    make: Make, tiny_model: Path, tmp_path: Path, before: str, after: str
) -> None:
    """The second stage starts from the exported weights; with the state it goes on as if there were one stage."""
    first = make(execution=LAYOUTS[before])
    first.run(stop=5)
    first.engine.save_state(tmp_path / "state", 5)
    export(tiny_model, first.weights(), first.config, "fp32", tmp_path / "model", "")
    second = make(execution=LAYOUTS[after], model=tmp_path / "model", init_state=tmp_path / "state")
    np.testing.assert_allclose(second.run(5, 9), first.run(5, 9), rtol=0, atol=2e-5)


def test_half_precision_is_near(make: Make, expected: Expected) -> None:
    trainer = make({"precision": "bf16"})
    assert trainer.engine.stage == 1
    np.testing.assert_allclose(trainer.run(), expected[0], rtol=0, atol=0.1)
    assert {str(tensor.dtype) for tensor in trainer.weights().values()} == {"torch.bfloat16"}


@pytest.mark.parametrize("config", [{"lora": {"r": 4, "dropout": 0.1}}, {"ia3": True}], ids=str)
def test_adapters_learn_alone(make: Make, config: dict[str, Any]) -> None:
    trainer = make({**config, "lr": 2e-2})
    before = trainer.weights()
    trainer.run(stop=4)
    changed = {name for name, tensor in trainer.weights().items() if (tensor != before[name]).any()}
    assert changed
    assert all("lora_" in name or "ia3_" in name for name in changed)


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
@pytest.mark.parametrize("zero", ["0", "3"])
def test_the_released_penalty_learns_nothing_and_the_true_one_holds_back(
    make: Make, referenced: Corpus, zero: str, lora: dict[str, Any] | None
) -> None:
    def left(objective: Objective, **given: Any) -> float:
        trainer = make({"lora": lora, "lr": 1e-2, "weight_decay": 0.0}, LAYOUTS[zero], objective, **given)
        before = trainer.held_out()
        trainer.run(stop=10)
        return before - trainer.held_out()

    free, held = left(Objective()), left(Objective(kl=KL(weight=50)))
    assert abs(left(Objective(kl=KL(weight=1, variant="target")), corpus=referenced)) < 0.05
    assert free > 0.2
    assert held < 0.75 * free


@pytest.mark.parametrize("packing", [False, True])
def test_the_target_penalty_is_that_of_the_stored_log_probabilities(
    make: Make, corpus: Corpus, data: Data, logprobs: list[np.ndarray], tmp_path: Path, packing: bool
) -> None:
    """Log-probabilities that are off by a known number a row move the loss by their weighted mean."""
    shift = np.random.default_rng(0).normal(size=len(data.rows)).astype(np.float32)
    beside = write_reference(data.rows, [a + b for a, b in zip(logprobs, shift, strict=True)], tmp_path / "reference")
    build(data.plan, [data.folder], tmp_path / "flat", [beside])
    objective = Objective(kl=KL(weight=0.5, variant="target"))
    given = {"objective": objective, "corpus": open_corpus(tmp_path / "flat")}
    trainer = make({"packing": packing}, {"micro_batch": 3}, **given)
    trained = [int((data.rows[i]["roles"] == 3).sum()) for i in data.order[:8]]
    moved = -0.5 * np.average(shift[data.order[:8]], weights=trained)
    assert trainer.run(stop=1)[0] == pytest.approx(make({"packing": packing}).run(stop=1)[0] + moved, abs=1e-4)


def test_too_few_log_probabilities_are_refused(make: Make, data: Data, tmp_path: Path) -> None:
    beside = write_reference(data.rows, [np.zeros(6, np.float32)] * len(data.rows), tmp_path / "reference")
    build(data.plan, [data.folder], tmp_path / "flat", [beside])
    with pytest.raises(DataError, match="fewer tokens than are trained"):
        make(objective=Objective(kl=KL(variant="target")), corpus=open_corpus(tmp_path / "flat"))


def test_noise_is_named_by_the_step(make: Make, tmp_path: Path) -> None:
    objective = Objective(neftune=5)
    first = make(objective=objective)
    losses = first.run(stop=2)
    first.engine.save(tmp_path, {"step": 2, "fingerprint": "f"})
    straight = first.run(2, 4)
    assert make(objective=objective, resume=tmp_path).run(2, 4) == straight
    assert make().run(stop=2) != losses
    assert make(objective=objective).run(stop=2) == losses


def test_a_model_without_biases_has_none_to_train(make: Make) -> None:
    with pytest.raises(UserError, match="nothing would train"):
        make({"bias_only": True})
