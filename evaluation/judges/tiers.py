"""Judges one after the other: a cheap one for what it can decide, a dearer one for the rest."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from cuvee.config import Config
from cuvee.protocols import Case, Judge, Label, Verdict
from evaluation.judges.base import JUDGES, JudgeConfig, Kind, Parts, fits


class TiersConfig(Config):
    """`judges`: in order. `next_on`: what the next one is asked about: the `unsure`, or all that is not accepted."""

    judges: tuple[JudgeConfig, ...] = Field(min_length=2)
    next_on: Literal["unsure", "not_equivalent"] = "unsure"


class Tiers:
    """Each verdict says which judge gave it."""

    def __init__(self, config: TiersConfig, judges: Sequence[Judge]) -> None:
        self.config = config
        self._judges = judges
        self.name = f"tiers({', '.join(judge.name for judge in judges)})"
        self.version = "+".join(judge.version for judge in judges)
        self.generators = tuple(name for judge in judges for name in getattr(judge, "generators", ()))

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        open_ = list(range(len(cases)))
        for judge in self._judges:
            found = judge([cases[i] for i in open_]) if open_ else []
            named = [Verdict(v.label, f"{judge.name}: {v.reason}", v.evidence, v.score) for v in found]
            if not verdicts:
                verdicts = named
            else:
                for i, verdict in zip(open_, named, strict=True):
                    verdicts[i] = verdict
            open_ = [i for i in open_ if self._passes(verdicts[i])]
        return verdicts

    def _passes(self, verdict: Verdict) -> bool:
        if self.config.next_on == "unsure":
            return verdict.label is Label.UNSURE
        return verdict.label is not Label.EQUIVALENT


def _build(config: Any, parts: Parts) -> Judge:
    return Tiers(config, [JUDGES[judge.kind].build(judge.options, parts) for judge in config.judges])


def _models(config: Any) -> set[str]:
    return {name for judge in config.judges for name in judge.model_names()}


def _version(config: Any) -> str:
    return " ".join(judge.version() for judge in config.judges)


def _fits(config: Any, source: pa.Table | Collection[str]) -> str | None:
    """The tiers fit if one of them does: it decides what the others leave."""
    reasons = [fits(judge, source) for judge in config.judges]
    return None if None in reasons else "; ".join(str(reason) for reason in reasons)


JUDGES.register("tiers")(
    Kind(TiersConfig, _build, short="judges", models=_models, needs=(), fits=_fits, version=_version)
)
