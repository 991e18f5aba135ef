"""What a judge is to a recipe: a name, a Config, the models it needs, the rows it fits, and how to build it.

A recipe writes a judge in the shortest form that says it: `numeric`, `{text: contains}`, `{llm: m}`,
`{tiers: [numeric, {llm: m}]}`. `JudgeConfig` reads all of them, so that every place that takes a judge takes the same
words. Building is apart from reading, because `plan` must read and check without a model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import SerializeAsAny, ValidationError, model_validator

from cuvee.config import Config
from cuvee.errors import RecipeError, UserError, nearest
from cuvee.protocols import Generate, Judge, Label, Verdict
from cuvee.registry import Registry

Reward = Callable[[Sequence[tuple[str, str]]], Sequence[float]]
"""Scores of (prompt, answer) pairs by a reward model, higher is better, one a pair and in order."""


def _as_it_is(judge: Judge) -> Judge:
    return judge


@dataclass(frozen=True)
class Parts:
    """What `services` hands to a judge: models and reward functions by the recipe's names.

    `spread` is what a judge that takes processors is wrapped in, so that it may use those of other machines.
    """

    generate: Mapping[str, Generate] = field(default_factory=dict)
    reward: Mapping[str, Reward] = field(default_factory=dict)
    spread: Callable[[Judge], Judge] = _as_it_is

    def generator(self, name: str) -> Generate:
        if name not in self.generate:
            raise UserError(f"the judge needs the model {name!r}", remedy=nearest(name, self.generate))
        return self.generate[name]


def _no_models(config: Any) -> set[str]:
    return set()


def _first(config: Any) -> str:
    return "1"


@dataclass(frozen=True)
class Kind:
    """`short` is the field that a bare value sets (`{llm: m}` is `{llm: {model: m}}`).

    `models` are the recipe's models that the judge asks. `needs` are row columns without which it cannot decide;
    `fits` may refuse a table for another reason, in words for the user. `version` changes when the same settings give
    other verdicts: with the code, and with the text of a prompt.
    """

    config: type[Config]
    build: Callable[[Any, Parts], Judge]
    short: str = ""
    models: Callable[[Any], set[str]] = _no_models
    needs: tuple[str, ...] = ("references",)
    fits: Callable[[Any, pa.Table | Collection[str]], str | None] | None = None
    version: Callable[[Any], str] = _first


JUDGES: Registry[Kind] = Registry("judge")


class JudgeConfig(Config):
    """A judge as a recipe writes it. `options` is the Config of the kind, complete with its defaults."""

    kind: str
    options: SerializeAsAny[Config]

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        return _normal(value)

    @classmethod
    def parse(cls, value: Any) -> JudgeConfig:
        """From any recipe form. Raises RecipeError with the reason."""
        if isinstance(value, JudgeConfig):
            return value
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            reasons = "; ".join(
                ".".join(str(part) for part in fault["loc"]) + (": " if fault["loc"] else "") + fault["msg"]
                for fault in error.errors()
            )
            raise RecipeError(f"judge {value!r}: {reasons}", remedy=f"known: {', '.join(JUDGES)}") from error

    def model_names(self) -> set[str]:
        """The recipe's models that `build` needs."""
        return JUDGES[self.kind].models(self.options)

    def version(self) -> str:
        """What decides the verdicts beside the settings and the models; part of a step's key."""
        return JUDGES[self.kind].version(self.options)


def _normal(value: Any) -> dict[str, Any]:
    """`kind` and validated `options` from any form. Raises ValueError, which pydantic turns into its own error."""
    if isinstance(value, Mapping) and set(value) == {"kind", "options"}:
        kind, options = value["kind"], value["options"]
    elif isinstance(value, str):
        kind, options = value, {}
    elif isinstance(value, Mapping) and len(value) == 1:
        kind, options = next(iter(value.items()))
        if kind == "judge" and isinstance(options, Mapping) and "model" in options:
            kind = "rating"  # `{judge: {model: m, scale: [1, 10]}}`, as scores are written
        elif kind == "judge":  # `{judge: {llm: m}}`: the word may be repeated where several kinds of score may stand
            return _normal(options)
    else:
        raise ValueError("a judge is a name, or a mapping of one name to its settings")
    try:
        entry = JUDGES[kind]
    except UserError as error:
        raise ValueError(str(error)) from error
    if not isinstance(options, Mapping | Config):
        if not entry.short:
            raise ValueError(f"the judge {kind!r} takes a mapping of settings")
        options = {entry.short: options}
    return {"kind": kind, "options": entry.config.model_validate(options)}


def fits(config: JudgeConfig, source: pa.Table | Collection[str]) -> str | None:
    """Why the judge cannot decide the rows of `source` (a table, or the names of its filled columns); None if it can.

    With a table, at least half of the rows must have what the judge needs; the rest would be `unsure`.
    """
    entry = JUDGES[config.kind]
    for column in entry.needs:
        if not isinstance(source, pa.Table):
            if column not in source:
                return f"the judge {config.kind!r} needs {column}, and the source has none"
            continue
        filled = filled_rows(source, column)
        if filled * 2 < source.num_rows or column not in source.column_names:
            return f"the judge {config.kind!r} needs {column}, and {filled} of {source.num_rows} rows have any"
    return entry.fits(config.options, source) if entry.fits is not None else None


def filled_rows(table: pa.Table, column: str) -> int:
    """Rows whose list column has an entry."""
    if column not in table.column_names:
        return 0
    return int(pc.sum(pc.greater(pc.list_value_length(table[column]), 0)).as_py() or 0)


def build(
    config: JudgeConfig,
    *,
    generate: Mapping[str, Generate] | None = None,
    reward: Mapping[str, Reward] | None = None,
    spread: Callable[[Judge], Judge] = _as_it_is,
) -> Judge:
    """The judge. Raises UserError when a model that it needs is not among those given."""
    return JUDGES[config.kind].build(config.options, Parts(generate or {}, reward or {}, spread))


def equivalent(reason: str, evidence: str = "", score: float | None = None) -> Verdict:
    return Verdict(Label.EQUIVALENT, reason, evidence, score)


def different(reason: str, evidence: str = "", score: float | None = None) -> Verdict:
    return Verdict(Label.DIFFERENT, reason, evidence, score)


def unsure(reason: str, evidence: str = "", score: float | None = None) -> Verdict:
    return Verdict(Label.UNSURE, reason, evidence, score)
