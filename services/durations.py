"""What a plan will cost: seconds of each step, by what this store has measured or by an assumed rate.

A training costs tokens over a rate. The rate is that of finished trainings of the same size of model in this store,
where there are any. Else it follows from arithmetic: 6 operations a parameter and token (Kaplan et al., arXiv
2001.08361) at a speed that is assumed and said. Other steps cost the median of finished ones of their kind; a kind that
was never run has no figure, and is counted.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cuvee.errors import UserError
from services.figures import Figures, asked_tokens, base_of
from services.graph import Node, ordered
from services.plan import Plan
from services.sweep.places import workers_of

OPERATIONS = 6
"""Of a training, for each parameter and token: forward 2, backward 4."""
ASSUMED = {"CPU": 8e10, "GPU": 1.2e14}
"""Operations a second of one worker: two cores of a server CPU in fp32, and 40% of an A100's peak in bf16."""


class Costs:
    """Seconds of steps. `accelerated`: whether trainings run on GPUs."""

    def __init__(self, plan: Plan, known: Figures, accelerated: bool) -> None:
        self.known, self.store = known, known.store
        self.device = "GPU" if accelerated else "CPU"
        self.epochs = {s.train.key: s.compose for arm in plan.arms for s in arm.stages.values()}
        by_step: dict[str, list[float]] = {}
        self.rates: dict[int, list[float]] = {}
        for done in self.store.artifacts():
            by_step.setdefault(done.step, []).append(done.seconds)
            if done.step == "train" and done.info.get("seconds") and done.info.get("tokens"):
                size = self._parameters_of(done.inputs.get("init", ""))
                each = done.info["tokens"] / done.info["seconds"] / int(done.info.get("workers", 1))
                self.rates.setdefault(size, []).append(each)
        self.medians = {step: statistics.median(seconds) for step, seconds in by_step.items()}

    def seconds(self, node: Node) -> float | None:
        """What a node costs when it is computed; None when nobody knows yet."""
        done = self.store.done(node.key)
        if done:
            return done.seconds
        if node.step != "train" or node.key not in self.epochs:
            return self.medians.get(node.step)
        tokens, rate = self.tokens(node), self.rate(node)
        return tokens / (rate[0] * workers_of(node)) if tokens is not None and rate else None

    def tokens(self, node: Node) -> float | None:
        """Tokens of a training: those of its list, else of its tables by the rows that are asked."""
        compose = self.epochs[node.key]
        info = self.known.info(compose)
        if info is not None:
            return float(info["tokens"])
        found = [asked_tokens(compose, table, text, self.known) for table, text in compose.config["mix"].items()]
        return None if any(count is None for count in found) else float(sum(count or 0 for count in found))

    def rate(self, node: Node) -> tuple[float, str] | None:
        """(tokens a second of a worker, `measured` or `assumed`)."""
        source = base_of(node)
        size = self._parameters_of(source.key)
        if size in self.rates:
            return statistics.median(self.rates[size]), "measured"
        if size:
            return ASSUMED[self.device] / (OPERATIONS * size), "assumed"
        named = named_size(str(source.config.get("id", "")))
        return (ASSUMED[self.device] / (OPERATIONS * named), "assumed, size by the model's name") if named else None

    def _parameters_of(self, key: str) -> int:
        """Parameters of a model artifact; 0 while they are not known."""
        from training import memory

        done = self.store.done(key)
        if done is None or done.step not in ("model", "train"):
            return 0
        try:
            return int(memory.parameters(self.known.model_config(key) or {}))
        except (OSError, KeyError, ValueError, UserError):
            return 0


def named_size(name: str) -> float:
    """Parameters by what a model is called (`Llama-2-7b-hf`); 0 when its name has no size."""
    found = re.search(r"(?<![\d.])(\d+(?:\.\d+)?)([mb])(?![a-z])", name.lower())
    return float(found[1]) * {"m": 1e6, "b": 1e9}[found[2]] if found else 0.0


def durations(plan: Plan, figures: Figures, accelerated: bool) -> dict[str, Any]:
    """With and without sharing: seconds of all steps, and worker-hours of trainings; what is still to do."""
    known = Costs(plan, figures, accelerated)
    shared = ordered(plan.targets)
    alone = [node for arm in plan.arms for node in ordered(arm.targets)]
    rates = [known.rate(node) for node in shared if node.step == "train"]
    said = sorted({f"{rate[0]:.3g} tokens/s a {known.device} worker, {rate[1]}" for rate in rates if rate})
    todo = [node for node in shared if known.store.done(node.key) is None]
    return {
        "shared": _sums(shared, known.seconds),
        "alone": _sums(alone, known.seconds),
        "to do": _sums(todo, known.seconds),
        "rates": said,
        "uses": _uses(plan),
    }


def _sums(nodes: Sequence[Node], seconds: Callable[[Node], float | None]) -> dict[str, Any]:
    found = [(node, seconds(node)) for node in nodes]
    hours = sum((s or 0.0) * workers_of(node) for node, s in found if node.step == "train") / 3600
    unknown = sum(s is None for _, s in found)
    return {"steps": len(nodes), "seconds": sum(s or 0.0 for _, s in found), "worker_hours": hours, "unknown": unknown}


def _uses(plan: Plan) -> list[dict[str, Any]]:
    """Steps that several arms stand on, most used first: each runs once, in the driver."""
    count: dict[str, int] = {}
    nodes: dict[str, Node] = {}
    for arm in plan.arms:
        for node in ordered(arm.targets):
            nodes[node.key] = node
            count[node.key] = count.get(node.key, 0) + 1
    worth = ("train", "embed", "respond", "score", "evaluate")
    shared = [key for key, node in nodes.items() if count[key] > 1 and node.step in worth]
    shared.sort(key=lambda key: -count[key])
    return [{"step": nodes[key].label, "key": key, "arms": count[key]} for key in shared]


def hours(seconds: float) -> str:
    """A duration for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def lines(found: Mapping[str, Any]) -> list[str]:
    """What `cuvee plan` says of costs."""
    shared, alone, todo = found["shared"], found["alone"], found["to do"]
    unit = "GPU-hours" if any(" GPU " in rate for rate in found["rates"]) else "worker-hours"
    text = [
        f"cost: {hours(shared['seconds'])} with sharing ({shared['worker_hours']:.3g} {unit} of training), "
        f"{hours(alone['seconds'])} without ({alone['worker_hours']:.3g}); to do {hours(todo['seconds'])}"
    ]
    if shared["unknown"]:
        text.append(f"  {shared['unknown']} steps have no figure yet: none of their kind has run in this store")
    text += [f"  rate: {rate}" for rate in found["rates"]]
    if not found["rates"]:
        text.append("  rate of training: known after the model is there")
    text += [f"  shared by {use['arms']} arms: {use['step']}" for use in found["uses"][:12]]
    return text
