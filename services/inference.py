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
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from cuvee.errors import Unavailable
from cuvee.protocols import Completion, Decoding, Request, Scored, ScoreRequest
from services.engine import ChatOptions, EngineActor, EngineOptions, Pulse
from services.processes import Process, kill

__all__ = ["ChatOptions", "Engine", "EngineOptions", "engine", "shutdown_engines"]

Ask = TypeVar("Ask", Request, ScoreRequest)
Answer = TypeVar("Answer", Completion, Scored)
Progress = Callable[[int, int | None], None]

log = logging.getLogger(__name__)
PREFIX = "engine-"
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


class Pool:
    """The actors of an engine: found by name, started where missing."""

    def __init__(self, engine: Engine) -> None:
        import ray

        from services.cluster import resources

        self.engine = engine
        have = ray.cluster_resources()
        self.gpus = engine.options.tensor_parallel if have.get("GPU", 0) else 0
        possible = int(have["GPU"] // self.gpus) if self.gpus else 1
        self.size = engine.options.replicas or max(1, possible)
        self.need = resources("engine", gpus=max(1, self.gpus), have=have)
        self._actors: dict[int, Any] = {}
        self._key = f"{PREFIX}{engine.key}"

    def actor(self, index: int) -> Any:
        """The actor, ready for work. Raises Unavailable when it does not start."""
        if index not in self._actors:
            self._actors[index] = self._start(index)
        return self._actors[index]

    def replace(self, index: int) -> None:
        """End the actor; `actor` then starts another."""
        old = self._actors.pop(index, None)
        if old is not None:
            _end(old, f"{self._key}-{index}")

    def _start(self, index: int) -> Any:
        import ray
        from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError, RayTaskError

        options = self.engine.options
        name = f"{self._key}-{index}"
        find = self.engine.find or partial(Path, self.engine.model)
        # Detached, so that it outlives the worker that happened to need it first: idleness or the command ends it.
        kind: Any = ray.remote(EngineActor)
        kind = kind.options(
            name=name,
            get_if_exists=True,
            lifetime="detached",
            max_restarts=0,
            max_concurrency=10_000,
            runtime_env={"env_vars": self._environment()},
            **self.need.options(),
        )
        deadline = time.monotonic() + options.start
        for _ in range(2):
            actor = kind.remote(find, options, self.engine.chat, self.gpus)
            try:
                ray.get(actor.ready.remote(), timeout=max(1.0, deadline - time.monotonic()))
                return actor
            except GetTimeoutError:
                _end(actor, name)
                raise Unavailable(
                    f"the engine of {self.engine.name} did not start within {options.start:.0f} s",
                    remedy="look at the log file; raise `start`, or free the machine",
                ) from None
            except (ActorDiedError, RayActorError, RayTaskError) as error:
                _end(actor, name)
                # An actor that ended itself just when it was found (idle) is simply started again.
                if "__init__" in str(error):
                    raise Unavailable(
                        f"the engine of {self.engine.name} cannot start: {_last_line(error)}",
                        remedy="the log file has all that it said",
                    ) from error
        raise Unavailable(f"the engine of {self.engine.name} ends as soon as it is started")

    def _environment(self) -> dict[str, str]:
        from services.cluster import THREAD_ENV

        return THREAD_ENV | {
            "OMP_NUM_THREADS": str(self.need.threads),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "1" if self.gpus else "0",
            "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",
            "HF_HUB_OFFLINE": "1",  # the folder is complete
        }


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
        first = list(islice(source, CHUNK))
        if not first:
            return
        self.pool = Pool(self.engine)
        window = max(2, 2 * (options.batch or (256 if self.pool.gpus else 64)) // CHUNK)
        done, patience, looked = 0, min(10.0, options.stall / 4), time.monotonic()
        try:
            while True:
                while len(self.flights) < window * self.pool.size:
                    attempt = 2 if self.again else 1
                    chunk = self.again.popleft() if self.again else first or list(islice(source, CHUNK))
                    if not chunk:
                        break
                    first = []
                    self._send(chunk, attempt)
                if not self.flights:
                    return
                ready, _ = ray.wait(list(self.flights), num_returns=1, timeout=patience)
                for answer in [answer for ref in ready for answer in self._collect(ref)]:
                    done += 1
                    if self.engine.progress:
                        self.engine.progress(done, total)
                    yield answer
                if time.monotonic() - looked > patience:
                    for answer in self._look():
                        done += 1
                        yield answer
                    looked = time.monotonic()
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
            return self._restart(flight.replica, _last_line(error))
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
                answers += self._restart(replica, _last_line(error))
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


def shutdown_engines(timeout: float = 30.0) -> None:
    """End every engine of this command, on all nodes, and wait until their processes are gone."""
    import ray

    if not ray.is_initialized():
        return
    for name in ray.util.list_named_actors():
        if name.startswith(PREFIX):
            try:
                actor = ray.get_actor(name)
            except ValueError:
                continue
            _end(actor, name, timeout)


def _end(actor: Any, name: str, timeout: float = 30.0) -> None:
    """Kill an actor, and wait until its process with its group is gone and its name is free."""
    import ray

    node, process = _whereabouts(actor)
    ray.kill(actor, no_restart=True)
    if process is not None:
        if node == ray.get_runtime_context().get_node_id():
            kill([process], timeout)
        else:
            _kill_on(node, process, timeout)
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            ray.get_actor(name)
        except ValueError:
            return
        time.sleep(0.05)


def _whereabouts(actor: Any) -> tuple[str, Process | None]:
    """Node and process of an actor: its own word, or Ray's when it hangs. No process when it is dead already."""
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
    from ray.util.state import get_actor
    from ray.util.state.exception import RayStateApiException

    try:
        found = ray.get(actor.ready.remote(), timeout=2)
        return found["node"], Process(**found["process"])
    except (RayActorError, RayTaskError):
        return "", None
    except GetTimeoutError:
        pass  # It starts, works without pause, or hangs.
    try:
        state = get_actor(actor._actor_id.hex(), timeout=10)
    except RayStateApiException:
        return "", None
    if state is None or not state.pid or not state.node_id:
        return "", None
    return state.node_id, Process(pid=state.pid, started=0.0, what="engine")


def _kill_on(node: str, process: Process, timeout: float) -> None:
    """Kill a process of another node, from there."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    task: Any = ray.remote(kill)
    task = task.options(num_cpus=0, scheduling_strategy=there, max_retries=0)
    try:
        ray.get(task.remote([process], timeout), timeout=timeout + 30)
    except (GetTimeoutError, RayError) as error:
        # The node is gone, and the process with it.
        log.warning("engine process %d on node %s could not be ended: %s", process.pid, node[:8], _last_line(error))


def _last_line(error: BaseException) -> str:
    """The last line of a remote traceback that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
