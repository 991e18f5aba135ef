"""The one writer of MLflow, with a journal before it.

A recipe's run has its arms and its steps as children; a step may serve many arms, so arms name their steps by tag
(`cuvee.step.<name>` = key). Every event goes to the journal (`<store>/work/tracking/<recipe hash>.jsonl`) and from
there, in a thread of its own, to MLflow. A server that is away holds nothing up and loses nothing: what was not
delivered goes with the next command, with its original times. Runs are found by tag before they are made, and runs
that a kill left open are closed by the next command.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import threading
import time as clock
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from cuvee.errors import Unavailable
from services.journal import Event, Journal, forget_files, journals
from services.mlflow_sink import KEY, Away, MlflowSink, Refused
from services.processes import Process
from services.redact import redact

MAX_PARAMS, MAX_VALUE = 20, 250
_GATHER = 0.5
"""Seconds in which events gather before they are said together."""
_PATIENCE = 30.0
"""Seconds before a server that was away is asked again."""
_TURN = 0.5
"""Seconds before looking again whether another command has stopped delivering."""
_FOREIGN = 24 * 3600 * 1000
"""Milliseconds of silence after which an open run of another machine counts as left behind."""

Status = Literal["finished", "failed", "killed"]


class Tracker:
    """The writer of one command. Its methods return at once and never raise for the server's sake.

    Runs are named by strings of ours: the recipe's hash, `<hash>/<arm>`, or a step's key. Close it, or use `with`.
    """

    def __init__(self, uri: str, store_root: Path, experiment: str = "cuvee") -> None:
        self.uri, self.experiment = uri, experiment
        self._folder = store_root / "work" / "tracking"
        self._sink = MlflowSink(uri, store_root / "mlflow-artifacts", self._opening)
        self._journals: dict[str, Journal] = {}
        self._thread: threading.Thread | None = None
        self._wake, self._closing = threading.Event(), threading.Event()
        self._busy = threading.Lock()
        self.problem = ""
        """Why events wait, or empty."""

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Runs

    def recipe_run(
        self,
        name: str,
        recipe_hash: str,
        *,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        artifacts: Mapping[str, str | bytes | Path] | None = None,
    ) -> str:
        """Open the run of a recipe, or open it again. `artifacts`: path in the run to content or file."""
        self._journals[recipe_hash] = Journal(self._folder, recipe_hash)
        self._open(recipe_hash, recipe_hash, name, None, {"cuvee.recipe": recipe_hash, **(tags or {})}, params)
        for path, content in (artifacts or {}).items():
            self.artifact(recipe_hash, path, content)
        return recipe_hash

    def arm_run(
        self, parent: str, name: str, *, tags: Mapping[str, str] | None = None, params: Mapping[str, Any] | None = None
    ) -> str:
        """Open the run of an arm. Its steps are tags `cuvee.step.<name>` with their keys."""
        run = f"{parent}/{name}"
        return self._open(
            run, parent, name, parent, {"cuvee.arm": name, "cuvee.recipe": parent, **(tags or {})}, params
        )

    def step_run(
        self,
        parent: str,
        kind: str,
        key: str,
        *,
        name: str = "",
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> str:
        """Open the run of a step. The whole `config` becomes an artifact."""
        said = {KEY: key, "cuvee.step": kind, "cuvee.recipe": parent, **(tags or {})}
        run = self._open(key, parent, name or kind, parent, said, params)
        if config:
            self.artifact(run, "config.json", json.dumps(redact(dict(config)), indent=1, default=str))
        return run

    def _open(
        self,
        run: str,
        home: str,
        name: str,
        parent: str | None,
        tags: Mapping[str, str],
        params: Mapping[str, Any] | None,
    ) -> str:
        self._journals[run] = self._journals[home]
        said = {k: str(v) for k, v in redact(dict(params or {})).items()}
        event = {
            "kind": "run",
            "run": run,
            "experiment": self.experiment,
            "name": name,
            "parent": parent,
            "tags": redact(dict(tags)),
            "params": {k: v[:MAX_VALUE] for k, v in list(said.items())[:MAX_PARAMS]},
            "owner": [socket.gethostname(), Process.of(os.getpid()).model_dump()],
        }
        self._say(run, event)
        if len(said) > MAX_PARAMS or any(len(v) > MAX_VALUE for v in said.values()):
            self.artifact(run, "params.json", json.dumps(said, indent=1))
        return run

    # What is said of a run

    def metric(self, run: str, name: str, value: float, step: int = 0, time: float | None = None) -> None:
        """One figure. `time` in seconds since the epoch, now if absent."""
        self.metrics(run, {name: value}, step, time)

    def metrics(
        self, run: str, values: Mapping[str, float], step: int = 0, time: float | None = None, model: str = ""
    ) -> None:
        """Several figures of one step. `model`: key of the model that they are about, which then shows them too."""
        rows = [[name, float(value), step] for name, value in values.items()]
        if rows:
            self._say(run, {"kind": "metrics", "metrics": rows, **({"model": model} if model else {})}, time)

    def tag(self, run: str, tags: Mapping[str, str]) -> None:
        """Add tags, or change them."""
        self._say(run, {"kind": "tags", "tags": redact({k: str(v) for k, v in tags.items()})})

    def artifact(self, run: str, path: str, content: str | bytes | Path) -> None:
        """A file of the run: text (credentials are hidden in it), bytes, or the content of a file as it is now."""
        if isinstance(content, str):
            content = redact(content).encode()
        data = content.read_bytes() if isinstance(content, Path) else content
        self._say(run, {"kind": "artifact", "path": path.lstrip("/"), "file": self._journals[run].keep(data)})

    def dataset(self, run: str, name: str, digest: str, source: str, rows: int, context: str = "training") -> None:
        """A table that the run read. `source`: where it is; `digest`: its artifact's key or its data's digest."""
        event = {"kind": "dataset", "name": name, "digest": digest, "source": redact(source), "rows": rows}
        self._say(run, {**event, "context": context})

    def model(self, run: str, name: str, path: str, key: str, metrics: Mapping[str, float] | None = None) -> None:
        """A model that the run made: a logged model of MLflow that points into the store; nothing is copied."""
        event = {"kind": "model", "name": name, "path": redact(path), "key": key}
        self._say(run, {**event, "metrics": {k: float(v) for k, v in (metrics or {}).items()}})

    def uses(self, run: str, key: str) -> None:
        """The model of artifact `key` was an input of the run."""
        self._say(run, {"kind": "uses", "key": key})

    def finish(self, run: str, status: Status = "finished") -> None:
        """The run is over."""
        self._say(run, {"kind": "finish", "status": status})

    def _say(self, run: str, event: Event, time: float | None = None) -> None:
        stamp = int(1000 * (clock.time() if time is None else time))
        self._journals[run].append({"time": stamp, **event, "run": run})
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
            self._thread.start()
        self._wake.set()

    # Delivery

    @property
    def pending(self) -> int:
        """Events that the server does not have yet."""
        return sum(1 for journal in journals(self._folder) for _ in journal.events(journal.sent))

    def replay(self) -> int:
        """Deliver what waits, also of earlier commands, and return how many events still wait."""
        self._deliver()
        return self.pending

    def close(self, timeout: float = 30.0) -> None:
        """Deliver what is left, for at most `timeout` seconds. Call it again or not at all: the journal has it."""
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive() and not self.problem:
                self.problem = f"{redact(self.uri)} takes too long"

    def notice(self) -> str:
        """A line for the user when something waits, else empty."""
        if not self.problem:
            return ""
        return f"MLflow has not everything yet ({self.problem}); the next command sends the rest from {self._folder}"

    def check(self) -> None:
        """Raises Unavailable when runs cannot be written."""
        try:
            self._sink.check(self.experiment)
        except (Away, Refused) as error:
            raise Unavailable(f"MLflow at {redact(self.uri)} cannot be written: {redact(str(error))}") from error

    def _work(self) -> None:
        wait: float | None = None
        while not self._closing.is_set():
            self._wake.wait(wait)
            self._closing.wait(_GATHER)
            self._wake.clear()
            done = self._deliver()
            if self.problem:
                self._closing.wait(_PATIENCE)
            wait = None if done else _PATIENCE if self.problem else _TURN
        while not self._deliver() and not self.problem:
            clock.sleep(_TURN)

    def _deliver(self) -> bool:
        """Everything that waits in any journal; False if that could not be, for now. Sets `problem`."""
        with self._busy, self._alone() as alone:
            if not alone:
                return False
            try:
                for journal in journals(self._folder):
                    self._deliver_journal(journal)
                forget_files(self._folder)
            except (Away, OSError) as error:
                if not self.problem:
                    logging.getLogger(__name__).warning("MLflow does not answer, events wait: %s", redact(str(error)))
                self.problem = redact(f"{self.uri}: {error}")
                return False
            self.problem = ""
            return True

    def _deliver_journal(self, journal: Journal) -> None:
        if not journal.behind:
            return
        for place, events in _batches(journal):
            try:
                self._sink.deliver(events, journal.kept)
            except Refused as error:
                for event in events:
                    journal.refuse(event, redact(str(error)))
                logging.getLogger(__name__).warning("MLflow refused an event: %s", redact(str(error)))
            journal.mark(place)

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether this command may deliver: two at once would make runs twice."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def _opening(self, run: str) -> Event | None:
        """The event that opened a run, from the journals."""
        for journal in [self._journals[run]] if run in self._journals else journals(self._folder):
            for _, event in journal.events():
                if event and event["kind"] == "run" and event["run"] == run:
                    return event
        return None

    # Runs that nobody closed

    def close_orphans(self) -> list[str]:
        """Close the runs that were left open by commands that are no more, at the time of their last event."""
        closed = []
        for journal in journals(self._folder):
            for run, (opened, last) in _open_runs(journal).items():
                if not _alive(opened["owner"], last):
                    self._journals.setdefault(run, journal)
                    self._say(run, {"kind": "finish", "status": "killed"}, last / 1000)
                    closed.append(run)
        return closed


def _batches(journal: Journal) -> Iterator[tuple[int, list[Event]]]:
    """(byte after them, events to say together): metrics of one run in a row, everything else by itself."""
    held: list[Event] = []
    end = journal.sent
    for place, event in journal.events(end):
        together = event and held and event["kind"] == "metrics" and event["run"] == held[0]["run"] and len(held) < 200
        if held and not together:
            yield end, held
            held = []
        end = place
        if event is None:
            continue
        held.append(event)
        if event["kind"] != "metrics":
            yield end, held
            held = []
    if held:
        yield end, held


def _open_runs(journal: Journal) -> dict[str, tuple[Event, int]]:
    """The runs that were opened and not finished: (last opening event, time of the last event in milliseconds)."""
    found: dict[str, tuple[Event, int]] = {}
    for _, event in journal.events():
        if event is None:
            continue
        run = event["run"]
        if event["kind"] == "run":
            found[run] = event, event["time"]
        elif event["kind"] == "finish":
            found.pop(run, None)
        elif run in found:
            found[run] = found[run][0], event["time"]
    return found


def _alive(owner: list[Any], last: int) -> bool:
    host, process = owner
    if host != socket.gethostname():
        return 1000 * clock.time() - last < _FOREIGN
    return Process.model_validate(process).alive()
