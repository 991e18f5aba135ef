"""Where a sweep's arms come from: a list that is known, or a search that proposes them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from cuvee.errors import CuveeError
from services.arms import arm_name, proposed
from services.measures import BASE
from services.measuring import Measure
from services.plan import ArmPlan, Builder
from services.recipe import Recipe
from services.results import metric_of
from services.search import VALIDATION
from services.store import Store
from services.sweep.conduct import Task
from services.sweep.places import workers_of
from services.sweep.propose import Proposer
from services.sweep.records import Record, Records
from services.sweep.trial import value_of
from services.table_plan import Surroundings

Say = Callable[[str], None]


def task_of(plan: ArmPlan, measures: Sequence[Measure] | None = None) -> Task:
    """An arm in its parts: what others may share, its own last training, its evaluations (all, or these)."""
    nodes = [m.node for m in (plan.measures if measures is None else measures)]
    if not plan.stages:
        return Task([], None, nodes)
    train = list(plan.stages.values())[-1].train
    return Task(list(train.inputs.values()), train, nodes)


def needed(plan: ArmPlan, metrics: Sequence[str]) -> list[Measure]:
    """The evaluations without which these metrics are not known."""
    final = plan.last_point
    found: dict[str, Measure] = {}
    for name in metrics:
        if name.split(".")[0] == VALIDATION:
            continue
        word = name.removesuffix(".rise").removeprefix("tasks.")
        points = {final, BASE} if name.endswith(".rise") or name == "retention.drop" else {final}
        there = [m for m in plan.measures if m.point in points]
        if name == "retention.drop":
            mine = [m for m in there if "retention" in m.kind]
        else:
            mine = [m for m in there if word == m.task or word.startswith(f"{m.task}.")]
        found |= {m.node.key: m for m in mine or there}
    return list(found.values())


def score_of(plan: ArmPlan, name: str, store: Store) -> float | None:
    """A metric of an arm that has run: by the losses of its own training, or by its evaluations."""
    if name.split(".")[0] != VALIDATION:
        return metric_of(plan, name, "final", store)
    train = task_of(plan).train
    done = store.done(train.key) if train else None
    return value_of(done.info.get("validation") or {}, name) if done else None


class Listed:
    """Arms that are known. `failures` has the reason of each that did not come to its end."""

    def __init__(self, plans: Sequence[ArmPlan], metrics: Sequence[str] | None, allowed: int, say: Say) -> None:
        """`metrics`: measure only what these need."""
        self.plans, self.metrics, self.allowed, self.say = plans, metrics, allowed, say
        self.failures: dict[str, str] = {}
        self._next = 0

    def next(self) -> int | None:
        """The next of the list, unless too many have failed."""
        if self._next >= len(self.plans) or len(self.failures) > self.allowed:
            return None
        self._next += 1
        return self._next - 1

    def task(self, number: int) -> Task:
        """The parts of the arm."""
        plan = self.plans[number]
        return task_of(plan, None if self.metrics is None else needed(plan, self.metrics))

    def reported(self, number: int, step: int, steps: int, signal: float) -> None:
        """Nobody compares."""

    def finished(self, number: int, seconds: float) -> None:
        """Say so."""
        self.say(f"{self.plans[number].arm.name}: finished")

    def stopped(self, number: int, step: int, seconds: float) -> None:
        """There is no scheduler, so that only Tune's end can have done it."""
        self.failed(number, f"ended at step {step}")

    def failed(self, number: int, reason: str) -> None:
        """Keep the reason."""
        name = self.plans[number].arm.name
        self.failures[name] = reason
        self.say(f"{name}: failed: {reason}")


