"""Runs each missing step once, also when many arms or several commands ask for it.

One broker belongs to one command. It walks the graph by what is ready, and among the ready steps keeps the machine's
state as long as it serves: plain data steps first, then steps on the engine that is up, then those on another engine,
then trainings, for which every engine is put away. A step that another command is making is waited for, not repeated.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from cuvee.errors import CuveeError, UserError
from services import lease as leases
from services.graph import Node, ordered
from services.runtime import Runtime
from services.steps import Context, get
from services.steps.base import Progress
from services.store import Done, Store

Status = Literal["computed", "reused", "failed", "skipped", "stopped"]
POLL = 0.5
"""Seconds between looks at a step that another command is making."""


@dataclass(frozen=True)
class Outcome:
    """What became of a node."""

    node: Node
    status: Status
    path: str
    seconds: float
    info: dict[str, Any]
    error: CuveeError | None = None

    def record(self) -> dict[str, Any]:
        """As printed by `--json`."""
        found = {"name": self.node.label, "key": self.node.key, "path": self.path, "status": self.status}
        found["seconds"] = round(self.seconds, 2)  # type: ignore[assignment]
        if self.error:
            found["error"] = str(self.error)
        return found


class Observer(Protocol):
    """Told of every step: the terminal, the tracker."""

    def started(self, node: Node) -> Progress: ...

    def waiting(self, node: Node, holder: str) -> None: ...

    def finished(self, outcome: Outcome) -> None: ...


class Broker:
    """`keep_going`: a step that fails takes only what needs it along, as long as no more than `max_failures` have
    failed; without it the first failure ends the run."""

    def __init__(
        self,
        store: Store,
        runtime: Runtime,
        observers: Sequence[Observer] = (),
        *,
        keep_going: bool = False,
        max_failures: int | None = None,
    ) -> None:
        self.store, self.runtime = store, runtime
        self.observers = list(observers)
        self.keep_going = keep_going
        self.max_failures = max_failures
        self._failures = 0

    def run(self, targets: Sequence[Node]) -> list[Outcome]:
        """Make all artifacts that the targets need. Outcomes in the order of the graph."""
        graph = ordered(targets)
        outcomes: dict[str, Outcome] = {}
        for node in graph:
            if done := self.store.done(node.key):
                self._tell(outcomes, Outcome(node, "reused", self.store.where(node.key), 0.0, dict(done.info)))
        announced: set[str] = set()
        while len(outcomes) < len(graph):
            open_nodes = [n for n in graph if n.key not in outcomes]
            self._skip_hopeless(open_nodes, outcomes)
            ready = [
                n for n in open_nodes if n.key not in outcomes and all(i.key in outcomes for i in n.inputs.values())
            ]
            if not any(self._try(node, outcomes, announced) for node in sorted(ready, key=self._rank)) and ready:
                time.sleep(POLL)
        return [outcomes[node.key] for node in graph]

    def _rank(self, node: Node) -> int:
        kind = get(node.step).kind
        if kind == "data":
            return 0
        if kind == "engine":
            return 1 if node.model == self.runtime.engine_model else 2
        return 3

    def _skip_hopeless(self, nodes: Sequence[Node], outcomes: dict[str, Outcome]) -> None:
        for node in nodes:
            bad = [i for i in node.inputs.values() if i.key in outcomes and _lost(outcomes[i.key])]
            if bad:
                why = CuveeError(f"{bad[0].label} did not finish")
                self._tell(outcomes, Outcome(node, "skipped", "", 0.0, {}, why))

    def _try(self, node: Node, outcomes: dict[str, Outcome], announced: set[str]) -> bool:
        """Settle the node if it is free or has been made by somebody else meanwhile."""
        lease = self.store.acquire(node.key)
        if lease is None:
            if done := self.store.done(node.key):
                self._tell(outcomes, Outcome(node, "reused", self.store.where(node.key), 0.0, dict(done.info)))
                return True
            if node.key not in announced:
                announced.add(node.key)
                for observer in self.observers:
                    observer.waiting(node, self.store.holder(node.key))
            return False
        try:
            # Another command may have published between our look and the lease.
            if done := self.store.done(node.key):
                self._tell(outcomes, Outcome(node, "reused", self.store.where(node.key), 0.0, dict(done.info)))
                return True
            self._tell(outcomes, self._compute(node, lease))
        finally:
            lease.release()
        return True

    def _compute(self, node: Node, lease: leases.Lease) -> Outcome:
        reporters = [observer.started(node) for observer in self.observers]

        def progress(done: int, total: int | None) -> None:
            for report in reporters:
                report(done, total)

        start = time.monotonic()
        try:
            done = self._run_step(node, lease, progress)
        except CuveeError as error:
            if node.label not in error.message:
                error.message = f"{node.label}: {error.message}"
            self._failures += 1
            if not self.keep_going or (self.max_failures is not None and self._failures > self.max_failures):
                raise
            return Outcome(node, "failed", "", time.monotonic() - start, {}, error)
        return Outcome(node, "computed", self.store.where(node.key), done.seconds, dict(done.info))

    def _run_step(self, node: Node, lease: leases.Lease, progress: Progress) -> Done:
        spec = get(node.step)
        if spec.kind == "train":
            self.runtime.release_engines()
        if spec.kind == "engine":
            self.runtime.engine_model = node.model
        return run_step(self.store, self.runtime, node, lease, progress)

    def _tell(self, outcomes: dict[str, Outcome], outcome: Outcome) -> None:
        outcomes[outcome.node.key] = outcome
        for observer in self.observers:
            observer.finished(outcome)


def run_step(store: Store, runtime: Runtime, node: Node, lease: leases.Lease, progress: Progress) -> Done:
    """Compute a node whose inputs are there, and publish it."""
    start = time.monotonic()
    inputs = {name: source.key for name, source in node.inputs.items()}
    try:
        folder = store.attempt_folder(lease)
        context = Context(
            config=node.config,
            inputs={name: store.local(source.key) for name, source in node.inputs.items()},
            out=folder,
            work=store.work(node.key),
            seed=node.seed,
            execution=node.execution,
            runtime=runtime,
            progress=progress,
            key=node.key,
            input_keys=inputs,
        )
        with leases.beating(lease, lambda: store.save_work(node.key)):
            info = get(node.step).run(context)
        return store.publish(lease, folder, info=info, inputs=inputs, seconds=time.monotonic() - start)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise UserError(
                f"{node.label}: the store {store.url} cannot take more: {error.strerror}",
                remedy="free space (`cuvee store prune`) or give another with --store; finished steps are kept",
            ) from error
        raise


def _lost(outcome: Outcome) -> bool:
    return outcome.status in ("failed", "skipped")
