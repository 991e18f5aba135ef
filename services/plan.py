"""From an arm of a recipe to its graph of steps.

Everything is unrolled into ordinary steps; no science function calls a step. A plan loads no model and reads no table:
keys follow from the recipe and from digests of data and models. Tables are planned in `table_plan`; here they become
stages and evaluations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cuvee.errors import CuveeError
from services.environment import has_accelerator
from services.graph import Node
from services.measures import BASE
from services.measuring import Measure, Measures
from services.rounds import unroll
from services.store import Store
from services.table_plan import Surroundings, TableBuilder, TableState

if TYPE_CHECKING:
    from services.arms import Arm
    from services.measures import Point
    from services.recipe import Recipe


@dataclass(frozen=True)
class StagePlan:
    """A stage's list and its training."""

    compose: Node
    train: Node


@dataclass
class ArmPlan:
    """An arm with all of its nodes."""

    arm: Arm
    tables: dict[str, TableState] = field(default_factory=dict)
    stages: dict[str, StagePlan] = field(default_factory=dict)
    points: dict[str, Node] = field(default_factory=dict)
    rounds: dict[str, TableState] = field(default_factory=dict)
    trained: dict[str, Node] = field(default_factory=dict)
    measures: list[Measure] = field(default_factory=list)
    base: Node | None = None

    @property
    def last_point(self) -> str:
        """The label of its last model."""
        return list(self.points)[-1] if self.points else BASE

    @property
    def targets(self) -> list[Node]:
        """What has to be made for this arm."""
        tables = [node for state in self.tables.values() for node in (*state.nodes, state.rows)]
        stages = [node for stage in self.stages.values() for node in (stage.compose, stage.train)]
        return [*tables, *stages, *(measure.node for measure in self.measures)]


@dataclass
class Plan:
    """All arms of a recipe. `missing` says what cannot be reached from here; a run refuses to start with any."""

    recipe: Recipe
    arms: list[ArmPlan]
    missing: list[CuveeError]

    @property
    def targets(self) -> list[Node]:
        """What has to be made for all arms."""
        return [node for arm in self.arms for node in arm.targets]


def make_plan(recipe: Recipe, arms: Sequence[Arm], store: Store, *, accelerator: bool | None = None) -> Plan:
    """The plan of a recipe's arms. `accelerator`: whether steps will find GPUs (default: whether this machine has)."""
    where = Surroundings(store, has_accelerator() if accelerator is None else accelerator)
    return Plan(recipe, [Builder(arm, where).build() for arm in arms], where.missing)


