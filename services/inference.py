"""vLLM engines for whoever must generate or score: the protocols `Generate` and `Score` on named Ray actors.

An `Engine` is a name, not a process: it can be sent to any worker, and the actors behind it are found or started at the
first request. One engine serves every step of its model and ends after a time without work, or by `shutdown_engines`,
which a training calls first since two models at once are too much for a small machine.

Requests flow through a bounded window, so their iterable may be as long as one likes. An engine that dies, or makes no
step for too long while there is work, is started anew a bounded number of times; its open requests are asked once more
and then come back as failed with the reason.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from cuvee.errors import Unavailable
from cuvee.protocols import Completion, Decoding, Request, Scored, ScoreRequest
from services.actors import Pool, last_line, shutdown_engines
from services.engine import ChatOptions, EngineOptions, Pulse

__all__ = ["ChatOptions", "Engine", "EngineOptions", "engine", "shutdown_engines"]

Ask = TypeVar("Ask", Request, ScoreRequest)
Answer = TypeVar("Answer", Completion, Scored)
Progress = Callable[[int, int | None], None]

CHUNK = 8
"""Requests in one call of an actor: enough to make calls cheap, few enough that answers come steadily."""


def engine(
    model: Path,
    options: EngineOptions | None = None,
    *,
    chat: ChatOptions | Mapping[str, Any] | None = None,
    name: str = "",
    find: Callable[[], Path] | None = None,
    progress: Progress | None = None,
) -> Engine:
    """An engine of the model folder. Starts nothing yet.

    `name` is for provenance (default: the folder). `find` brings the folder to the node of the engine, for clusters
    without a common file system; `model` then only names it.
    """
    settings = chat if isinstance(chat, ChatOptions) else ChatOptions.model_validate(dict(chat or {}))
    return Engine(model, options or EngineOptions(), settings, name or str(model), find, progress)


@dataclass
class Engine:
    """The engines of one model with one set of options. `progress` is called with (done, total if known)."""

    model: Path
    options: EngineOptions
    chat: ChatOptions
    name: str
    find: Callable[[], Path] | None = None
    progress: Progress | None = None

    @property
    def generate(self) -> Generator:
        return Generator(self)

    @property
    def score(self) -> Scorer:
        return Scorer(self)

    def prompt_ids(self, request: Request) -> list[int]:
        """The request's prompt as the engine itself reports it."""
        import ray

        return ray.get(Pool(self).actor(0).prompt_ids.remote(request), timeout=self.options.stall)

    def start(self) -> list[dict[str, Any]]:
        """Start the engines if they do not run, and tell what each is: process, node, dtype, max_len."""
        import ray

        pool = Pool(self)
        return ray.get([pool.actor(i).ready.remote() for i in range(pool.size)], timeout=self.options.start)

    @property
    def key(self) -> str:
        """What engines are found by: model, options and chat."""
        files = sorted(self.model.iterdir()) if self.model.is_dir() else []
        states = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        parts = [str(self.model), states, self.options.model_dump(), self.chat.model_dump()]
        return hashlib.blake2b(json.dumps(parts, default=str).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Generator:
    """`cuvee.protocols.Generate` on an engine.

    Log-probabilities are those of the model before temperature; under `choices` they are among what the choices allow.
    """

    engine: Engine

    @property
    def name(self) -> str:
        return self.engine.name

    def __call__(self, requests: Iterable[Request], decoding: Decoding) -> Iterator[Completion]:
        def failed(request: Request, reason: str) -> Completion:
            return Completion(request.id, request.draw, "", "failed", error=reason)

        return Stream(self.engine, "generate", (decoding,), failed).run(requests)


@dataclass(frozen=True)
class Scorer:
    """`cuvee.protocols.Score` on an engine."""

    engine: Engine

    @property
    def name(self) -> str:
        return self.engine.name

    def __call__(self, requests: Iterable[ScoreRequest]) -> Iterator[Scored]:
        def failed(request: ScoreRequest, reason: str) -> Scored:
            return Scored(request.id, request.draw, math.nan, 0, error=reason)

        return Stream(self.engine, "score", (), failed).run(requests)


@dataclass
class Flight(Generic[Ask]):
    """A call that is under way. `attempt` is 1 for the first."""

    replica: int
    requests: list[Ask]
    attempt: int


@dataclass
class Watch:
    """When replica was last seen to move."""

    steps: int = -1
    since: float = field(default_factory=time.monotonic)


class Stream(Generic[Ask, Answer]):
    """One pass of requests through an engine's actors: window, retries, restarts, watchdog."""

    def __init__(
        self, engine: Engine, method: str, args: tuple[Any, ...], failed: Callable[[Ask, str], Answer]
    ) -> None:
        self.engine, self.method, self.args = engine, method, args
        self.failed: Callable[[Ask, str], Answer] = failed
        self.restarts = 0
        self.flights: dict[Any, Flight[Ask]] = {}
        self.again: deque[list[Ask]] = deque()
        self.watch: dict[int, Watch] = {}

    def run(self, requests: Iterable[Ask]) -> Iterator[Answer]:
        """Exactly one answer a request, as they come. Raises Unavailable when engines will not stay up."""
        import ray

        options = self.engine.options
        total = len(requests) if isinstance(requests, Sized) else None
        source = iter(requests)
        first = list(islice(source, 1))
        if not first:
            return  # and no engine was started for nothing
        source = chain(first, source)
        self.pool = Pool(self.engine)
        window = max(2, 2 * (options.batch or (256 if self.pool.gpus else 64)) // CHUNK)
        done, patience, looked = 0, min(10.0, options.stall / 4), time.monotonic()
        try:
            while True:
                while len(self.flights) < window * self.pool.size:
                    attempt = 2 if self.again else 1
                    chunk = self.again.popleft() if self.again else list(islice(source, CHUNK))
                    if not chunk:
                        break
                    self._send(chunk, attempt)
                if not self.flights:
                    return
                ready, _ = ray.wait(list(self.flights), num_returns=1, timeout=patience)
                answers = [answer for ref in ready for answer in self._collect(ref)]
                if time.monotonic() - looked > patience:
                    answers += self._look()
                    looked = time.monotonic()
                for answer in answers:
                    done += 1
                    if self.engine.progress:
                        self.engine.progress(done, total)
                    yield answer
        finally:
            for ref in self.flights:
                ray.cancel(ref)

    def _send(self, chunk: list[Ask], attempt: int) -> None:
        loads = [sum(f.replica == i for f in self.flights.values()) for i in range(self.pool.size)]
        replica = loads.index(min(loads))
        actor = self.pool.actor(replica)
        if not loads[replica]:
            self.watch[replica] = Watch()
        ref = getattr(actor, self.method).remote(chunk, *self.args)
        self.flights[ref] = Flight(replica, chunk, attempt)

    def _collect(self, ref: Any) -> list[Answer]:
        import ray
        from ray.exceptions import RayError

        flight = self.flights[ref]
        try:
            answers: list[Answer] = ray.get(ref)
        except RayError as error:
            # The actor is gone, or the engine in it has failed: what else it holds is lost too.
            return self._restart(flight.replica, last_line(error))
        del self.flights[ref]
        return answers

    def _look(self) -> list[Answer]:
        """Restart engines that have work and make no step."""
        import ray
        from ray.exceptions import GetTimeoutError, RayError

        answers: list[Answer] = []
        for replica in {flight.replica for flight in self.flights.values()}:
            watch = self.watch[replica]
            try:
                pulse: Pulse = ray.get(self.pool.actor(replica).pulse.remote(), timeout=5)
                if pulse.steps != watch.steps or not pulse.waiting:
                    self.watch[replica] = Watch(pulse.steps)
                    continue
            except GetTimeoutError:
                pass  # Busy or hanging: the clock decides.
            except RayError as error:
                answers += self._restart(replica, last_line(error))
                continue
            silent = time.monotonic() - watch.since
            if silent > self.engine.options.stall:
                answers += self._restart(replica, f"the engine made no step for {silent:.0f} s")
        return answers

    def _restart(self, replica: int, reason: str) -> list[Answer]:
        """Replace an engine; its requests are asked again, or have failed if this was their second time."""
        answers: list[Answer] = []
        for ref, flight in list(self.flights.items()):
            if flight.replica != replica:
                continue
            del self.flights[ref]
            if flight.attempt == 1:
                self.again.append(flight.requests)
            else:
                answers += [
                    self.failed(request, f"the engine died twice on it: {reason}") for request in flight.requests
                ]
        self.pool.replace(replica)
        self.restarts += 1
        if self.restarts > self.engine.options.restarts:
            raise Unavailable(
                f"the engine of {self.engine.name} died {self.restarts} times, last: {reason}",
                remedy="less memory may help (max_len, batch, gpu_memory, dtype); the log file has what it said",
            )
        return answers
