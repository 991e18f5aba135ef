"""`iterate` as ordinary steps: the rounds of iterative selection, unrolled into the graph of an arm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cuvee.amounts import Amount
from cuvee.errors import UserError
from services.graph import Node

if TYPE_CHECKING:
    from services.plan import Builder
    from services.table_plan import TableState


AFTER = {"train", "respond", "score"}
"""Settings of a round that act after its rows have been chosen, each in the key of the step that it belongs to."""


def unroll(builder: Builder, label: str, config: Any, state: TableState) -> TableState:
    """The table after all rounds; `table@n` are the rounds, their trainings the points of `evaluate`."""
    table = label.split(" · ")[0]
    selection = config.selection()
    state = builder.ready_for(table, selection, state)
    assert state.vectors is not None
    assert state.clusters is not None
    # What comes after the choice is not in its key, so that arms which differ in the scorer share the first round.
    settings = config.model_dump(mode="json", by_alias=True, exclude=AFTER | {"update", "temperature"})
    inputs = {"rows": state.rows, "vectors": state.vectors, "clusters": state.clusters}
    before = builder.node("iterate_init", f"{table} · round 0 · weights", settings, inputs)
    nodes = [before]
    model = str(config.train.settings.get("model") or builder.recipe.model_for())
    trained: Node | None = None
    proposed = before
    for number in range(1, config.rounds + 1):
        name = f"{table} · round {number}"
        seed = builder.seeds["sample"]
        propose = {"iterate": settings, "round": number}
        proposed = builder.node(
            "iterate_propose", f"{name} · choose", propose, {"rows": state.rows, "before": before}, seed=seed
        )
        start = trained if trained is not None and config.train.from_ == "previous" else builder.model(model)
        listed, trained = _training(builder, name, config, proposed, start, model)
        # The last round's model answers nothing: it is made if `evaluate` asks for it.
        nodes += [proposed, listed, trained] if number < config.rounds else [proposed]
        builder.plan.rounds[f"{table}@{number}"] = replace(state, rows=proposed, nodes=())
        builder.plan.trained[f"{table}@{number}"] = trained
        if number < config.rounds:
            before = _update(builder, name, config, proposed, trained, model)
            nodes.append(before)
    return replace(state, rows=proposed, nodes=(*state.nodes, *nodes))


def _training(builder: Builder, name: str, config: Any, proposed: Node, start: Node, model: str) -> tuple[Node, Node]:
    """The list and the training of a round: all rows chosen so far, under the recipe's objective."""
    settings = builder.recipe.train_with(config.train.settings).plain()
    tokens = builder.tokens(name, model, proposed)
    stage = name.replace(" · ", "-").replace(" ", "-")
    mix = {"chosen": Amount.parse("all")}
    tables = {"chosen": builder.empty_state(proposed)}
    listed = builder.compose(stage, mix, tables, {"chosen": tokens}, settings)
    inputs = {"init": start, "plan": listed, "tokens.chosen": tokens}
    objective = builder.recipe.default_objective()
    return listed, builder.train(f"{name} · train", stage, settings, objective, inputs, model)


def _update(builder: Builder, name: str, config: Any, proposed: Node, trained: Node, model: str) -> Node:
    """Answers of the round's model, their scores against gold, and the weights that follow."""
    respond = config.respond
    answering = trained if respond.model in (None, "current") else builder.model(respond.model)
    answer_chat = model if respond.model in (None, "current") else respond.model
    settings = {
        "decoding": respond.decoding.model_dump(mode="json"),
        "n": respond.n,
        "chat": builder.chat(answer_chat),
    }
    answers = builder.node(
        "iterate_answer",
        f"{name} · answer",
        settings,
        {"rows": proposed, "model": answering},
        seed=builder.seeds["generation"],
        execution=builder.engine(answer_chat),
        model=answering,
    )
    graded = _grade(builder, name, config, {"rows": proposed, "answers": answers}, trained, model)
    plain = config.model_dump(mode="json", by_alias=True, exclude=AFTER)
    return builder.node("iterate_update", f"{name} · weights", plain, {"proposed": proposed, "graded": graded})


def _grade(builder: Builder, name: str, config: Any, inputs: Mapping[str, Node], trained: Node, model: str) -> Node:
    """The node that scores gold and answers: by a model, or by an encoder as relevance."""
    kind, grader = _grader(config.score, name)
    if kind == "cosine":
        from selection.embedding import EmbedConfig

        embedding = EmbedConfig.model_validate(config.score[kind] or {})
        settings = {"scorer": kind, "embed": embedding.model_dump(mode="json")}
        return builder.node(
            "iterate_grade",
            f"{name} · grade",
            settings,
            {**inputs, "grader": builder.encoder(embedding.encoder)},
            execution=builder.asked("embed"),
        )
    node = trained if grader == "current" else builder.model(grader)
    chat = model if grader == "current" else grader
    return builder.node(
        "iterate_grade",
        f"{name} · grade",
        {"scorer": kind, "chat": builder.chat(chat)},
        {**inputs, "grader": node},
        execution=builder.engine(chat),
        model=node,
    )


def _grader(score: dict[str, Any], name: str) -> tuple[str, str]:
    """(kind, model name) of the scorer, written `{perplexity: {model: current}}`, with cosine, judge or reward."""
    if len(score) != 1:
        raise UserError(f"{name}: one scorer, not {len(score)}", remedy="write score: {perplexity: {model: current}}")
    ((kind, settings),) = score.items()
    if kind not in ("perplexity", "cosine", "judge", "reward"):
        raise UserError(f"{name}: unknown scorer {kind!r}", remedy="known: cosine, judge, perplexity, reward")
    if kind == "cosine":
        return kind, ""
    options = settings if isinstance(settings, dict) else {"model": settings}
    if kind == "judge" and list(options.get("scale", [1, 10])) != [1, 10]:
        raise UserError(f"{name}: judges grade from 1 to 10", remedy="write scale: [1, 10]")
    if kind != "perplexity" and "model" not in options:
        raise UserError(f"{name}: {kind} needs a model", remedy=f"write score: {{{kind}: {{model: NAME}}}}")
    return kind, str(options.get("model", "current"))
