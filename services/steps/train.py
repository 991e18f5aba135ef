"""A training stage, from its exact list to a Hugging Face folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from cuvee.errors import DataError, UserError
from cuvee.protocols import ScoreRequest
from services.steps.base import Context, step
from services.steps.model import model_folder


@step(
    "train",
    "2",
    "training.sft",
    "training.settings",
    "training.worker",
    "training.engine",
    "training.reference",
    "training.corpus",
    "training.model",
    "training.export",
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
    """`model/`, `metrics.jsonl` (one object a step), `train.json`, `state/` for a stage that continues, and
    `marked/<epoch>/` for the epochs at whose end the model is measured."""
    from training.objective import Objective
    from training.sft import Execution, TrainConfig
    from training.sft import train as fit

    settings, execution = context.config, context.execution
    stage, inputs = settings["stage"], context.inputs
    config = TrainConfig.model_validate({**settings["train"], **execution["saving"]})
    plan = inputs["plan"] / f"{stage}.parquet"
    span = [(name.split(".", 2)[2], folder) for name, folder in sorted(inputs.items()) if name.startswith("span.")]
    lengths = {name: config.steps(count_rows(folder / f"{name}.parquet")) for name, folder in span}
    before = list(lengths)[: list(lengths).index(stage)] if lengths else []
    total = config.steps(count_rows(plan))
    where, env = context.runtime.training(context)
    result = fit(
        model=model_folder(inputs["init"]),
        plan=plan,
        tokens=[folder / "tokens" for folder in parts(context, "tokens.")],
        reference=[folder / "reference" for folder in parts(context, "reference.")],
        objective=Objective.parse(settings["objective"]),
        config=config,
        execution=Execution.model_validate(where),
        seed=context.draw_seed(),
        out=context.out,
        work=context.work,
        stage=stage,
        init_state=inputs["init"] / "state" if settings["optimiser"] == "keep" else None,
        keep_state=settings["keep_state"],
        validation={
            name.removeprefix("held."): folder / "tokens"
            for name, folder in sorted(inputs.items())
            if name.startswith("held.")
        },
        env=env,
        progress=lambda line: context.progress(int(line["step"]), total),
        steps_before=sum(lengths[name] for name in before),
        steps_total=sum(lengths.values()) if lengths else None,
        marks={str(number): rows_until(plan, number) for number in settings.get("epochs", [])},
        recipe=execution["recipe"],
        carrier=context.runtime.carrier,
    )
    context.runtime.carried(context)
    return dict(result.summary)


@step("epoch", "1")
def epoch(context: Context) -> dict[str, Any]:
    """`model/`: the model at the end of an epoch, out of a training that kept it."""
    from training.sft import link

    number = context.config["epoch"]
    shutil.copytree(context.inputs["train"] / "marked" / str(number), context.out / "model", copy_function=link)
    return {"epoch": number}


def rows_until(plan: Path, epochs: int) -> int:
    """Rows in the first `epochs` epochs of a stage's list."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    return int(pc.sum(pc.less(pq.read_table(plan, columns=["epoch"])["epoch"], epochs)).as_py())


@step("reference", "1", kind="engine")
def reference(context: Context) -> dict[str, Any]:
    """`reference/`: part by part the rows of a tokens table with each token's log-probability under a frozen model.

    One pass serves every arm whose stage starts from that model, whatever the weight of its penalty.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    score = context.runtime.engine_for(context, "model").score
    if score is None:
        raise UserError("a KL penalty needs log-probabilities, which an endpoint does not give")
    schema = pa.schema({"id": pa.string(), "target": pa.int32(), "logprobs": pa.list_(pa.float32())}.items())
    (context.out / "reference").mkdir()
    rows = tokens = 0
    for part in sorted((context.inputs["tokens"] / "tokens").glob("*.parquet")):
        with pq.ParquetWriter(context.out / "reference" / part.name, schema, compression="zstd") as writer:
            for batch in pq.ParquetFile(part).iter_batches(batch_size=4096, columns=["id", "target", "ids"]):
                asked = [
                    ScoreRequest(id=row["id"], draw=row["target"], ids=tuple(row["ids"][: context.config["max_len"]]))
                    for row in batch.to_pylist()
                ]
                found = {(answer.id, answer.draw): answer for answer in score(asked)}
                answers = [found[request.id, request.draw] for request in asked]
                for answer in answers:
                    if answer.error or answer.truncated:
                        raise DataError(
                            f"no log-probabilities of row {answer.id}: {answer.error or 'longer than the context'}",
                            remedy="lower max_len, or raise the model's",
                        )
                # The first token has none: nothing predicts it.
                logprobs = [[0.0, *answer.each] for answer in answers]
                ids, targets = batch["id"], batch["target"]
                writer.write_batch(pa.record_batch([ids, targets, pa.array(logprobs, schema.types[2])], schema=schema))
                rows, tokens = rows + len(asked), tokens + sum(map(len, logprobs))
                context.progress(rows, None)
    return {"rows": rows, "tokens": tokens}


def parts(context: Context, prefix: str) -> list[Path]:
    """The inputs whose names begin with `prefix`, in order of their names."""
    return [folder for name, folder in sorted(context.inputs.items()) if name.startswith(prefix)]


def count_rows(plan: Path) -> int:
    """Rows of a stage's list, from the file's footer."""
    import pyarrow.parquet as pq

    return int(pq.read_metadata(plan).num_rows)
