"""A training stage, from its exact list to a Hugging Face folder."""

from __future__ import annotations

from typing import Any

from services.steps.base import Context, step
from services.steps.model import model_folder


@step(
    "train",
    "1",
    "training.sft",
    "training.worker",
    "training.batches",
    "training.packing",
    "training.schedule",
    "training.deepspeed_config",
    "training.objective",
    "training.regularise",
    "cuvee.loss",
    kind="train",
    draws=True,
)
def train(context: Context) -> dict[str, Any]:
    """`model/`, `metrics.jsonl` (one object a step), `train.json`, and `state/` for a stage that continues."""
    from training.objective import Objective
    from training.sft import Execution, TrainConfig
    from training.sft import train as fit

    stage = context.config["stage"]
    inputs = context.inputs
    state = inputs["init"] / "state"
    keep = context.config["optimiser"] == "keep"
    context.runtime.ray()
    result = fit(
        model=model_folder(inputs["init"]),
        plan=inputs["plan"] / f"{stage}.parquet",
        tokens=[folder / "tokens" for name, folder in sorted(inputs.items()) if name.startswith("tokens.")],
        objective=Objective.parse(context.config["objective"]),
        config=TrainConfig.model_validate(context.config["train"]),
        execution=Execution.model_validate({**context.runtime.training_defaults(), **context.execution}),
        seed=context.draw_seed(),
        out=context.out,
        work=context.work,
        stage=stage,
        init_state=state if keep else None,
        validation={
            name.removeprefix("held."): folder / "tokens"
            for name, folder in sorted(inputs.items())
            if name.startswith("held.")
        },
        env=context.runtime.environment(),
        progress=context.progress,
    )
    return dict(result.summary)
