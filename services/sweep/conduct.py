"""Runs arms through Ray Tune, and does for them what they share.

Tune runs in a thread; the driver's own thread is the conductor. It takes what trials ask for: for an arm that begins,
the broker makes everything that its last training needs, each missing key once whichever arm asks; then the arm waits
for a place and trains by itself; for one that has trained, the broker runs its evaluations. So engines and shared
trainings belong to the driver, and what a trial holds while it waits is a hundredth of a CPU.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cuvee.errors import CuveeError, Unavailable
from services.broker import Broker, Observer, Outcome
from services.graph import Node, ordered
from services.groups import free_trainings
from services.runtime import Runtime
from services.steps import get
from services.steps.base import Progress
from services.store import Store
from services.sweep import trial
from services.sweep.desk import Ask, Desk
from services.sweep.places import Places
from training.settings import TrainConfig

WAIT = 0.5
"""Seconds in which nothing is asked after which trainings are looked at."""
SETTLE = 5.0
"""Seconds after which the processes of a stopped trial have gone."""
RESTARTS = 3
"""Times that a trial whose process died begins again."""


@dataclass
class Task:
    """What is to be made for an arm: everything in `first`, then `train` in a trial, then `after`."""

    first: Sequence[Node]
    train: Node | None
    after: Sequence[Node]


class Source(Protocol):
    """Where arms come from, and who is told what becomes of them. `next` is called in Tune's thread."""

    def next(self) -> int | None:
        """The number of another arm; None when there is none."""

    def task(self, number: int) -> Task:
        """What is to be made. Raises CuveeError for an arm that cannot work."""

    def reported(self, number: int, step: int, steps: int, signal: float) -> None:
        """A validation loss on the way, in Tune's thread."""

    def finished(self, number: int, seconds: float) -> None:
        """Everything is there. Raises CuveeError when it is of no use."""

    def stopped(self, number: int, step: int, seconds: float) -> None:
        """The scheduler has ended it, after so many seconds of training."""

    def failed(self, number: int, reason: str) -> None:
        """It did not come to its end."""


@dataclass
class _Running:
    task: Task
    reporters: list[Progress] = field(default_factory=list)
    started: float = 0.0
    seen: int = 0
    steps: int | None = None


class Once:
    """Passes on what the broker tells, and of a step that is reused again and again only the first time."""

    def __init__(self, observer: Observer, seen: set[str]) -> None:
        self._observer, self._seen = observer, seen
        self.started, self.waiting = observer.started, observer.waiting

    def finished(self, outcome: Outcome) -> None:
        """Tell it, unless it was told."""
        if outcome.status != "reused" or outcome.node.key not in self._seen:
            self._observer.finished(outcome)