class Searching:
    """Arms of a search, with their records."""

    def __init__(
        self,
        recipe: Recipe,
        records: Records,
        where: Surroundings,
        store: Store,
        begun: Callable[[ArmPlan], None],
        say: Say,
    ) -> None:
        assert recipe.arms.search is not None
        self.recipe, self.search, self.records = recipe, recipe.arms.search, records
        self.where, self.store, self.begun, self.say = where, store, begun, say
        self.proposer = Proposer(self.search, recipe.seed)
        self.plans: dict[int, ArmPlan] = {}
        self.why_ended = ""
        self._again = [r.number for r in records.all() if not r.over]
        self._failed = 0
        self._lock = threading.RLock()

    def next(self) -> int | None:
        """An arm that an earlier command left, else a new one while the budget lasts."""
        with self._lock:
            if self._failed > self.recipe.arms.max_failures:
                self.why_ended = f"{self._failed} arms failed, more than max_failures: {self.recipe.arms.max_failures}"
                return None
            if (limit := self.search.budget.gpu_hours) and hours(self.records.all()) >= limit:
                self.why_ended = f"the budget of {limit:g} GPU-hours is spent"
                return None
            if self._again:
                return self._again.pop(0)
            known = self.records.all()
            if len(known) >= self.search.budget.arms:
                return None
            point = self.proposer.next(known)
            if point is None:
                self.why_ended = f"the space has no other arm than these {len(known)}"
                return None
            number = len(known) + 1
            values = self.proposer.space.values(point)
            self.records.save(Record(number, arm_name(number), point, values))
            return number

    def plan(self, number: int) -> ArmPlan:
        """The arm with its nodes."""
        if number not in self.plans:
            arm = proposed(self.recipe, number, self.records.by_number[number].values)
            self.plans[number] = Builder(arm, self.where).build()
        return self.plans[number]

    def task(self, number: int) -> Task:
        """The parts of the arm; only what its metrics need is measured."""
        plan, record = self.plan(number), self.records.by_number[number]
        parts = task_of(plan, needed(plan, self.search.metric))
        with self._lock:
            record.status, record.reason = "running", ""
            record.train = parts.train.key if parts.train else ""
            record.workers = workers_of(parts.train)
            nodes = [*parts.first, *([parts.train] if parts.train else []), *parts.after]
            record.keys = [node.key for node in nodes]
            self.records.save(record)
        self.begun(plan)
        return parts

    def reported(self, number: int, step: int, steps: int, signal: float) -> None:
        """Keep what the scheduler was told."""
        with self._lock:
            record = self.records.by_number[number]
            record.reports = [(s, v) for s, v in record.reports if s < step] + [(step, signal)]
            record.step, record.steps = step, steps
            self.records.save(record)

    def finished(self, number: int, seconds: float) -> None:
        """Its scores. Raises CuveeError when a metric is not there: nothing could choose by it."""
        plan = self.plan(number)
        scores = {name: score_of(plan, name, self.store) for name in self.search.metric}
        if missing := [name for name, value in scores.items() if value is None]:
            raise CuveeError(f"{missing[0]} was never reported")
        with self._lock:
            record = self.records.by_number[number]
            done = self.store.done(record.train) if record.train else None
            info = done.info if done else {}
            record.status, record.scores = "finished", {k: float(v) for k, v in scores.items() if v is not None}
            record.step = record.steps = int(info.get("steps", 0))
            record.seconds = done.seconds if done else seconds
            self.records.save(record)
        said = ", ".join(f"{name} {value:.4g}" for name, value in record.scores.items())
        self._tell(record, said)

    def stopped(self, number: int, step: int, seconds: float) -> None:
        """It leaves no artifact, and its checkpoints serve nobody."""
        with self._lock:
            record = self.records.by_number[number]
            record.status, record.step, record.seconds = "stopped", step, seconds
            self.records.save(record)
        self._tell(record, "")

    def failed(self, number: int, reason: str) -> None:
        """Keep the reason; a next command tries it again."""
        with self._lock:
            self._failed += 1
            record = self.records.by_number[number]
            record.status, record.reason = "failed", reason
            self.records.save(record)
        self._tell(record, "")

    def _tell(self, record: Record, scores: str) -> None:
        over = sum(r.status != "running" for r in self.records.all())
        self.say(
            f"{record.name}: {record.said()}{f' ({scores})' if scores else ''}, {over} of {self.search.budget.arms}"
        )


def hours(records: Sequence[Record]) -> float:
    """Hours of workers in the arms' own trainings."""
    return sum(record.seconds * record.workers for record in records) / 3600
