"""A task on a model: a table of items and its summary."""

from __future__ import annotations

import json
from typing import Any

from cuvee import rows
from services.steps.base import Context, step


@step("evaluate", "1", "evaluation.tasks", "evaluation.judges", kind="engine")
def evaluate(context: Context) -> dict[str, Any]:
    """`items.parquet` (one row an item) and `summary.json`."""
    import pyarrow.parquet as pq

    from evaluation import tasks
    from evaluation.judges import JudgeConfig

    engine = context.runtime.engine_for(context, "model")
    config = context.config
    judge = context.runtime.judge(JudgeConfig.parse(config["judge"]), context) if config.get("judge") else None
    if "rows" in context.inputs:
        table = rows.read(context.inputs["rows"] / config["part"])
        items = tasks.on_table(
            config["task"], table, options=config["options"], generate=engine.generate, score=engine.score, judge=judge
        )
    else:
        task = tasks.get(config["task"])
        options = tasks.EvalOptions.model_validate(config["options"])
        items = task.run(
            task.items(options), generate=engine.generate, score=engine.score, judge=judge, options=options
        )
    pq.write_table(items, context.out / "items.parquet", compression="zstd")
    summary = tasks.summarise(items)
    (context.out / "summary.json").write_text(json.dumps(summary, indent=1))
    return {"items": items.num_rows, "summary": summary}
