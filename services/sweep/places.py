"""How many arms fit at once, by the resources that their trainings declare.

An arm takes the workers of its last training: `workers` with `cpus_per_worker` each (all CPUs if that is not said, so
one arm at a time), or a GPU each. Evaluations need an inference engine, which must not share a GPU with a training, nor
the memory of a small machine: where both fit side by side, evaluations go on beside trainings, else they take turns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.capacity import Capacity
from services.graph import Node


@dataclass(frozen=True)
class Places:
    """`arms` that train at once; `together`: whether the driver's engine may run beside them."""

    arms: int
    together: bool


def places(trainings: Sequence[Node], capacity: Capacity, limit: int | None, *, engine_gpus: int = 1) -> Places:
    """For the last trainings of the arms, of which the largest counts.

    Machines that the autoscaler has yet to start count too: arms that wait for them are what it starts them for.
    """
    gpus = int(capacity.gpus)
    needs = [need(training.execution.get("execution", {}), gpus > 0) for training in trainings]
    if not needs:
        return Places(limit or 1, False)
    if gpus:
        each = max(gpu for _, gpu in needs) or 1
        together = (gpus - engine_gpus) // each >= 1
        count = (gpus - (engine_gpus if together else 0)) // each
    else:
        each_cpus = [cpus for cpus, _ in needs]
        together = sum(group.most for group in capacity.groups) > 1
        if any(cpus is None for cpus in each_cpus):
            count, together = 1, False
        else:
            largest = max(cpus or 0.0 for cpus in each_cpus)
            count = math.floor(sum(group.cpus * group.most for group in capacity.groups) / largest + 1e-9)
            together = together and count > 1
            count -= int(together)  # one place for the engine
    return Places(max(1, min(count, limit or count)), together)


def need(execution: Mapping[str, Any], accelerated: bool) -> tuple[float | None, int]:
    """(CPUs, GPUs) of a training; CPUs are None when it takes all that there are."""
    workers = int(execution.get("workers", 1))
    if execution.get("use_gpu", accelerated):
        return 0.0, workers
    cpus = execution.get("cpus_per_worker")
    return (None if cpus is None else workers * float(cpus)), 0


def workers_of(node: Node | None) -> int:
    """Workers of a training, for its cost."""
    return int(node.execution.get("execution", {}).get("workers", 1)) if node else 1
