"""What a recipe's run tells MLflow.

The run of the recipe holds the runs of its arms and of its steps. A step is told when it is computed and not when it is
reused: its run is there from the time when it was made, and every arm that stands on it names it by tag. Training steps
are followed while they run, from the file that rank 0 writes.
"""

from __future__ import annotations

import json
import numbers
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from services.broker import Outcome
from services.graph import Node, ordered
from services.plan import ArmPlan, Plan
from services.redact import redact
from services.store import Store
from services.tracker import Status, Tracker

__all__ = ["EXPERIMENT", "RunTracker", "Tracker", "default_uri"]

EXPERIMENT = "cuvee"
"""One experiment for all recipes, since they share steps; tags tell the runs apart."""

TRAINED = ("train", "epoch")
"""Steps that make a model by training."""

_FOLLOW = 2.0
"""Seconds between looks at the metrics of a training."""


def default_uri(store: str | Path) -> str:
    """Where runs go if nothing else is said: `MLFLOW_TRACKING_URI`, or a SQLite file in the store's folder."""
    if given := os.environ.get("MLFLOW_TRACKING_URI"):
        return given
    if "://" in str(store):
        store = Store(str(store)).scratch
    return f"sqlite:///{Path(store).expanduser().resolve() / 'mlflow.db'}"


class RunTracker:
    """An observer of the broker. Use it in `with`: what is open at the end is closed as failed or killed."""

    def __init__(self, store: Store, plan: Plan, name: str) -> None:
        self._store, self._plan, self._name = store, plan, name
        self._tracker = Tracker(plan.recipe.tracking or default_uri(store.scratch), store.scratch, EXPERIMENT)
        self._recipe = ""
        self._arms: dict[str, str] = {}
        self._steps: set[str] = set()
        self._trainings: dict[str, _Tail] = {}
        self._failed = False

    @property
    def notice(self) -> str:
        """A line for the user when the server does not have everything yet, else empty."""
        return self._tracker.notice()

    def __enter__(self) -> RunTracker:
        import yaml

        tracker, recipe = self._tracker, self._plan.recipe
        tracker.close_orphans()
        tags = {"cuvee.name": self._name, "cuvee.paper": recipe.published.source if recipe.published else ""}
        document = yaml.safe_dump(redact(recipe.document), sort_keys=False, allow_unicode=True)
        self._recipe = tracker.recipe_run(
            self._name,
            recipe.hash,
            tags={k: v for k, v in tags.items() if v},
            params={"seed": recipe.seed, "arms": len(self._plan.arms)},
            artifacts={"recipe.yaml": document, "plan.json": json.dumps(self._graph(), indent=1)},
        )
        if not self._plan.recipe.arms.halved:  # else the arms are told as they are proposed or chosen
            for arm in self._plan.arms:
                self.arm(arm)
        return self

    def arm(self, arm: ArmPlan) -> None:
        """Open the run of an arm, or open it again."""
        self._arms[arm.arm.name] = self._tracker.arm_run(
            self._recipe, arm.arm.name, tags=_arm_tags(arm), params={"seed": arm.arm.seed, **arm.arm.settings}
        )

    def searched(self, arms: Sequence[Mapping[str, Any]]) -> None:
        """What a search says of its arms: status and reason as tags, scores and reports as metrics."""
        for record in arms:
            if (run := self._arms.get(record["name"])) is None:  # of an earlier command: its run is opened again
                run = self._arms[record["name"]] = self._tracker.arm_run(self._recipe, record["name"])
            self._tracker.tag(run, {"cuvee.status": record["said"]})
            for step, signal in record["reports"]:
                self._tracker.metrics(run, {"search/signal": signal}, int(step))
            figures = {f"search/{name}": value for name, value in record["scores"].items()}
            self._tracker.metrics(run, _numbers(figures), int(record["step"]))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status: Status = "failed" if self._failed else "finished"
        if error is not None:
            status = "failed" if isinstance(error, Exception) else "killed"
            self._tracker.tag(self._recipe, {"cuvee.error": str(error)[:500]})
        for run in [*self._steps, *self._arms.values(), self._recipe]:
            self._tracker.finish(run, status)
        self._tracker.close()

    def _graph(self) -> list[dict[str, Any]]:
        return [
            {"key": n.key, "step": n.step, "label": n.label, "inputs": {k: i.key for k, i in n.inputs.items()}}
            for n in ordered(self._plan.targets)
        ]

    # The broker's steps

    def started(self, node: Node) -> Callable[[int, int | None], None]:
        """Open the step's run with its data; the answer follows a training."""
        run = self._tracker.step_run(
            self._recipe, node.step, node.key, name=node.label, params=dict(_flat(node.config)), config=node.config
        )
        self._steps.add(run)
        for name, source in node.inputs.items():
            done = self._store.done(source.key)
            if done and "rows" in done.info:
                self._tracker.dataset(
                    run, source.label, source.key, self._store.where(source.key), int(done.info["rows"]), name
                )
            if source.step in TRAINED:
                self._tracker.uses(run, source.key)
        if node.step != "train":
            return lambda done, total: None
        tail = self._trainings[run] = _Tail(self._store.scratch / "work" / node.key / "metrics.jsonl")
        return lambda done, total: self._follow(run, tail.news())

    def waiting(self, node: Node, holder: str) -> None:
        """Another command makes the step, and tells of it."""

    def finished(self, outcome: Outcome) -> None:
        """Close the step's run with its figures."""
        self._failed |= outcome.status == "failed"
        run = outcome.node.key
        if run not in self._steps:
            return
        self._steps.discard(run)
        if outcome.status == "computed":
            self._figures(run, outcome)
            self._tracker.finish(run)
        elif outcome.status == "stopped":
            self._tracker.tag(run, {"cuvee.status": str(outcome.error)})
            self._tracker.finish(run, "killed")
        else:
            self._tracker.tag(run, {"cuvee.error": str(outcome.error)[:500]})
            self._tracker.finish(run, "failed")

    def _figures(self, run: str, outcome: Outcome) -> None:
        node, info = outcome.node, outcome.info
        if tail := self._trainings.pop(run, None):
            tail.path = self._store.local(run) / "metrics.jsonl"
            self._follow(run, tail.news(at_once=True))
            name = node.label.replace(" · ", " ")
            self._tracker.model(run, name, outcome.path, run, {"final.loss": info["loss"]} if info.get("loss") else {})
        elif node.step == "epoch":
            self._tracker.model(run, node.label.replace(" · ", " "), outcome.path, run, {})
        self._tracker.metrics(run, {"seconds": outcome.seconds, **_numbers(info)})
        if node.step == "evaluate":
            model = node.inputs.get("model")
            scores = {task: figures["mean"] for task, figures in info["summary"].items()}
            self._tracker.metrics(
                run, _numbers(scores), model=model.key if model is not None and model.step in TRAINED else ""
            )

    def _follow(self, run: str, lines: Iterator[dict[str, Any]]) -> None:
        for line in lines:
            self._tracker.metrics(run, dict(_curves(line)), int(line["step"]), float(line["clock"]))

    # The end

    def results(self, found: Mapping[str, Any], folder: Path) -> None:
        """Scores on the arms' runs, contrasts on the recipe's, and the report. `found`: see `services.results`."""
        by_arm: dict[str, dict[str, Any]] = {}
        for score in found["scores"]:
            by_arm.setdefault(score["arm"], {})[f"{score['point']}/{score['task']}"] = score["mean"]
        for change in found["changes"]:
            by_arm.setdefault(change["arm"], {})[f"{change['point']}/{change['task']}.change"] = change["difference"]
        for drop in found["retention"]:
            by_arm.setdefault(drop["arm"], {})[f"{drop['point']}/retention.drop"] = drop["drop"]
        for arm, figures in by_arm.items():
            if arm in self._arms:
                self._tracker.metrics(self._arms[arm], _numbers(figures))
        if search := found.get("search"):
            self.searched(search["arms"])
        for contrast in found["contrasts"]:
            figures = {f"contrast/{contrast['name']}.{k}": contrast.get(k) for k in ("mean", "low", "high", "p_holm")}
            self._tracker.metrics(self._recipe, _numbers(figures))
        for noise in found.get("noise", []):
            name = f"noise/{noise['variant']}/{noise['task']}"
            spread = {f"{name}.{part['stream']}": part["sd"] for part in noise["parts"]}
            self._tracker.metrics(self._recipe, _numbers({f"{name}.all": noise["sd"], **spread}))
        self._tracker.artifact(self._recipe, "results.json", json.dumps(found, indent=1, default=str))
        report = folder / "report.html"
        if report.is_file():
            self._tracker.artifact(self._recipe, "report.html", report)