class Conductor:
    """`signal` is the validation loss that trials report; `scheduler` makes Tune's, None for none. `function` is what
    a trial runs."""

    def __init__(
        self,
        store: Store,
        runtime: Runtime,
        source: Source,
        places: Places,
        observers: Sequence[Observer] = (),
        *,
        folder: Path,
        signal: str = "",
        scheduler: Callable[[], Any] | None = None,
        function: Callable[..., None] = trial.run,
    ) -> None:
        self.store, self.runtime, self.source, self.places = store, runtime, source, places
        self._over = False
        self._gone: set[int] = set()
        self._dirty = 0.0
        self._seen: set[str] = set()
        self.observers = [Once(observer, self._seen) for observer in observers]
        self.folder, self.signal, self.scheduler, self.function = folder, signal, scheduler, function
        self.outcomes: list[Outcome] = []
        self._work: list[Ask] = []
        self._ready: list[int] = []
        self._tasks: dict[int, _Running] = {}
        self._training: set[int] = set()
        self._ended: queue.SimpleQueue[tuple[int, Mapping[str, Any], bool]] = queue.SimpleQueue()

    def run(self) -> None:
        """Until there is no other arm and all have ended. Raises what Tune raises."""
        self.runtime.ray()
        desk = Desk()
        fault: list[BaseException] = []

        def tune() -> None:
            try:
                self._tune(desk)
            except BaseException as error:
                fault.append(error)

        thread = threading.Thread(target=tune, name="tune", daemon=True)
        thread.start()
        try:
            while thread.is_alive() or not self._ended.empty():
                asks = desk.take(WAIT)
                self._end()  # first, since a trial that was stopped may still complain of it
                for ask in asks:
                    self._asked(ask, desk)
                self._do_work(desk)
                self._follow()
            if self._dirty:  # what comes after the arms needs the machine too
                time.sleep(max(0.0, SETTLE - (time.monotonic() - self._dirty)))
                free_trainings()
        finally:
            self._over = True  # an interrupted command proposes nothing more, if its process lives on
            desk.close()
        if fault:
            raise Unavailable(f"Ray Tune has ended: {fault[0]}", remedy="see the log; run again to go on") from fault[0]

    # Ray Tune

    def _tune(self, desk: Desk) -> None:
        from ray import tune

        from services.sweep.tuning import quiet, searcher

        function = tune.with_parameters(
            self.function, desk=desk, url=self.store.url, log=str(self.runtime.log), signal=self.signal
        )
        with quiet():
            tune.Tuner(
                tune.with_resources(function, {"CPU": 0.01}),
                tune_config=tune.TuneConfig(
                    search_alg=searcher(self._next, self.source.reported, self._has_ended),
                    scheduler=self.scheduler() if self.scheduler else None,
                    num_samples=-1,
                    max_concurrent_trials=self.places.arms + 1,  # one prepares while the others train
                    # A process costs seconds, and keeps nothing of an arm. One whose arm was stopped may still be
                    # busy with the end of its training: Tune would fail the next arm in it and tell nobody.
                    reuse_actors=self.scheduler is None,
                ),
                run_config=tune.RunConfig(
                    name="tune",
                    storage_path=str(self.folder),
                    verbose=0,
                    failure_config=tune.FailureConfig(max_failures=RESTARTS),
                    checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0),
                ),
            ).fit()

    def _next(self) -> int | None:
        return None if self._over else self.source.next()

    def _has_ended(self, number: int, result: Mapping[str, Any], error: bool) -> None:
        self._ended.put((number, result, error))

    # What trials ask

    def _asked(self, ask: Ask, desk: Desk) -> None:
        if ask.number in self._gone:
            return
        if ask.word == "trained":
            self._has_trained(ask)
        self._work.append(ask)
        # Arms that have trained come first: their end tells the search most, and frees their trial.
        self._work.sort(key=lambda one: one.word != "trained")

    def _do_work(self, desk: Desk) -> None:
        """One piece of the driver's work if it may run now, else trainings for the free places."""
        for ask in list(self._work):
            nodes = self._nodes(ask, desk)
            if nodes is None:
                self._work.remove(ask)
            elif self.places.together or not self._training or self._light(nodes):
                self._work.remove(ask)
                self._make(ask, nodes, desk)
                return
        if self._work and not self.places.together:
            return  # let the trainings come to their end, so that the engine has the machine
        if self._dirty and not self._training and not self.places.together:
            if time.monotonic() - self._dirty < SETTLE:
                return
            free_trainings()
            self._dirty = 0.0
        while self._ready and len(self._training) < self.places.arms:
            if not self.places.together:
                self.runtime.release_engines()
            self._train(self._ready.pop(0), desk)

    def _nodes(self, ask: Ask, desk: Desk) -> Sequence[Node] | None:
        """What the driver has to make for what was asked; None when the arm has failed instead."""
        number = ask.number
        if error := ask.content.get("error"):
            self._fail(number, str(error), desk)
            return None
        if number not in self._tasks:
            try:
                self._tasks[number] = _Running(self.source.task(number))
            except CuveeError as failure:
                self._fail(number, str(failure), desk)
                return None
        task = self._tasks[number].task
        return task.first if ask.word == "begin" else task.after

    def _light(self, nodes: Sequence[Node]) -> bool:
        """Whether nothing but tables is missing, which may be made beside trainings."""
        return all(get(n.step).kind == "data" or self.store.done(n.key) for n in ordered(nodes))

    def _make(self, ask: Ask, nodes: Sequence[Node], desk: Desk) -> None:
        number, running = ask.number, self._tasks[ask.number]
        try:
            outcomes = Broker(self.store, self.runtime, self.observers, keep_going=True).run(nodes)
        except Exception as error:
            self._fail(number, f"{type(error).__name__}: {error}", desk)
            return
        self._note(outcomes)
        lost = [o for o in outcomes if o.status == "failed"] or [o for o in outcomes if o.status == "skipped"]
        if lost:
            self._fail(number, f"{lost[0].node.label}: {lost[0].error}", desk)
            return
        train = running.task.train
        if ask.word == "begin" and train is not None and not self.store.done(train.key):
            self._ready.append(number)
        elif ask.word == "begin" and running.task.after:
            if train is not None:
                self._note(
                    [Outcome(train, "reused", self.store.where(train.key), 0.0, dict(self._info(train)))], tell=True
                )
            self._work.insert(0, Ask(number, "trained", {"seconds": 0.0, "how": "reused"}))
        else:
            self._finish(number, float(ask.content.get("seconds", 0.0)), desk)

    def _finish(self, number: int, seconds: float, desk: Desk) -> None:
        try:
            self.source.finished(number, seconds)
        except CuveeError as failure:
            self._fail(number, str(failure), desk)
            return
        desk.answer(number, {"result": {"status": "finished"}})

    def _fail(self, number: int, reason: str, desk: Desk) -> None:
        self.source.failed(number, reason)
        desk.answer(number, {"result": {"status": "failed"}})

    def _info(self, node: Node) -> Mapping[str, Any]:
        done = self.store.done(node.key)
        return done.info if done else {}

    def _note(self, outcomes: Sequence[Outcome], *, tell: bool = False) -> None:
        self.outcomes += outcomes
        self._seen |= {outcome.node.key for outcome in outcomes if not tell}
        if tell:
            for outcome in outcomes:
                for observer in self.observers:
                    observer.finished(outcome)
                self._seen.add(outcome.node.key)

    # Trainings of arms

    def _train(self, number: int, desk: Desk) -> None:
        running = self._tasks[number]
        assert running.task.train is not None
        running.reporters = [observer.started(running.task.train) for observer in self.observers]
        running.started = time.monotonic()
        config = TrainConfig.model_validate(running.task.train.config["train"])
        running.steps = config.steps(self._info(running.task.train.inputs["plan"])["rows"])
        self._training.add(number)
        desk.answer(number, {"node": running.task.train})

    def _has_trained(self, ask: Ask) -> None:
        running = self._tasks[ask.number]
        self._training.discard(ask.number)
        train = running.task.train
        assert train is not None
        if error := ask.content.get("error"):
            outcome = Outcome(train, "failed", "", time.monotonic() - running.started, {}, CuveeError(str(error)))
        else:
            done = self.store.done(train.key)
            assert done is not None
            status = "computed" if ask.content["how"] == "computed" else "reused"
            outcome = Outcome(train, status, self.store.where(train.key), done.seconds, dict(done.info))  # type: ignore[arg-type]
        self._note([outcome], tell=True)

    def _follow(self) -> None:
        """Tell observers how far trainings are."""
        for number in self._training:
            running = self._tasks[number]
            assert running.task.train is not None
            path = self.store.scratch / "work" / running.task.train.key / "metrics.jsonl"
            if path.exists() and (lines := path.read_bytes().count(b"\n")) > running.seen:
                running.seen = lines
                for reporter in running.reporters:
                    reporter(lines, running.steps)

    def _end(self) -> None:
        """What Tune says of trials that are over."""
        while not self._ended.empty():
            number, result, error = self._ended.get()
            if result.get("final"):
                continue  # the driver has answered it, and knows
            self._gone.add(number)
            self._dirty = time.monotonic()
            running = self._tasks.get(number)
            self._work = [ask for ask in self._work if ask.number != number]
            self._ready = [ready for ready in self._ready if ready != number]
            was_training = number in self._training
            self._training.discard(number)
            step = int(result.get("step", 0))
            said = f"its process ended {RESTARTS + 1} times" if error else f"stopped at step {step}"
            seconds = time.monotonic() - running.started if running and was_training else 0.0
            if was_training and running is not None and running.task.train is not None:
                status = "failed" if error else "stopped"
                self._note([Outcome(running.task.train, status, "", seconds, {}, CuveeError(said))], tell=True)  # type: ignore[arg-type]
            if error:
                self.source.failed(number, f"{said}; see the log")
            else:
                self.source.stopped(number, step, seconds)
