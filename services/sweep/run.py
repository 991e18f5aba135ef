"""A sweep from its first arm to its results: what is tried, what is chosen, what is measured at the end.

    grid, add, ablate            all arms under all seeds
    with nuisance                candidates of each arm on validation rows; then each arm with its best, on test rows
    search                       proposals on validation rows; then the finalists and the arms of `add`, on test rows

One arm at a time runs in the driver, by the broker alone. Several at a time, and every search, go through Ray Tune.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from cuvee.errors import CuveeError
from services import arms as expansion
from services.broker import Broker, Observer, Outcome
from services.plan import ArmPlan, Builder, Plan
from services.runtime import Runtime
from services.store import Store
from services.sweep import choose, trial, tuning
from services.sweep.conduct import Conductor
from services.sweep.places import Places, places
from services.sweep.records import Records, search_name
from services.sweep.sources import Listed, Say, Searching, needed, score_of, task_of
from services.table_plan import Surroundings


@dataclass
class Made:
    """What ran: the arms that are reported, the steps' outcomes, and what a search or a tuning found."""

    plan: Plan
    outcomes: list[Outcome]
    search: dict[str, Any] | None = None
    nuisance: dict[str, Any] | None = None
    failures: dict[str, str] = field(default_factory=dict)


@dataclass
class Sweep:
    """The parts that every phase needs. `begun` is told each arm of a search; `keep` the search so far."""

    store: Store
    runtime: Runtime
    where: Surroundings
    observers: Sequence[Observer]
    say: Say
    name: str
    keep_going: bool
    begun: Callable[[ArmPlan], None] = lambda plan: None
    keep: Callable[[dict[str, Any], Sequence[str]], None] = lambda search, keys: None
    function: Callable[..., None] = field(default_factory=lambda: trial.run)

    def run(self, plan: Plan) -> Made:
        """All phases of a recipe."""
        arms = plan.recipe.arms
        if arms.search:
            return self._search(plan)
        if arms.nuisance:
            return self._nuisance(plan)
        outcomes, failures = self.listed(plan, plan.arms, None)
        return Made(plan, outcomes, failures=failures)

    # Arms that are known

    def listed(
        self, plan: Plan, arms: Sequence[ArmPlan], metrics: Sequence[str] | None
    ) -> tuple[list[Outcome], dict[str, str]]:
        """Run these arms; with `metrics`, measure only what these need. Outcomes, and the reasons of failed arms."""
        nodes = [node for arm in arms for node in (arm.targets if metrics is None else _nodes(arm, metrics))]
        settings = plan.recipe.arms
        found = self._places(arms, settings.parallel) if len(arms) > 1 else Places(1, False)
        if found.arms == 1:
            allowed = settings.max_failures if self.keep_going else 0
            broker = Broker(self.store, self.runtime, self.observers, keep_going=self.keep_going, max_failures=allowed)
            return broker.run(nodes), {}
        source = Listed(arms, metrics, settings.max_failures, self.say)
        conductor = self._conductor(source, found, "arms")
        conductor.run()
        # Tables that no training needs, and the outcomes of everything, in the order of the graph.
        outcomes = Broker(self.store, self.runtime, keep_going=True).run(nodes) if not source.failures else []
        return _joined(conductor.outcomes, outcomes), source.failures

    def _places(self, arms: Sequence[ArmPlan], limit: int | None) -> Places:
        trainings = [task.train for arm in arms if (task := task_of(arm)).train is not None]
        if limit == 1 or all(self.store.done(node.key) for arm in arms for node in arm.targets):
            return Places(1, False)
        if self.runtime.address is None and limit is None and not _declared(trainings):
            return Places(1, False)  # one machine and no word of what an arm takes: it takes all
        self.runtime.ray()
        return places(trainings, self.runtime.capacity, limit)

    def _conductor(self, source: Any, found: Places, part: str, **more: Any) -> Conductor:
        folder = self.store.scratch / "work" / "tune" / f"{self.name}-{part}"
        more |= {"folder": folder, "function": self.function}
        return Conductor(self.store, self.runtime, source, found, self.observers, **more)

    # A search

    def _search(self, plan: Plan) -> Made:
        recipe, search = plan.recipe, plan.recipe.arms.search
        assert search is not None
        records = Records(self.store, search_name(recipe))
        source = Searching(recipe, records, self.where, self.store, self._begun(records, search), self.say)
        outcomes: list[Outcome] = []
        if any(not r.over for r in records.all()) or len(records.all()) < search.budget.arms:
            if known := [r for r in records.all() if r.over]:
                self.say(f"{len(known)} arms of {search.budget.arms} are known from before")
            self.runtime.ray()
            stand_ins = [task.train for arm in plan.arms if (task := task_of(arm)).train is not None]
            scheduler = partial(tuning.asha, search.scheduler, records.all()) if search.scheduler else None
            conductor = self._conductor(
                source,
                places(stand_ins, self.runtime.capacity, recipe.arms.parallel),
                "search",
                signal=search.signal if search.scheduler else "",
                scheduler=scheduler,
            )
            conductor.run()
            outcomes = conductor.outcomes
        for record in records.all():
            if record.status == "stopped" and record.train:
                self.store.drop_work(record.train)
        found = choose.summary(search, records, source.why_ended)
        best = [r for r in records.all() if r.name in found["finalists"]]
        if not best:
            reasons = [r.reason for r in records.all() if r.reason]
            raise CuveeError(
                f"no arm of the search has finished; the first failed by: {reasons[0] if reasons else '?'}"
            )
        self.keep(found, [key for r in records.all() for key in r.keys])
        self.say(f"finalists: {', '.join(found['finalists'])}")
        last = self._final(plan, expansion.finals(recipe, {r.number: r.values for r in best}), search.metric)
        names = set(found["finalists"])
        checked = [arm for arm in last.validation if arm.arm.variant in names]
        found["winner"] = choose.winner(search, choose.validated(search, checked, self.store))
        self.keep(found, [key for r in records.all() for key in r.keys])
        failures = {r.name: r.reason for r in records.all() if r.status == "failed"} | last.failures
        return Made(last.plan, _joined(outcomes, last.outcomes), search=found, failures=failures)

    def _begun(self, records: Records, search: Any) -> Callable[[ArmPlan], None]:
        def told(arm: ArmPlan) -> None:
            self.begun(arm)
            self.keep(choose.summary(search, records), [key for r in records.all() for key in r.keys])

        return told

    # Nuisance settings

    def _nuisance(self, plan: Plan) -> Made:
        recipe, nuisance = plan.recipe, plan.recipe.arms.nuisance
        assert nuisance is not None
        tried = expansion.candidates(recipe)
        plans = {arm.name: Builder(arm, self.where).build() for found in tried.values() for _, arm in found}
        for arm in plans.values():
            self.begun(arm)
        outcomes, failures = self.listed(plan, list(plans.values()), [nuisance.metric])
        found: dict[str, Any] = {"metric": nuisance.metric, "lower": nuisance.lower, "arms": {}}
        chosen: dict[str, dict[str, Any]] = {}
        for name, options in tried.items():
            scores = [score_of(plans[arm.name], nuisance.metric, self.store) for _, arm in options]
            known = [(score, i) for i, score in enumerate(scores) if score is not None]
            if not known:
                failures.setdefault(name, f"{nuisance.metric} was never reported")
                continue
            best = (min if nuisance.lower else max)(known, key=lambda pair: pair[0])[1]
            chosen[name] = options[best][0]
            tries = [{"settings": values, "score": score} for (values, _), score in zip(options, scores, strict=True)]
            found["arms"][name] = {"chosen": options[best][0], "score": scores[best], "candidates": tries}
        last = self._final(plan, expansion.tuned(recipe, chosen), [])
        return Made(last.plan, _joined(outcomes, last.outcomes), nuisance=found, failures=failures | last.failures)

    # The end of both

    def _final(self, plan: Plan, arms: Sequence[expansion.Arm], metrics: Sequence[str]) -> _Final:
        """Run arms under every seed, measured on test rows, and on validation rows as far as `metrics` need."""
        tests = [Builder(arm, self.where).build() for arm in arms]
        checks = [Builder(replace(arm, half="validation"), self.where).build() for arm in arms] if metrics else []
        for arm in tests:
            self.begun(arm)
        for arm, check in zip(tests, checks, strict=False):
            # The training is the same, so that both halves are measures of one model.
            arm.measures += [replace(m, point=f"{m.point} (validation)") for m in needed(check, metrics)]
        outcomes, failures = self.listed(plan, tests, None)
        for arm in tests:
            arm.measures = [m for m in arm.measures if not m.point.endswith(" (validation)")]
        return _Final(Plan(plan.recipe, tests, plan.missing), checks, outcomes, failures)


@dataclass
class _Final:
    plan: Plan
    validation: list[ArmPlan]
    outcomes: list[Outcome]
    failures: dict[str, str]


def _nodes(arm: ArmPlan, metrics: Sequence[str]) -> list[Any]:
    task = task_of(arm, needed(arm, metrics))
    return [*task.first, *([task.train] if task.train else []), *task.after]


def _declared(trainings: Sequence[Any]) -> bool:
    return any(
        train.execution.get("execution", {}).get("cpus_per_worker")
        or train.execution.get("execution", {}).get("use_gpu")
        for train in trainings
    )


def _joined(*lists: Sequence[Outcome]) -> list[Outcome]:
    """Each step once: computed before reused."""
    found: dict[str, Outcome] = {}
    for outcome in (o for outcomes in lists for o in outcomes):
        old = found.get(outcome.node.key)
        if (
            old is None
            or old.status == "reused"
            or (old.status in ("failed", "skipped") and outcome.status == "computed")
        ):
            found[outcome.node.key] = outcome
    return list(found.values())
