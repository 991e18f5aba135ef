"""What `cuvee plan` says, as one record: `services.plan_text` makes text of it, `--json` prints it.

Nothing is loaded for it but records of the store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cuvee.errors import UserError
from services import power
from services.costs import costs
from services.durations import durations
from services.environment import has_accelerator
from services.figures import EXACT, Figures, asked_of, base_of
from services.graph import Node, ordered
from services.loss_figures import loss_figures
from services.plan import ArmPlan, Plan
from services.refusals import refusals
from services.store import Store

_BESIDE = {"embed", "cluster", "encoder", "render", "compose", "train"} | {
    f"iterate_{word}" for word in ("init", "answer", "grade", "update")
}
"""Steps of a table that leave its rows as they are."""


def plan_record(plan: Plan, store: Store, *, accelerator: bool | None = None) -> dict[str, Any]:
    """Everything that `cuvee plan` shows. `accelerator`: whether steps find GPUs; by default, if this machine has."""
    known = Figures(store)
    nodes = ordered(plan.targets)
    search, nuisance = plan.recipe.arms.search, plan.recipe.arms.nuisance
    return {
        "recipe": plan.recipe.name,
        "hash": plan.recipe.hash,
        "store": store.url,
        "missing": [str(error) for error in plan.missing],
        "refused": refusals(plan, known),
        "arms": [{"name": arm.arm.name, "seed": arm.arm.seed, "settings": dict(arm.arm.settings)} for arm in plan.arms],
        "steps": [_step(node, known) for node in nodes],
        "done": sum(store.done(node.key) is not None for node in nodes),
        "tables": _tables(plan, known),
        "stages": _stages(plan, known),
        "training": _training(plan, known),
        "sharing": {"reasons": _reasons(plan), **_saved(plan, nodes, known)},
        "objective": loss_figures(plan, known),
        "cost": durations(plan, known, has_accelerator() if accelerator is None else accelerator),
        "search": search.model_dump(mode="json") if search else None,
        "nuisance": nuisance.model_dump(mode="json") if nuisance else None,
        "power": power.power(plan, store),
        "seed_power": power.seed_power(plan, store),
        "api": costs(plan.targets, known),
    }


def _step(node: Node, known: Figures) -> dict[str, Any]:
    done = known.store.done(node.key)
    return {
        "name": node.label,
        "step": node.step,
        "key": node.key,
        "status": "done" if done else "missing",
        "seconds": done.seconds if done else None,
    }


def _tables(plan: Plan, known: Figures) -> list[dict[str, Any]]:
    """Rows of each table after each of its steps, for each arm in which they differ."""
    found: dict[str, dict[str, Any]] = {}
    for arm in plan.arms:
        for name, state in arm.tables.items():
            changing = [n for n in state.nodes if n.step not in _BESIDE]
            if state.rows.key not in found:
                path = [{"step": n.label, **known.rows(n).record()} for n in changing]
                found[state.rows.key] = {"arm": arm.arm.name, "table": name, "steps": path}
    return list(found.values())


def _stages(plan: Plan, known: Figures) -> list[dict[str, Any]]:
    """Asked against realised, stage by stage; each distinct list once."""
    found: dict[str, list[dict[str, Any]]] = {}
    for arm in plan.arms:
        for stage, parts in arm.stages.items():
            if parts.compose.key in found:
                continue
            info, mix = known.info(parts.compose), parts.compose.config["mix"]
            lines = (
                [{**line, "certainty": EXACT} for line in info["realised"]]
                if info
                else [asked_of(parts.compose, table, amount, known) for table, amount in mix.items()]
            )
            total = 0 if any(line["tokens"] is None for line in lines) else sum(line["tokens"] for line in lines)
            for line in lines:
                line.setdefault("token_share", line["tokens"] / total if total else None)
            found[parts.compose.key] = [{"arm": arm.arm.name, "stage": stage, **line} for line in lines]
    return [line for lines in found.values() for line in lines]


def _training(plan: Plan, known: Figures) -> list[dict[str, Any]]:
    """Optimiser steps, memory and disk of each distinct training."""
    stages = _stages(plan, known)
    found: dict[str, dict[str, Any]] = {}
    for arm in plan.arms:
        for stage, parts in arm.stages.items():
            if parts.train.key in found:
                found[parts.train.key]["arms"].append(arm.arm.name)
                continue
            lines = [s for s in stages if s["stage"] == stage and s["arm"] == _owner(plan, parts.compose)]
            rows, tokens = ([line[name] for line in lines] for name in ("rows", "tokens"))
            settings = arm.arm.document.train_for(stage)
            steps = None if None in rows else settings.steps(sum(rows))
            record: dict[str, Any] = {"arms": [arm.arm.name], "stage": stage, "steps": steps}
            record["tokens"] = None if None in tokens else sum(tokens)
            record["status"] = "done" if known.info(parts.train) else "missing"
            record |= _memory(arm, stage, parts.train, known)
            found[parts.train.key] = record
    return list(found.values())


def _owner(plan: Plan, compose: Node) -> str:
    """The first arm with this list."""
    return next(a.arm.name for a in plan.arms for s in a.stages.values() if s.compose.key == compose.key)


def _memory(arm: ArmPlan, stage: str, node: Node, known: Figures) -> dict[str, Any]:
    """Memory of a worker with its arithmetic, and the disk that weights and checkpoints take."""
    from training import memory
    from training.settings import Execution

    model = base_of(node)
    config = known.model_config(model.key)
    if config is None:
        return {"memory_gb": None, "memory": f"known after {model.label}"}
    settings = arm.arm.document.train_for(stage)
    execution = Execution.model_validate(node.execution["execution"])
    try:
        count = memory.parameters(config)
        beside = arm.arm.document.objective_for(stage).frozen_beside
        found = memory.plan(config, settings, execution, node.config["train"]["precision"], reference=beside)
    except UserError as error:
        return {"memory_gb": None, "memory": str(error)}
    bits = 2 if node.config["train"]["precision"] != "fp32" else 4
    disk = count * (bits + 12 * settings.keep) / 1e9
    return {"memory_gb": round(found.device / 1e9, 2), "memory": found.text, "disk_gb": round(disk, 2)}


def _saved(plan: Plan, nodes: Sequence[Node], known: Figures) -> dict[str, Any]:
    """Steps with and without sharing, and the seconds that the finished ones took."""
    seconds = {node.key: done.seconds for node in nodes if (done := known.store.done(node.key))}
    alone = [node for arm in plan.arms for node in ordered(arm.targets)]
    return {
        "steps": len(nodes),
        "steps without sharing": len(alone),
        "seconds": round(sum(seconds.values()), 1),
        "seconds without sharing": round(sum(seconds.get(node.key, 0) for node in alone), 1),
    }


def _reasons(plan: Plan) -> list[dict[str, Any]]:
    """Which arms share the training of a stage, and for the others the first thing that differs."""
    found = []
    names = dict.fromkeys(stage for arm in plan.arms for stage in arm.stages)
    for stage in names:
        groups: dict[str, list[ArmPlan]] = {}
        for arm in plan.arms:
            if stage in arm.stages:
                groups.setdefault(arm.stages[stage].train.key, []).append(arm)
        first = next(iter(groups.values()))[0].stages[stage].train
        for members in groups.values():
            node = members[0].stages[stage].train
            why = "" if node.key == first.key else difference(first, node)
            found.append({"stage": stage, "arms": [arm.arm.name for arm in members], "differs by": why})
    return found


def difference(a: Node, b: Node) -> str:
    """The first setting in which two nodes, or what they are made from, differ."""
    if a.key == b.key:
        return ""
    if a.step != b.step:
        return f"{b.label} in place of {a.label}"
    for name in sorted({*a.inputs, *b.inputs}):
        left, right = a.inputs.get(name), b.inputs.get(name)
        if left is None or right is None:
            return f"{b.label}: {name.replace('.', ' ')} is {'added' if left is None else 'left out'}"
        if found := difference(left, right):
            return found
    if a.seed != b.seed:
        return f"{b.label}: seed {a.seed} and {b.seed}"
    left_config, right_config = _flat(a.config), _flat(b.config)
    for key in sorted({*left_config, *right_config}):
        if left_config.get(key) != right_config.get(key):
            return f"{b.label}: {key} {left_config.get(key)} and {right_config.get(key)}"
    return f"{b.label}: other data"


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {k: v for key, child in value.items() for k, v in _flat(child, f"{path}.{key}" if path else key).items()}
    return {path: value}
