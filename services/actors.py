"""Engine actors: found by name, started where missing, ended for good.

An actor belongs to the namespace of its command (`services.cluster.connect`), so two commands on one cluster do not
share engines, and one command's clean-up leaves the other's alone. Ending is more than killing the actor: the memory of
its process group must be free before a training starts.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.errors import Unavailable
from services.engine import EngineActor
from services.environment import ENVIRONMENT
from services.processes import Process, kill

if TYPE_CHECKING:
    from services.inference import Engine

log = logging.getLogger(__name__)
PREFIX = "engine-"


class Pool:
    """The actors of an engine: found by name, started where missing."""

    def __init__(self, engine: Engine) -> None:
        from services.capacity import Capacity, resources

        self.engine = engine
        capacity, options = Capacity.of_ray(), engine.options
        self.need = resources("engine", capacity, gpus=float(options.tensor_parallel), need=options.need)
        self.gpus = int(self.need.gpus)
        self.size = options.replicas or capacity.members(self.need)
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
            runtime_env=options.need.environment(self._environment()),
            scheduling_strategy="SPREAD",
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
                        f"the engine of {self.engine.name} cannot start: {last_line(error)}",
                        remedy="the log file has all that it said",
                    ) from error
        raise Unavailable(f"the engine of {self.engine.name} ends as soon as it is started")

    def _environment(self) -> dict[str, str]:
        return ENVIRONMENT | {
            "OMP_NUM_THREADS": str(self.need.threads),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "1" if self.gpus else "0",
            "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",
            "HF_HUB_OFFLINE": "1",  # the folder is complete
        }


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
        # Without an address Ray looks for any instance on the machine, and fails where it finds two.
        address = ray.get_runtime_context().gcs_address
        state = get_actor(actor._actor_id.hex(), address=address, timeout=10)
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
        log.warning("engine process %d on node %s could not be ended: %s", process.pid, node[:8], last_line(error))


def last_line(error: BaseException) -> str:
    """The last line of a remote traceback that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
