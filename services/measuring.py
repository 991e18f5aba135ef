"""From `evaluate` of a recipe to evaluation steps of one model.

Tasks and tables are measured by steps of their own, so that adding a benchmark runs only that benchmark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from services.graph import Node
from services.measures import BASE, TaskOptions

if TYPE_CHECKING:
    from evaluation.data import Source
    from services.plan import Builder


TABLE_MEASUREMENTS = {"gold_loss": "1", "output_loss": "1", "accuracy": "1", "bleu": "1"}
"""What can be measured on a table of the recipe, with its version."""


WINS = "2"
"""Version of a win rate against the base."""


@dataclass(frozen=True)
class Measure:
    """One evaluation of the model at a point. `kind` tells what it is for: task, retention, judged, or what of a table.

    `task` is the name in tables and metrics: `arc_easy`, `gold_loss.math`.
    """

    point: str
    task: str
    kind: str
    node: Node


class Measures:
    """The evaluations of one model."""

    def __init__(self, builder: Builder, point: str, model: Node) -> None:
        self.builder, self.point, self.model = builder, point, model
        self.spec = builder.recipe.evaluate
        self.name = builder.recipe.model_for()

    def all(self) -> list[Measure]:
        """In the order of the recipe."""
        return [*self.tasks(), *self.on_tables()]

    def tasks(self) -> list[Measure]:
        from evaluation import suites, tasks

        kinds: dict[str, list[str]] = {}
        for kind, names in (("task", self.spec.tasks), ("retention", self.spec.retention)):
            for name in suites.expand(names):
                kinds.setdefault(name, []).append(kind)
        found = []
        for name, purposes in kinds.items():
            task = tasks.get(name)
            own = self.options(name)
            options = {"limit": own.limit or self.spec.limit, "shots": own.shots, **_asked(own)}
            config: dict[str, Any] = {"task": name, "version": task.version, "options": options, "judge": None}
            found.append(self.measured(suites.plain(name), "+".join(purposes), config, {}, task.sources))
        for name, judged in self.spec.judged.items():
            found.append(self.judged(name))
            if judged.against == BASE and self.point != BASE:
                found.append(self.wins(found[-1]))
        return found

    def judged(self, name: str) -> Measure:
        """An open-ended set, graded."""
        from evaluation import tasks

        own, task = self.options(name), tasks.get(name)
        options = {"limit": own.limit or self.spec.limit, **_asked(own)}
        config: dict[str, Any] = {"task": name, "version": task.version, "options": options}
        links = self.judging(name, config)
        return self.measured(name, "judged", config, links, task.sources)

    def judging(self, name: str, config: dict[str, Any]) -> dict[str, Node]:
        """Put who judges a set, and how often, into a step's config; the nodes of the models that it needs."""
        judged = self.spec.judged[name]
        config |= {"judge": None, "times": judged.times}
        if judged.times > 1:
            config["seed"] = self.builder.seeds["judge"]  # one judgement is greedy and draws nothing
        return self.builder.judge_models(config, judged.judge)

    def wins(self, answered: Measure) -> Measure:
        """How often the model's answers to a set are better than the base's. Both were given for the grades."""
        assert self.builder.plan.base is not None
        base = Measures(self.builder, BASE, self.builder.plan.base).judged(answered.task)
        config: dict[str, Any] = {"task": f"{answered.task}.wins", "version": WINS}
        links = self.judging(answered.task, config)
        inputs = {"answers": answered.node, "against": base.node, **links}
        judge = next(iter(links.values()), None)
        label = f"{self.point} · {config['task']}"
        execution = self.builder.engine(self.name)
        node = self.builder.node("evaluate", label, config, inputs, execution=execution, model=judge)
        return Measure(self.point, config["task"], "judged", node)

    def options(self, task: str) -> TaskOptions:
        """How the recipe wants a task to be asked."""
        from evaluation import suites

        return self.spec.options.get(suites.plain(task)) or TaskOptions()

    def on_tables(self) -> list[Measure]:
        found = []
        decoding = self.spec.decoding.model_dump(mode="json")
        wanted: list[tuple[str, str, str, Any]] = [("gold_loss", t, "held", None) for t in self.spec.gold_loss]
        wanted += [("output_loss", t, "rows", None) for t in self.spec.output_loss]
        wanted += [("accuracy", t, "held", judge) for t, judge in self.spec.accuracy.items()]
        wanted += [("bleu", t, "rows", None) for t in self.spec.bleu]
        for task, table, part, judge in wanted:
            state = self.builder.table(table)
            rows = self.builder.held_rows(table) if part == "held" else state.rows
            config = {
                "task": task,
                "version": TABLE_MEASUREMENTS[task],
                "table": table,
                "part": "rows" if rows.step != "holdout" else part,
                "options": {"limit": self.spec.limit},
                "judge": None,
            }
            if task in ("accuracy", "bleu"):
                config["decoding"] = decoding
            links = {"rows": rows} | self.builder.judge_models(config, judge)
            found.append(self.measured(f"{task}.{table}", task, config, links, halved=part == "held"))
        return found

    def measured(
        self,
        task: str,
        kind: str,
        config: dict[str, Any],
        links: Mapping[str, Node],
        sources: Sequence[Source] = (),
        *,
        halved: bool = True,
    ) -> Measure:
        """`halved`: of what is held out, an arm that was or will be chosen sees only one half."""
        config["chat"] = self.builder.chat(self.name)
        if halved and self.builder.plan.arm.half:
            config["half"] = self.builder.plan.arm.half
        inputs = {"model": self.model, **links}
        execution = self.builder.engine(self.name)
        digest = ""
        if sources and (at := self.options(task).data):
            # As of tables: what the rows are is in the key, and not where they lie.
            execution |= {"data": {task: at}}
            digest = self.builder.rows_digest(_hub_named(at, sources[0]))
        seed = self.builder.seeds["judge"]
        label = f"{self.point} · {task}"
        node = self.builder.node(
            "evaluate", label, config, inputs, data=digest, seed=seed, execution=execution, model=self.model
        )
        return Measure(self.point, task, kind, node)


def _asked(own: TaskOptions) -> dict[str, Any]:
    """What a recipe says of the way to ask; nothing where it is the task's own."""
    return own.model_dump(include={"chat", "max_new_tokens"}, exclude_none=True)


def _hub_named(at: str, source: Source) -> dict[str, str]:
    """A task's rows as a source of the recipe; the data set and split of the task where none is named."""
    if not at.startswith("hub:"):
        return {"path": at}
    name, _, split = at.removeprefix("hub:").partition("@")
    address = name or (f"{source.hub}/{source.config}" if source.config else source.hub)
    return {"path": f"hub:{address}", "split": split or source.split}
