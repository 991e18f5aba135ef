"""What can be wrong between the parts of a recipe, when each part is well formed.

References to tables, stages, models and judges that are not there; measurements without held-out rows; tables made
from themselves. Each fault comes with the place of its key, so that the error can name the line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from cuvee.errors import nearest
from evaluation.judges import JudgeConfig
from services.measures import BASE, CURRENT, EACH
from services.search import VALIDATION
from services.tables import OPERATIONS, Operation
from services.yaml_lines import Path_

if TYPE_CHECKING:
    from services.recipe import Recipe

Fault = tuple[Path_, str, str]
"""Where, what, and what to do."""


def faults(recipe: Recipe) -> Iterator[Fault]:
    """What is wrong between the parts of a recipe, each of which is well formed."""
    yield from _model_faults(recipe)
    yield from _table_faults(recipe)
    yield from _stage_faults(recipe)
    yield from _measure_faults(recipe)
    yield from _choice_faults(recipe)


def _model_faults(recipe: Recipe) -> Iterator[Fault]:
    if not recipe.models:
        yield ("models",), "no model", "leave `models` out for the built-in one"
    if recipe.train.model:
        yield from _unknown(recipe.train.model, recipe.models, "model", ("train", "model"))
    elif len(recipe.models) > 1 and recipe.stages:
        yield ("train",), "which of the models is trained?", f"write model: {next(iter(recipe.models))} in `train`"
    for table, spec in recipe.data.items():
        for i, operation in enumerate(spec.do):
            at = ("data", table, "do", i, operation.name)
            try:
                names = list(_models_of(operation))
            except ValidationError as error:
                yield (*at, "judge"), reason(error.errors(include_url=False)[0]), ""
                continue
            for key, name in names:
                if name not in (BASE, CURRENT):
                    yield from _unknown(name, recipe.models, "model", (*at, key))
    judges: list[tuple[Path_, JudgeConfig]] = [
        *((("accuracy", table), judge) for table, judge in recipe.evaluate.accuracy.items()),
        *((("judged", name, "judge"), of.judge) for name, of in recipe.evaluate.judged.items() if of.judge),
    ]
    for path, judge in judges:
        for name in sorted(judge.model_names()):
            yield from _unknown(name, recipe.models, "model", ("evaluate", *path))


def _models_of(operation: Operation) -> Iterator[tuple[str, str]]:
    """(key, model) of every model that an operation asks for. Raises ValidationError for a judge that is none."""
    config = operation.config
    if isinstance(model := getattr(config, "model", None), str):
        yield "model", model
    if (judge := getattr(config, "judge", None)) is not None:
        yield from (("judge", name) for name in sorted(JudgeConfig.model_validate(judge).model_names()))
    for name, spec in (getattr(config, "scorers", None) or {}).items():
        if spec.model:
            yield name, spec.model


def _table_faults(recipe: Recipe) -> Iterator[Fault]:
    for table, spec in recipe.data.items():
        for origin in spec.origins:
            if isinstance(origin, str) and origin in recipe.data and table in recipe.lineage(origin):
                yield ("data", table, "from"), f"{table} is made from itself", ""
        labels = [operation.as_ for operation in spec.do if operation.as_]
        for label in labels:
            if label in OPERATIONS or labels.count(label) > 1:
                yield ("data", table, "do"), f'"as: {label}" is not a name of its own', ""


def _stage_faults(recipe: Recipe) -> Iterator[Fault]:
    earlier = [BASE]
    for name, stage in recipe.stages.items():
        if name in (BASE, "final") or "@" in name:
            yield ("stages", name), f'"{name}" has a meaning of its own and cannot name a stage', ""
        for table in stage.mix:
            yield from _unknown(table.partition("@")[0], recipe.data, "table", ("stages", name, "mix", table))
            yield from _round_fault(recipe, table, ("stages", name, "mix", table))
        yield from _unknown(stage.init, earlier, "earlier stage", ("stages", name, "init"))
        try:
            recipe.train_for(name)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = first.get("ctx", {}).get("key")
            yield ("stages", name, "train", *first["loc"], *([key] if key else [])), reason(first), ""
        if model := stage.train.get("model"):
            yield from _unknown(str(model), recipe.models, "model", ("stages", name, "train", "model"))
        earlier.append(name)


def _measure_faults(recipe: Recipe) -> Iterator[Fault]:
    measured = recipe.evaluate
    for word, tables in (
        ("output_loss", measured.output_loss),
        ("gold_loss", measured.gold_loss),
        ("accuracy", tuple(measured.accuracy)),
        ("bleu", measured.bleu),
    ):
        for table in tables:
            yield from _unknown(table, recipe.data, "table", ("evaluate", word))
            if word in ("gold_loss", "accuracy") and not _has(recipe, table, "holdout"):
                remedy = f"add {{holdout: 100 rows}} to data.{table}.do"
                yield ("evaluate", word), f"{table} has no held-out rows", remedy
    for word in measured.at:
        name, _, number = word.partition("@")
        points = [BASE, "final", *recipe.written, *recipe.stages]
        if recipe.stages and name not in points and not (name in recipe.data and number):
            yield from _unknown(name, points, "stage", ("evaluate", "at"))
        if number == EACH and name not in recipe.data:
            continue
        if number and not number.isdigit():
            yield ("evaluate", "at"), f"{word}: what follows @ is the number of an epoch or round", ""
        yield from _round_fault(recipe, word, ("evaluate", "at"))
        stage = next(reversed(recipe.stages), "") if name == "final" else name
        if number.isdigit() and stage in recipe.stages and not 1 <= int(number) <= recipe.epochs_of(stage):
            yield ("evaluate", "at"), f"{stage} has {recipe.epochs_of(stage)} epochs, and no {word}", ""

    if recipe.contrasts and recipe.repeat and recipe.repeat.apart:
        yield ("contrasts",), "a contrast needs seeds that move their streams together", "leave `repeat.apart` out"


def _choice_faults(recipe: Recipe) -> Iterator[Fault]:
    """What chooses between arms must be reported by them."""
    search, nuisance = recipe.arms.search, recipe.arms.nuisance
    if search:
        for name in dict.fromkeys((*search.metric, *([search.signal] if search.scheduler else []))):
            yield from _metric_faults(recipe, name, ("arms", "search", "metric"))
    if nuisance:
        yield from _metric_faults(recipe, nuisance.metric, ("arms", "nuisance"))


def _metric_faults(recipe: Recipe, name: str, path: Path_) -> Iterator[Fault]:
    measured = recipe.evaluate
    word = name.removesuffix(".rise").removeprefix("tasks.")
    if not recipe.stages:
        return
    last = next(reversed(recipe.stages))
    if word.split(".")[0] == VALIDATION:
        known = [table for table, spec in recipe.data.items() if spec.find("holdout")]
        if not known:
            yield path, f"{name} is never reported: no table holds rows out", "add {holdout: 100 rows} to a table"
        elif (table := ".".join(word.split(".")[1:])) and table.split(".")[0] not in known:
            yield path, f"{name} is never reported", nearest(name, [VALIDATION, *(f"{VALIDATION}.{t}" for t in known)])
        elif recipe.train_for(last).validation_every is None:
            remedy = f"set stages.{last}.train.validation_every, in optimiser steps"
            yield path, f"{name} is never reported: the stage {last} does not validate", remedy
        return
    listed = [
        f"{kind}.{t}" for kind in ("gold_loss", "output_loss", "accuracy", "bleu") for t in getattr(measured, kind)
    ]
    listed += [*_tasks(recipe), *(["retention.drop"] if measured.retention else [])]
    if not any(word == known or word.startswith(f"{known}.") for known in listed):
        yield path, f"{name} is never reported", nearest(name, [VALIDATION, *listed])
    elif "final" not in measured.at and last not in measured.at:
        yield path, f"{name} is never reported at the end of an arm", "add final to evaluate.at"


def _tasks(recipe: Recipe) -> list[str]:
    from evaluation import suites

    names = suites.expand([*recipe.evaluate.tasks, *recipe.evaluate.retention])
    return [*(suites.plain(name) for name in names), *recipe.evaluate.judged]


def _has(recipe: Recipe, table: str, operation: str) -> bool:
    return table in recipe.data and any(recipe.data[name].find(operation) for name in recipe.lineage(table))


def _round_fault(recipe: Recipe, word: str, path: Path_) -> Iterator[Fault]:
    """`table@round` needs a table that is iterated so often."""
    name, at, number = word.partition("@")
    if not at or name not in recipe.data:
        return
    operation = recipe.data[name].find("iterate")
    rounds = getattr(operation.config, "rounds", 0) if operation else 0
    if not number.isdigit() or not 1 <= int(number) <= rounds:
        yield path, f"{name} has {rounds} rounds, and no {word}", "" if operation else "rounds come from `iterate`"


def _unknown(name: str, known: Iterable[str], kind: str, path: Path_) -> Iterator[Fault]:
    if name not in known:
        yield path, f'unknown {kind} "{name}"', nearest(name, known)


def reason(fault: Mapping[str, Any]) -> str:
    """What pydantic says of a fault, in our words."""
    if fault["type"] == "missing":
        return "is needed and not there"
    return str(fault["msg"]).removeprefix("Value error, ")
