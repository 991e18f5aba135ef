"""How a recipe says what varies: arms, seeds, and the comparisons that it declares."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from cuvee.config import Config
from services.search import Nuisance, Search

Stream = Literal["sample", "order", "init", "generation", "judge"]
STREAMS: tuple[Stream, ...] = ("sample", "order", "init", "generation", "judge")
"""What a seed can move: which rows are drawn, their order, fresh weights and dropout, sampled answers, judgements."""

Key = str
"""A name in `let`, or a dotted path into the recipe."""


class When(Config):
    """Consequences: where all of `of` hold, `then` is set. Written flat: `{task: nq, then: {judge: text}}`."""

    of: dict[Key, Any] = Field(description="key to value, or to a list of which any holds")
    then: dict[Key, Any]

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        if isinstance(value, dict) and "of" not in value:
            return {"of": {k: v for k, v in value.items() if k != "then"}, "then": value.get("then", {})}
        return value

    @model_validator(mode="after")
    def _complete(self) -> When:
        if not self.of or not self.then:
            raise ValueError("needs a condition and `then`")
        return self


class Arms(Config):
    """The runs of a sweep: the product of `grid`, each with the consequences of `when`, and the named ones of `add`.

    Without `grid`, the arms are those of `add`, or, with `ablate`, the recipe itself (`full`) and each single change.
    `search` proposes arms while it runs; those of `add` stand beside it, to be compared with.
    """

    grid: dict[Key, list[Any] | dict[str, Any]] = Field(
        default_factory=dict, description="key to its values; a map names them, for values that are not words"
    )
    when: tuple[When, ...] = ()
    add: dict[str, dict[Key, Any]] = Field(
        default_factory=dict, description="name to changes; stages: none trains nothing"
    )
    ablate: dict[str, dict[Key, Any]] = Field(default_factory=dict, description="name to one change against the recipe")

    search: Search | None = None
    nuisance: Nuisance | None = Field(default=None, description="settings tuned for each arm on validation rows")
    parallel: int | None = Field(
        default=None, ge=1, description="arms at once; what the cluster holds of their resources if absent"
    )
    max_failures: int = Field(default=3, ge=0, description="failed arms that a sweep bears; one more ends it")

    @field_validator("grid")
    @classmethod
    def _values(cls, value: dict[Key, Any]) -> dict[Key, Any]:
        for key, values in value.items():
            if not values:
                raise ValueError(f"{key} has no values")
        return value

    @field_validator("when", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value

    @field_validator("add", "ablate", mode="before")
    @classmethod
    def _unchanged(cls, value: Any) -> Any:
        return {k: {} if v is None else v for k, v in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _apart(self) -> Arms:
        if self.ablate and (self.grid or self.add):
            raise ValueError("`ablate` changes one thing at a time and stands alone; use `add` beside a grid")
        if self.search and (self.grid or self.ablate):
            raise ValueError("`search` proposes its own arms: put the grid into its space, as `choice`")
        if self.search and self.nuisance:
            raise ValueError("`nuisance` is for arms that are written out: put it into the space of `search`")
        return self

    @property
    def deciding(self) -> tuple[str, ...]:
        """The metrics by which something is chosen."""
        if self.search:
            return self.search.metric
        return (self.nuisance.metric,) if self.nuisance else ()

    @property
    def halved(self) -> bool:
        """Whether something is chosen by held-out rows, so that these are split into validation and test."""
        return bool(self.search or self.nuisance)


class Repeat(Config):
    """The same seeds in every arm. What is not in `vary` keeps the recipe's seed."""

    seeds: tuple[int, ...]
    vary: tuple[Stream, ...] = ("sample", "order", "init", "generation")
    apart: bool = Field(
        default=False,
        description="one stream at a time from the first seed on, to see what each does; `cuvee noise` writes it",
    )

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError("seeds must be one or more different numbers")
        return value


class Contrast(Config):
    """A comparison that is declared before the run: a paired t over seeds of `metric`, a minus b.

    `expect` is the direction that is claimed; `within` claims a difference smaller than `margin` either way.
    """

    a: dict[Key, Any]
    b: dict[Key, Any]
    metric: str = Field(description="for example retention.drop, gold_loss.math, accuracy.qa, tasks.gsm8k")
    expect: Literal["less", "greater", "different", "within"] = "different"
    margin: float | None = Field(default=None, gt=0, description="in units of the metric, for expect: within")
    at: str = Field(default="final", description="the point at which it is read")
    name: str = ""

    @model_validator(mode="after")
    def _sides(self) -> Contrast:
        if not self.a or not self.b or self.a == self.b:
            raise ValueError("a and b must each name an arm, and not the same")
        if (self.expect == "within") != (self.margin is not None):
            raise ValueError("`margin` belongs to `expect: within`, and is needed there")
        return self

    @property
    def label(self) -> str:
        """For tables: its name, or what it compares."""
        side = [", ".join(f"{key}={value}" for key, value in s.items()) for s in (self.a, self.b)]
        return self.name or f"{self.metric}: {side[0]} against {side[1]}"


class PublishedRow(Config):
    """`arm` names the arms as a side of a contrast does; `scores` has metric to value, as the paper prints it."""

    arm: dict[Key, Any]
    scores: dict[str, float]


class Published(Config):
    """What the paper reports for these arms, for the report to put beside what came out here."""

    source: str = Field(description="paper and table")
    rows: tuple[PublishedRow, ...] = ()
    note: str = Field(default="", description="what differs, or is not known, about the paper's setting")
