"""How good answers are, by a model that a step has as input: one number an answer, higher is better but for losses."""

from __future__ import annotations

from collections.abc import Sequence

from cuvee import rows
from cuvee.errors import UserError
from cuvee.protocols import Message, ScoreRequest
from services.steps.base import Context

Asked = Sequence[tuple[str, tuple[Message, ...], str]]
"""(name, conversation, answer in place of its last one)."""


def grade(context: Context, kind: str, asked: Asked, *, model: str, rubric: str = "") -> dict[str, float | None]:
    """Scores by name; None where there is none. `model` is the input that grades.

    perplexity: the mean negative log-probability of the answer's tokens. cosine: of instruction and answer under an
    encoder. judge: a grade from 1 to 10. reward: the reward model's number.
    """
    if kind == "perplexity":
        return _losses(context, asked, model)
    if kind == "cosine":
        return _relevance(context, asked, model)
    if kind == "judge":
        from evaluation.tasks import rating

        engine = context.runtime.engine_for(context, model)
        cases = [(name, _prompt(messages), text, "") for name, messages, text in asked]
        rated = rating.grade(engine.generate, cases, rubric or rating.RUBRIC)
        return {name: found.score for name, found in rated.items()}
    reward = context.runtime.reward_for(context, model)
    values = reward([(_prompt(messages), text) for _, messages, text in asked])
    return {name: value for (name, _, _), value in zip(asked, values, strict=True)}


def _prompt(messages: tuple[Message, ...]) -> str:
    return "\n\n".join(m["content"] for m in rows.prompt_of(messages))


def _losses(context: Context, asked: Asked, model: str) -> dict[str, float | None]:
    requests = [ScoreRequest(n, messages=rows.with_answer(m, text), last_only=True) for n, m, text in asked]
    found: dict[str, float | None] = {}
    score = context.runtime.engine_for(context, model).score
    if score is None:
        raise UserError("perplexity needs log-probabilities, which an endpoint does not give")
    for scored in score(requests):
        known = not scored.error and scored.tokens > 0
        found[scored.id] = -scored.logprob / scored.tokens if known else None
        context.progress(len(found), len(requests))
    return found


def _relevance(context: Context, asked: Asked, encoder: str) -> dict[str, float | None]:
    import pyarrow as pa

    from selection.embedding import EmbedConfig, embed
    from selection.quality import cosine
    from selection.vectors import Vectors
    from services.steps.model import model_folder

    talks = [[{**m, "weight": None} for m in rows.with_answer(messages, text)] for _, messages, text in asked]
    table = pa.table({"id": [name for name, _, _ in asked], "messages": pa.array(talks, rows.MESSAGES)})
    sides = []
    for part in ("instruction", "response"):
        config = EmbedConfig.model_validate({**context.config["embed"], "text": part})
        folder = context.work / part
        embed(
            table,
            model_folder(context.inputs[encoder]),
            config,
            out=folder,
            resources=context.runtime.embedding(context),
            progress=context.progress,
        )
        sides.append(Vectors.open(folder))
    return dict(zip(table["id"].to_pylist(), cosine(table["id"], *sides).tolist(), strict=True))
