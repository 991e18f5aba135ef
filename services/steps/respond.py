"""Steps that ask a model about training rows: targets (S3FT and its family) and scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cuvee import rows
from cuvee.errors import UserError
from services.steps.base import Context, step
from services.steps.data import finish, write_removed

if TYPE_CHECKING:
    import pyarrow as pa


@step(
    "respond",
    "2",
    "selection.responses",
    "selection.cleaning",
    "selection.rft",
    "selection.candidates",
    "selection.policies",
    "selection.provenance",
    "selection.shards",
    "cuvee.prompts",
    "evaluation.judges",
    "evaluation.sandbox",
    kind="engine",
    draws=True,
)
def respond(context: Context) -> dict[str, Any]:
    """Each row's target chosen by the policy; `responses.parquet` says what was asked, judged and chosen."""
    from selection.responses import RespondConfig, composition
    from selection.responses import respond as choose

    config = RespondConfig.model_validate(context.config["respond"])
    table = rows.read(context.inputs["rows"] / "rows")
    judge = context.runtime.judge_for(context)
    require_fit(context, table)
    engine = context.runtime.engine_for(context, "model") if "model" in context.inputs else None
    result = choose(
        table,
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


def require_fit(context: Context, table: pa.Table) -> None:
    """UserError when the judge cannot decide these rows: before anything is generated."""
    from evaluation.judges import JudgeConfig, fits

    if context.config.get("judge") and (why := fits(JudgeConfig.parse(context.config["judge"]), table)):
        raise UserError(why, remedy="name another judge, or keep only rows that have what it needs")
