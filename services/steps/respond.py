"""Steps that ask a model about training rows: targets (S3FT and its family) and scores."""

from __future__ import annotations

from typing import Any

from cuvee import rows
from services.steps.base import Context, step
from services.steps.data import finish, write_removed


@step(
    "respond",
    "1",
    "selection.responses",
    "selection.cleaning",
    "selection.rft",
    "evaluation.judges",
    kind="engine",
    draws=True,
)
def respond(context: Context) -> dict[str, Any]:
    """Each row's target chosen by the policy; `responses.parquet` says what was asked, judged and chosen."""
    from selection.responses import RespondConfig, composition
    from selection.responses import respond as choose

    config = RespondConfig.model_validate(context.config["respond"])
    judge = context.runtime.judge_for(context)
    engine = context.runtime.engine_for(context, "model") if "model" in context.inputs else None
    result = choose(
        rows.read(context.inputs["rows"] / "rows"),
        config,
        generate=engine.generate if engine else None,
        judge=judge,
        score=engine.score if engine and config.log_probs else None,
        seed=context.draw_seed(),
        shards=context.work / "shards",
        progress=context.progress,
    )
    write_removed(result.responses, context.out / "responses.parquet")
    return finish(context, result.table, composition=composition(result.responses).to_pylist())