class _Tail:
    """The lines of a growing file that have not been seen."""

    def __init__(self, path: Path) -> None:
        self.path, self._place, self._looked = path, 0, 0.0

    def news(self, *, at_once: bool = False) -> Iterator[dict[str, Any]]:
        if (not at_once and time.monotonic() - self._looked < _FOLLOW) or not self.path.exists():
            return
        self._looked = time.monotonic()
        with self.path.open("rb") as file:
            file.seek(self._place)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._place += len(line)
                yield json.loads(line)


def _curves(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The figures of one training step: `loss`, `loss/<source>`, `validation/<table>`, rates and sizes."""
    for name in ("loss", "lr", "grad_norm", "tokens", "tokens_trained", "tokens_per_s", "memory_gb"):
        if line.get(name) is not None:
            yield name, float(line[name])
    for source, value in line.get("loss_by_source", {}).items():
        yield f"loss/{source}", float(value)
    for table, values in line.get("validation", {}).items():
        for source, value in values.items():
            yield f"validation/{table}" if source == "all" else f"validation/{table}/{source}", float(value)


def _arm_tags(arm: ArmPlan) -> dict[str, str]:
    """Every step of the arm by its label; the second of one label is numbered."""
    tags = {"cuvee.seed": str(arm.arm.seed)}
    for node in ordered(arm.targets):
        name = base = f"cuvee.step.{node.label.replace(' · ', '.').replace(' ', '_')}"
        number = 1
        while name in tags:
            number += 1
            name = f"{base}.{number}"
        tags[name] = node.key
    return tags


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings that have a value, with dotted names; lists as they are written."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value not in (None, "", [], ()):
            yield f"{prefix}{key}", value


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in values.items() if isinstance(v, numbers.Real) and not isinstance(v, bool)}
