"""Where the steps of a plan will run on a cluster: at once, after machines have come, or never."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cuvee.errors import UserError
from services.capacity import Capacity, Kind, Need, resources
from services.graph import Node, ordered
from services.plan import Plan
from services.store import Store

Ask = tuple[Kind, int, float, Need]
"""Kind of worker, how many, accelerators of each where there are any, what the recipe says."""


def asks(node: Node, capacity: Capacity) -> Iterator[Ask]:
    """What workers a step starts. Kinds whose rule fits any machine are told only where the recipe says more."""
    said: Mapping[str, Any] = node.execution
    if node.step == "embed":
        yield "embed", 1, 1.0, Need.model_validate(said.get("embed", {}))
    if node.model and "engine" in said and not _remote(node):
        options = said["engine"]
        need = Need.model_validate(options.get("need", {}))
        yield "engine", int(options.get("replicas", 1)), float(options.get("tensor_parallel", 1)), need
    if node.step == "train":
        where = said["execution"]
        yield "train", int(where.get("workers", 1)), 1.0, Need.of_training(where)
    several = sum(group.most for group in capacity.groups) > 1
    kinds: tuple[Kind, ...] = ("judge", "sandbox", "cluster") if several else ("judge",)  # one machine has no tasks
    for kind in kinds:
        if kind in said:
            yield kind, 1, 1.0, Need.model_validate(said[kind])


def placements(plan: Plan, store: Store, capacity: Capacity) -> list[dict[str, Any]]:
    """For each distinct demand of the steps that are not done: `worker`, `count`, `asks`, `when`, `why`, `steps`."""
    found: dict[str, dict[str, Any]] = {}
    for node in ordered(plan.targets):
        if store.done(node.key) is not None:
            continue
        for kind, workers, gpus, need in asks(node, capacity):
            record = _placed(kind, workers, gpus, need, capacity)
            known = found.setdefault(str(record), {**record, "steps": []})
            known["steps"].append(node.label)
    return list(found.values())


def _placed(kind: Kind, workers: int, gpus: float, need: Need, capacity: Capacity) -> dict[str, Any]:
    try:
        asked = resources(kind, capacity, workers=workers, gpus=gpus, need=need)
    except UserError as error:
        why = str(error).removeprefix(f"{kind}: ")
        return {"worker": kind, "count": workers, "asks": "", "when": "never", "why": why}
    place = capacity.place(asked, workers)
    return {"worker": kind, "count": workers, "asks": str(asked), "when": place.when, "why": place.text}


def check(plan: Plan, store: Store, capacity: Capacity) -> None:
    """UserError when a step can never run on these machines: before the first one starts."""
    for record in placements(plan, store, capacity):
        if record["when"] == "never":
            raise UserError(f"{record['steps'][0]}: {record['why']}")


def _remote(node: Node) -> bool:
    """Whether the model answers at an endpoint."""
    return any("endpoint" in source.execution for source in node.inputs.values())
