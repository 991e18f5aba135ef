"""A task on a model, or a measurement on a table of the recipe: a table of items and its summary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cuvee import rows
from cuvee.errors import UserError
from cuvee.halves import halve, members
from cuvee.protocols import Decoding, Generate, Judge
from services.steps.base import Context, step
from services.steps.respond import require_fit

if TYPE_CHECKING:
    import pyarrow as pa

    from evaluation.tasks.task import Item
    from services.inference import Engine
    from services.runtime import Remote


@step(
    "evaluate",
    "2",
    "evaluation.tasks",
    "evaluation.items",
    "evaluation.judges",
    "evaluation.sandbox",
    "cuvee.halves",
    kind="engine",
)
def evaluate(context: Context) -> dict[str, Any]:
    """`items.parquet` (one row a metric of an item) and `summary.json`."""
    import pyarrow.parquet as pq

    from evaluation import tasks

    if "against" in context.inputs:
        items = against(context)
    elif "table" in context.config:
        items = on_table(context, context.runtime.engine_for(context, "model"), context.runtime.judge_for(context))
    else:
        engine = context.runtime.engine_for(context, "model")
        task = tasks.get(context.config["task"])
        judge: Any = context.runtime.judge_for(context, getattr(task, "judge", None))
        said = {name: value for name, value in context.config["options"].items() if value is not None}
        options = tasks.EvalOptions.model_validate(
            {**said, **judging(context.config), "data": context.execution.get("data", {})}
        )
        if task.kind == "chat":
            judge = judging_model(context)
        items = task.run(
            asked(task.items(options), context.config),
            generate=engine.generate,
            score=engine.score,
            judge=judge,
            options=options,
        )
    pq.write_table(items, context.out / "items.parquet", compression="zstd")
    summary = tasks.summarise(items)
    (context.out / "summary.json").write_text(json.dumps(summary, indent=1))
    return {"items": items.num_rows, "summary": summary}


def against(context: Context) -> pa.Table:
    """The answers of one evaluation of an open-ended set against those of another."""
    import pyarrow.parquet as pq

    from evaluation.tasks import compare_answers
    from evaluation.tasks.rating import Judging

    other, own = (pq.read_table(context.inputs[name] / "items.parquet") for name in ("against", "answers"))
    how = judging(context.config)
    judging_by = Judging(how["judgements"], how["judge_seed"])
    return compare_answers(other, own, judging_model(context), context.config["task"], judging=judging_by)


def judging(config: Mapping[str, Any]) -> dict[str, int]:
    """How often answers are judged, and by which seed where that is sampled."""
    return {"judgements": config.get("times", 1), "judge_seed": config.get("seed", 0)}


def asked(items: list[Item], config: Mapping[str, Any]) -> list[Item]:
    """The items of a task, or those of the half that the config names."""
    if not (half := config.get("half")):
        return items
    kept = [item for item, mine in zip(items, members([item.id for item in items], half), strict=True) if mine]
    if not kept:
        raise UserError(f"{config['task']} has no {half} half", remedy="raise its limit: a search needs both halves")
    return kept


def judging_model(context: Context) -> Generate:
    """The model that grades open answers: the one that the recipe's judge names."""
    names = [name for name in context.inputs if name.startswith("judge.")]
    if len(names) != 1:
        raise UserError(
            f"{context.config['task']} needs one judging model, and {len(names)} are named",
            remedy=f"evaluate: {{judged: {{{context.config['task']}: {{judge: {{llm: MODEL}}}}}}}}",
        )
    chat = context.config["judge_chat"][names[0].removeprefix("judge.")]
    return context.runtime.model_of(context.inputs[names[0]], chat, context.execution.get("engine", {})).generate


def on_table(context: Context, engine: Engine | Remote, judge: Judge | None) -> pa.Table:
    """Loss or judged answers on rows of the recipe; the task is `<measurement>.<table>`, groups are sources."""
    from evaluation.tasks import gold_loss, judged
    from evaluation.tasks.overlap import bleu

    config = context.config
    table = rows.read(context.inputs["rows"] / config["part"])
    if half := config.get("half"):
        table = halve(table, half, config["table"])
    if limit := config["options"].get("limit"):
        # Ids are hashes, so the first rows are a sample that is the same for every model.
        table = table.slice(0, limit)
    measurement = config["task"]
    if measurement in ("gold_loss", "output_loss"):
        if engine.score is None:
            raise UserError(f"{measurement} needs log-probabilities, which an endpoint does not give")
        items = gold_loss(table, score=engine.score, task=measurement)
    else:
        decoding = Decoding.model_validate(config["decoding"])
        if measurement == "bleu":
            items = bleu(table, generate=engine.generate, decoding=decoding, task=measurement)
        else:
            assert judge is not None
            require_fit(context, table)
            items = judged(table, generate=engine.generate, judge=judge, decoding=decoding, task=measurement)
    return renamed(items, f"{measurement}.{config['table']}")


def renamed(items: pa.Table, task: str) -> pa.Table:
    """Items of `<measurement>/<source>` as one task, whose groups are the sources if there are several."""
    import pyarrow as pa

    sources = [name.partition("/")[2] for name in items["task"].to_pylist()]
    several = len(set(sources)) > 1
    groups = pa.array([source if several else "" for source in sources], pa.string())
    items = items.set_column(items.schema.get_field_index("group"), items.schema.field("group"), groups)
    names = pa.array([task] * items.num_rows, pa.string())
    return items.set_column(items.schema.get_field_index("task"), items.schema.field("task"), names)
