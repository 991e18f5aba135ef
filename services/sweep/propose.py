"""Which arm to try next.

The first arms are even points of the space. After them Optuna's tree-structured Parzen estimator (Bergstra et al.,
2011) proposes, over the coordinates of the unit cube and with all of them modelled together. For every proposal the
sampler is made anew: its seed is that of the recipe and the number of the arm, and what it knows are the records. So a
search that was killed proposes what it would have proposed, and nothing of a library's state has to be kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cuvee.rng import stream_seed
from services.search import Search
from services.space import Space, said
from services.sweep.records import Record

if TYPE_CHECKING:
    import optuna

TRIES = 8
"""Proposals of the sampler that may repeat an arm before an even point is taken instead."""


class Proposer:
    """Points for a search, one after the other."""

    def __init__(self, search: Search, seed: int) -> None:
        self.search, self.seed = search, seed
        self.space = Space(search.space)
        self._even = self.space.design(search.budget.arms, seed)

    def next(self, records: Sequence[Record]) -> list[float] | None:
        """The point of the arm after these; None when there is no other arm in the space."""
        tried = {said(record.values) for record in records}
        number = len(records) + 1
        if self.search.searcher == "tpe" and number > self.search.first:
            for attempt in range(TRIES):
                point = self.sample(records, stream_seed(self.seed, "search", number, attempt))
                if said(self.space.values(point)) not in tried:
                    return point
        return next((point for point in self._even if said(self.space.values(point)) not in tried), None)

    def sample(self, records: Sequence[Record], seed: int) -> list[float]:
        """A point of Optuna's sampler, which knows the records."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        options: dict[str, Any] = {"multivariate": True, "constant_liar": True, "warn_independent_sampling": False}
        sampler = optuna.samplers.TPESampler(seed=seed % 2**32, n_startup_trials=0, **options)
        directions: Any = ["minimize" if lower else "maximize" for lower in self.search.lower]
        study = optuna.create_study(directions=directions, sampler=sampler)
        for record in records:
            if (trial := self._told(record)) is not None:
                study.add_trial(trial)
        asked = study.ask(self._distributions())
        return [self._coordinate(name, value) for name, value in asked.params.items()]

    def _distributions(self) -> dict[str, Any]:
        from optuna.distributions import CategoricalDistribution, FloatDistribution

        found: dict[str, Any] = {}
        for name, dimension in self.space.dimensions.items():
            for i in range(dimension.width):
                choices = len(dimension.options)
                found[f"{name}/{i}"] = CategoricalDistribution(range(choices)) if choices else FloatDistribution(0, 1)
        return found

    def _coordinate(self, name: str, value: Any) -> float:
        """A parameter of Optuna's as a coordinate: a choice is the middle of its part of the line."""
        choices = len(self.space.dimensions[name.rpartition("/")[0]].options)
        return (value + 0.5) / choices if choices else float(value)

    def _params(self, point: Sequence[float]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, dimension, part in self.space.parts(point):
            for i, u in enumerate(part):
                choices = len(dimension.options)
                found[f"{name}/{i}"] = min(int(u * choices), choices - 1) if choices else float(u)
        return found

    def _told(self, record: Record) -> optuna.trial.FrozenTrial | None:
        """A record as a trial of Optuna's; None for what it cannot learn from."""
        from optuna.trial import TrialState, create_trial

        several = len(self.search.metric) > 1
        more: dict[str, Any] = {}
        if record.status == "finished":
            state = TrialState.COMPLETE
            more["values"] = [record.scores[name] for name in self.search.metric]
        elif record.status == "stopped" and not several and record.reports:
            # What it had when it was stopped counts as less sure than what ran to the end.
            state = TrialState.PRUNED
            sign = 1 if self.search.lower[0] else -1
            more["intermediate_values"] = {step: sign * signal for step, signal in record.reports}
        elif record.status == "running":
            state = TrialState.RUNNING
        else:
            return None
        return create_trial(state=state, params=self._params(record.point), distributions=self._distributions(), **more)