class Builder(TableBuilder):
    """Builds the graph of one arm."""

    def __init__(self, arm: Arm, where: Surroundings) -> None:
        super().__init__(arm, where)
        self.plan = ArmPlan(arm, tables=self.tables, rounds=self.rounds)

    def build(self) -> ArmPlan:
        """Tables, stages, evaluations. A table that nothing uses is built too, so that its steps can be seen."""
        for name in self.recipe.data:
            self.table(name)
        if self.recipe.stages or self.recipe.points():
            self.plan.base = self.model(self.recipe.model_for())
        for name in self.recipe.stages:
            self.stage(name)
        for point in self.recipe.points():
            self.measure(point)
        return self.plan

    # Tables

    def do_iterate(self, label: str, config: Any, state: TableState) -> TableState:
        return unroll(self, label, config, state)

    # Stages

    def tokens(self, table: str, model: str, rows: Node, part: str = "rows", half: str = "") -> Node:
        """The rendered rows of a table, or of a half of them, under a model's template."""
        config = {"chat": self.chat(model), "part": part} | ({"half": half} if half else {})
        # Only the tokenizer matters; a model's node stands for it, since both are one download.
        return self.node("render", f"{table} · tokens", config, {"rows": rows, "model": self.model(model)})

    def reference(self, table: str, model: str, init: Node, tokens: Node, max_len: int) -> Node:
        """Log-probabilities of the tokens of a table under the model that a stage starts from."""
        inputs = {"model": init, "tokens": tokens}
        config = {"chat": self.chat(model), "max_len": max_len}
        label, execution = f"{table} · reference", self.engine(model)
        return self.node("reference", label, config, inputs, execution=execution, model=init)

    def stage(self, name: str) -> None:
        """The list and the training of a stage."""
        recipe, spec = self.recipe, self.recipe.stages[name]
        settings = recipe.train_for(name)
        model = recipe.model_for(name)
        tables = {table: self.rows_of(table) for table in spec.mix}
        tokens = {table: self.tokens(table, model, state.rows) for table, state in tables.items()}
        compose = self.compose(name, spec.mix, tables, tokens, settings, order=spec.order, minimum=spec.minimum)
        init = self.plan.stages[spec.init].train if spec.init in self.plan.stages else self.model(model)
        inputs = {"init": init, "plan": compose} | {f"tokens.{table}": node for table, node in tokens.items()}
        for table, node in self.validation(name, model).items():
            inputs[f"held.{table}"] = node
        train = self.train(
            f"{name} · train",
            name,
            settings,
            recipe.objective_for(name),
            inputs | self.span(name),
            model,
            optimiser=spec.optimiser if spec.init in self.plan.stages else "restart",
            keep_state=any(s.init == name and s.optimiser == "keep" for s in recipe.stages.values()),
        )
        self.plan.stages[name] = StagePlan(compose, train)

    def compose(
        self,
        stage: str,
        mix: Mapping[str, Any],
        tables: Mapping[str, TableState],
        tokens: Mapping[str, Node],
        settings: Any,
        *,
        order: str = "shuffle",
        minimum: int = 0,
    ) -> Node:
        """The node of a stage's exact list; hold-outs of the whole recipe are excluded from it."""
        inputs = {f"tokens.{table}": node for table, node in tokens.items()}
        inputs |= {f"rows.{table}": state.rows for table, state in tables.items()}
        inputs |= {f"held.{node.key[-8:]}": node for node in self.all_held()}
        config = {
            "stage": stage,
            "mix": {table: str(amount) for table, amount in mix.items()},
            "epochs": settings.epochs,
            "order": order,
            "max_len": settings.max_len,
            "over_long": settings.over_long,
            "minimum": minimum,
            "seeds": {"sample": self.seeds["sample"], "order": self.seeds["order"]},
        }
        return self.node("compose", f"{stage} · list", config, inputs)

    def validation(self, stage: str, model: str) -> dict[str, Node]:
        """Held-out rows of the stage's tables, rendered: their loss is followed during training if the recipe asks.

        In a sweep that chooses by them these are the validation rows of all tables, whatever the arm mixes and is
        measured on afterwards: losses over different tables could not be compared.
        """
        if self.recipe.train_for(stage).validation_every is None:
            return {}
        found: dict[str, Node] = {}
        mixed = [self.rows_of(table).held for table in self.recipe.stages[stage].mix]
        for held in [self.all_held()] if self.plan.arm.half else mixed:
            for node in held:
                name = node.label.split(" · ")[0]
                half = "validation" if self.plan.arm.half else ""
                found[name] = self.tokens(f"{name} (held out)", model, node, "held", half)
        return found

    def train(
        self,
        label: str,
        stage: str,
        settings: Any,
        objective: Any,
        inputs: Mapping[str, Node],
        model: str,
        *,
        optimiser: str = "restart",
        keep_state: bool = False,
    ) -> Node:
        """The node of a training."""
        inputs = dict(inputs)
        if objective.reads_reference:
            for name, node in list(inputs.items()):
                kind, _, table = name.partition(".")
                if kind == "tokens":
                    inputs[f"reference.{table}"] = self.reference(table, model, inputs["init"], node, settings.max_len)
        config = {
            "stage": stage,
            "train": settings.model_copy(update={"precision": self.precision(settings)}).key(),
            "objective": objective.model_dump(mode="json"),
            "optimiser": optimiser,
            "keep_state": keep_state,
            "chat": self.chat(model),
        }
        if epochs := self.recipe.epochs_measured(stage):
            config["epochs"] = epochs
        saving = settings.model_dump(mode="json", include={"checkpoint_every", "checkpoint_minutes", "keep"})
        execution = {"saving": saving, "execution": self.execution(model), "recipe": self.recipe.name}
        return self.node("train", label, config, inputs, seed=self.seeds["init"], execution=execution)

    def precision(self, settings: Any) -> str:
        """`auto` as it is on the machines of this run: an `auto` in a key would name two results."""
        if settings.precision != "auto":
            return str(settings.precision)
        return "bf16" if self.where.accelerator else "fp32"

    def execution(self, model: str) -> dict[str, Any]:
        """What the model and the recipe say of where training runs."""
        spec = self.spec(model)
        said: dict[str, Any] = {"zero": spec.zero} if spec.zero else {}
        if spec.micro_batch:
            said["micro_batch"] = spec.micro_batch
        if spec.offload != "none":
            said["offload"] = "parameters" if spec.offload == "all" else spec.offload
        return said | self.recipe.execution.training()

    def span(self, stage: str) -> dict[str, Node]:
        """Lists of the stages that share one learning-rate schedule with this one, in order.

        A stage that keeps the schedule of the one before makes that one's rates depend on its own length.
        """
        names = list(self.recipe.stages)
        chain = [stage]
        while self.recipe.stages[chain[0]].schedule == "keep" and self.recipe.stages[chain[0]].init in names:
            chain.insert(0, self.recipe.stages[chain[0]].init)
        while after := [
            n for n in names if self.recipe.stages[n].init == chain[-1] and self.recipe.stages[n].schedule == "keep"
        ]:
            chain.append(after[0])
        if len(chain) == 1:
            return {}
        return {f"span.{i}.{name}": self.list_of(name) for i, name in enumerate(chain)}

    def list_of(self, stage: str) -> Node:
        """The list of a stage, also of a later one."""
        if stage in self.plan.stages:
            return self.plan.stages[stage].compose
        spec = self.recipe.stages[stage]
        tables = {table: self.rows_of(table) for table in spec.mix}
        tokens = {t: self.tokens(t, self.recipe.model_for(stage), state.rows) for t, state in tables.items()}
        settings = self.recipe.train_for(stage)
        return self.compose(stage, spec.mix, tables, tokens, settings, order=spec.order, minimum=spec.minimum)

    # Evaluation

    def measure(self, point: Point) -> None:
        """All evaluations of the recipe at a point."""
        model = self.at(point)
        if model is None:
            return
        self.plan.points[point.label] = model
        self.plan.measures += list(Measures(self, point.label, model).all())

    def at(self, point: Point) -> Node | None:
        """The model at a point; None where this arm has no such stage."""
        if point.kind == "base":
            return self.plan.base
        if point.kind == "stage":
            if point.name not in self.plan.stages:
                return None
            train = self.plan.stages[point.name].train
            if point.number not in train.config.get("epochs", ()):
                return train  # the last epoch's end is the stage's
            return self.node("epoch", f"{point.label} · model", {"epoch": point.number}, {"train": train})
        self.table(point.name)
        return self.plan.trained.get(point.label)
