"""What a search is: a space, what to make small or large, who proposes, when to stop an arm, and what it may cost.

    arms:
      search:
        space: {shares: {simplex: [math, code, chat], total: 240 rows}, train.lr: {loguniform: [1e-5, 1e-3]}}
        metric: [gold_loss.math, retention.drop]        # one, or several for a trade-off
        scheduler: {asha: {grace: 8}}
        budget: {arms: 16, gpu_hours: 12}
        finalists: 2

A search reads the `validation` half of everything held out. Its finalists, run with every seed of `repeat`, are
measured on the `test` half, so that the choice and the figures about it come from different rows.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from cuvee.config import Config
from services.measures import Words
from services.space import Dimension, Space

VALIDATION = "validation"
"""First word of metrics that the training itself reports: `validation`, `validation.<table>[.<source>]`."""
MODES = ("min", "max")


class Asha(Config):
    """Successive halving without waiting (arXiv 1810.05934). Its clock is the optimiser step of the last stage.

    At `grace` steps, then at `factor` times as many, an arm goes on only while it is in the better 1/`factor` of those
    that came as far.
    """

    signal: str = Field(default="", description="validation loss that is compared; the metric itself if it is one")
    grace: int = Field(default=8, ge=1, description="optimiser steps before an arm may be stopped")
    factor: float = Field(default=3, gt=1, description="one of so many goes on at each rung")


def _asha(value: Any) -> Any:
    if value in ("none", None):
        return None
    if value == "asha":
        return {}
    if isinstance(value, dict) and set(value) == {"asha"}:
        return value["asha"] or {}
    raise ValueError("the scheduler is none or asha (population methods clone weights, which no key could name)")


class Budget(Config):
    """What a search may cost. A bare number is a number of arms."""

    arms: int = Field(default=16, ge=1, description="arms that are tried")
    gpu_hours: float | None = Field(
        default=None, gt=0, description="hours of training workers (a CPU worker counts as one) after which none starts"
    )


class Search(Config):
    """Arms that are proposed one after the other, by Ray Tune."""

    space: dict[str, Dimension]
    metric: Words = Field(description="validation[.table[.source]], or a metric of `evaluate` such as gold_loss.math")
    mode: Words = Field(default=(), description="min or max, each; losses, error rates and drops are min by themselves")
    searcher: Literal["tpe", "random"] = Field(default="tpe", description="Optuna's TPE after `startup` even points")
    startup: int | None = Field(
        default=None, ge=1, description="even points before TPE; two a coordinate of the space, and two, if absent"
    )
    scheduler: Annotated[Asha | None, BeforeValidator(_asha)] = None
    budget: Annotated[Budget, BeforeValidator(lambda v: {"arms": v} if isinstance(v, int) else v)] = Field(
        default_factory=lambda: Budget.model_validate({})
    )
    finalists: int = Field(default=1, ge=1, description="arms that are run with every seed and measured on test rows")

    @field_validator("space")
    @classmethod
    def _some(cls, value: dict[str, Dimension]) -> dict[str, Dimension]:
        if not value:
            raise ValueError("space has nothing to vary")
        keys = Space(value).keys
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise ValueError(f"{twice[0]} is varied twice")
        return value

    @model_validator(mode="after")
    def _modes(self) -> Search:
        if not self.metric or len(set(self.metric)) != len(self.metric):
            raise ValueError("metric needs one or more different names")
        if self.mode and (len(self.mode) != len(self.metric) or not set(self.mode) <= set(MODES)):
            raise ValueError("mode is min or max, once for each metric")
        if len(self.metric) > 1 and self.scheduler and not self.scheduler.signal:
            raise ValueError("with several metrics asha needs its `signal`, for example validation")
        if self.scheduler and not self.signal.startswith(VALIDATION):
            raise ValueError("asha follows a loss that is known during training: give it `signal: validation`")
        return self

    @property
    def lower(self) -> list[bool]:
        """For each metric, whether less is better."""
        return [
            mode == "min" if mode else lower_is_better(name)
            for name, mode in zip(self.metric, self.mode or [""] * len(self.metric), strict=True)
        ]

    @property
    def signal(self) -> str:
        """The validation loss that ASHA compares."""
        if self.scheduler and self.scheduler.signal:
            return self.scheduler.signal
        first = self.metric[0]
        return first if first.split(".")[0] == VALIDATION else VALIDATION if not self.scheduler else first

    @property
    def first(self) -> int:
        """Even points before the sampler takes over."""
        if self.searcher == "random":
            return self.budget.arms
        return self.startup or 2 * Space(self.space).width + 2


class Nuisance(Config):
    """Settings that are tuned for each arm on validation rows, with the same candidates for all.

    With choices alone and `arms` enough, every combination is a candidate; else even points of the space are.
    """

    space: dict[str, Dimension]
    metric: str = Field(default=VALIDATION, description="what chooses, on validation rows")
    mode: Literal["min", "max", ""] = ""
    arms: int = Field(default=4, ge=2, description="candidates for each arm")

    @field_validator("space")
    @classmethod
    def _some(cls, value: dict[str, Dimension]) -> dict[str, Dimension]:
        if not value:
            raise ValueError("space has nothing to vary")
        return value

    @property
    def lower(self) -> bool:
        """Whether less is better."""
        return self.mode == "min" if self.mode else lower_is_better(self.metric)


def lower_is_better(metric: str) -> bool:
    """By its name: losses, perplexities and what was forgotten are better the lower they are."""
    words = metric.replace("_", ".").split(".")
    return bool({"loss", "drop", "ter", "perplexity", VALIDATION} & set(words))
