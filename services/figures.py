"""What `cuvee plan` says: each figure with how sure it is.

A figure is `exact` when it follows from the recipe and finished artifacts, `estimated from n rows` when it is carried
over from a finished table by sizes, and `known after <step>` when only that step can tell. Nothing is loaded for it but
records of the store.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cuvee.amounts import Amount
from cuvee.errors import UserError
from services import power
from services.cluster import has_accelerator
from services.graph import Node, ordered
from services.plan import ArmPlan, Plan
from services.steps.model import model_folder
from services.store import Store

CHARACTERS_PER_TOKEN = 3.6
"""Of English and code under the usual tokenizers; used until a table has been rendered."""
TOKENS_PER_TURN = 6
"""Of the header and the end that a chat template puts around a message, until a table has been rendered."""


@dataclass(frozen=True)
class Figure:
    """A number with its certainty; `value` is None when it is not known yet."""

    value: int | None
    certainty: str

    def record(self) -> dict[str, Any]:
        """For `--json`."""
        return {"value": self.value, "certainty": self.certainty}

    def __str__(self) -> str:
        if self.value is None:
            return self.certainty
        return f"{self.value:,}" if self.certainty == "exact" else f"~{self.value:,}"


EXACT = "exact"

_BESIDE = {"embed", "cluster", "encoder", "render", "compose", "train"} | {
    f"iterate_{word}" for word in ("init", "answer", "grade", "update")
}
"""Steps of a table that leave its rows as they are."""


class Figures:
    """Rows and tokens of nodes, from records of the store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._rows: dict[str, Figure] = {}

    def info(self, node: Node) -> Mapping[str, Any] | None:
        """The record of a finished node."""
        done = self.store.done(node.key)
        return done.info if done else None

    def model_config(self, key: str) -> dict[str, Any] | None:
        """The `config.json` of a model or trained model; None while it is not there."""
        if self.store.done(key) is None:
            return None
        return dict(json.loads((model_folder(self.store.local(key)) / "config.json").read_text()))

    def rows(self, node: Node) -> Figure:
        """Rows of a table after a step."""
        if node.key not in self._rows:
            self._rows[node.key] = self._rows_of(node)
        return self._rows[node.key]

    def _rows_of(self, node: Node) -> Figure:
        info = self.info(node)
        if info is not None and "rows" in info:
            return Figure(int(info["rows"]), EXACT)
        if node.step == "load":
            return Figure(None, f"known after {node.label}")
        before = [self.rows(source) for name, source in sorted(node.inputs.items()) if name.startswith("rows")]
        if not before or any(figure.value is None for figure in before):
            unknown = next((f for f in before if f.value is None), Figure(None, f"known after {node.label}"))
            return _asked_rows(node, unknown)
        size = sum(figure.value or 0 for figure in before)
        certainty = before[0].certainty if len(before) == 1 else f"estimated from {size} rows"
        if node.step in ("score", "render", "corrupt") or (node.step == "respond" and _one_target(node)):
            return Figure(size, certainty)
        if node.step == "holdout":
            held = min(size, Amount.parse(node.config["amount"]).rows_of(size))
            return Figure(size - held, f"estimated from {size} rows")
        if node.step == "sample":
            return Figure(min(size, Amount.parse(node.config["amount"]).rows_of(size)), certainty)
        if node.step == "select" and node.config.get("by") is None:
            return Figure(min(size, Amount.parse(node.config["amount"]).rows_of(size)), certainty)
        if node.step == "iterate_propose":
            loop = node.config["iterate"]
            budget = min(size, Amount.parse(loop["amount"]).rows_of(size))
            return Figure(budget * node.config["round"] // loop["rounds"], certainty)
        if node.step == "merge":
            return Figure(size, f"estimated from {size} rows")
        return Figure(None, f"known after {node.label}")

    def tokens(self, node: Node) -> Figure:
        """Tokens of a rendered table, before truncation."""
        info = self.info(node)
        if info is not None and "tokens" in info:
            return Figure(int(info["tokens"]), EXACT)
        rows = self.rows(node)
        if rows.value is None:
            return rows
        source: Node | None = node.inputs["rows"]
        while source is not None and "characters" not in (self.info(source) or {}):
            source = next((n for name, n in sorted(source.inputs.items()) if name.startswith("rows")), None)
        if source is None:
            return Figure(None, f"known after {node.label}")
        seen = self.info(source) or {}
        whole = seen["characters"] / CHARACTERS_PER_TOKEN + TOKENS_PER_TURN * seen.get("messages", 0)
        return Figure(round(whole / max(seen["rows"], 1) * rows.value), f"estimated from {seen['rows']} rows")


def base_of(train: Node) -> Node:
    """The model that a training, or the first of the stages before it, starts from."""
    while train.step == "train":
        train = train.inputs["init"]
    return train


def _asked_rows(node: Node, before: Figure) -> Figure:
    """A number of rows that is asked of a table of unknown size, which may turn out to be smaller."""
    if node.step in ("select", "sample") and node.config.get("by") is None:
        amount = Amount.parse(node.config["amount"])
        if amount.kind == "rows":
            return Figure(int(amount.value), f"asked; {before.certainty}")
    return before


def _one_target(node: Node) -> bool:
    return node.config["respond"]["policy"] not in ("rft", "model_only")


def figures(plan: Plan, store: Store, *, accelerator: bool | None = None) -> dict[str, Any]:
    """Everything that `cuvee plan` shows. `accelerator`: whether steps find GPUs; by default, if this machine has."""
    from services.costs import costs
    from services.durations import durations
    from services.loss_figures import loss_figures
    from services.refusals import refusals

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
            info = known.info(parts.compose)
            lines = (
                [{**line, "certainty": EXACT} for line in info["realised"]]
                if info
                else [
                    _asked(parts.compose, table, amount, known) for table, amount in parts.compose.config["mix"].items()
                ]
            )
            total = 0 if any(line["tokens"] is None for line in lines) else sum(line["tokens"] for line in lines)
            for line in lines:
                line.setdefault("token_share", line["tokens"] / total if total else None)
            found[parts.compose.key] = [{"arm": arm.arm.name, "stage": stage, **line} for line in lines]
    return [line for lines in found.values() for line in lines]


def _asked(node: Node, table: str, asked: str, known: Figures) -> dict[str, Any]:
    """What the list will hold of a table, before it is made."""
    tokens = node.inputs[f"tokens.{table}"]
    size, total = known.rows(tokens), known.tokens(tokens)
    amount, epochs = Amount.parse(asked), float(node.config["epochs"])
    line: dict[str, Any] = {"table": table, "asked": asked, "certainty": size.certainty}
    if size.value is None or amount.kind == "tokens":
        return {**line, "rows": None, "unique": None, "repeat": None, "tokens": None}
    each = max(amount.rows_of(size.value), node.config["minimum"] if amount.value else 0)
    unique = min(each, size.value)
    count = math.floor(each * epochs)
    mean = total.value / size.value if total.value is not None and size.value else None
    return {
        **line,
        "rows": count,
        "unique": unique,
        "repeat": count / unique if unique else None,
        "tokens": round(mean * count) if mean is not None else None,
    }


def asked_tokens(compose: Node, table: str, asked: str, known: Figures) -> int | None:
    """Tokens that a list will take of a table, as far as that can be said before."""
    amount = Amount.parse(asked)
    if amount.kind == "tokens":
        return round(float(amount.value) * float(compose.config["epochs"]))
    found = _asked(compose, table, asked, known)["tokens"]
    return None if found is None else int(found)


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
