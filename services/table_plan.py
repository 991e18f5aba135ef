"""The tables of an arm as steps, with the models that they ask.

What an operation needs and the recipe does not write (vectors for a selector, clusters, the column that it ranks by)
is put before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee import prompts
from cuvee.errors import CuveeError, MissingError, UserError
from services import models, sources
from services.graph import Node, make_node
from services.models import ModelSpec
from services.store import Store
from services.tables import Operation, source_name

if TYPE_CHECKING:
    from services.arms import Arm
    from services.capacity import Asked


@dataclass(frozen=True)
class TableState:
    """A table on its way through `do`. `held` are the hold-outs that it or its origins have made."""

    rows: Node
    held: tuple[Node, ...] = ()
    vectors: Node | None = None
    clusters: Node | None = None
    scores: tuple[str, ...] = ()
    nodes: tuple[Node, ...] = ()

    def then(self, node: Node, **change: Any) -> TableState:
        """The state after an operation that changed the rows."""
        return replace(self, rows=node, nodes=(*self.nodes, node), **change)

    def answered(self, node: Node) -> TableState:
        """The state after an operation that gave rows other answers: vectors made of the old ones are gone."""
        stale = self.vectors is not None and self.vectors.config["text"] != "instruction"
        return self.then(node, **({"vectors": None} if stale else {}))

    def beside(self, node: Node, **change: Any) -> TableState:
        """The state after a step that left the rows as they are."""
        return replace(self, nodes=(*self.nodes, node), **change)


@dataclass
class Surroundings:
    """What keys need from outside, asked once for all arms."""

    store: Store
    accelerator: bool
    missing: list[CuveeError] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    accepted: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.accepted = self.store.accepted()

    def digest(self, name: str, ask: Any) -> str:
        """The digest of a model or source; a missing one is noted, so that the rest of the plan can be shown."""
        if name not in self.digests:
            try:
                self.digests[name] = ask()
            except MissingError as error:
                self.missing.append(error)
                self.digests[name] = f"missing:{name}"
        return self.digests[name]


class TableBuilder:
    """Builds the part of an arm's graph that ends in tables."""

    def __init__(self, arm: Arm, where: Surroundings) -> None:
        self.recipe, self.seeds, self.where = arm.document, arm.seeds, where
        self.cache = where.store.scratch / "cache"
        self.tables: dict[str, TableState] = {}
        self.rounds: dict[str, TableState] = {}
        self.building: dict[str, TableState] = {}

    def node(self, step: str, label: str, config: Mapping[str, Any], inputs: Mapping[str, Node], **more: Any) -> Node:
        return make_node(step, label, config, inputs, accepted=self.where.accepted, **more)

    # Models

    def model(self, name: str) -> Node:
        """The node of a model of the recipe."""
        spec = self.spec(name)
        digest = self.where.digest(f"model {name} {spec.model_dump_json()}", lambda: models.digest(spec, self.hashes))
        if spec.api:
            execution = {"endpoint": spec.model_dump(mode="json", exclude_none=True)}
            return self.node("model", f"model {name}", {"api": spec.api}, {}, data=digest, execution=execution)
        config = spec.model_dump(mode="json", include={"id", "revision"})
        return self.node("model", f"model {name}", config, {}, data=digest)

    def spec(self, name: str) -> ModelSpec:
        if name not in self.recipe.models:
            raise UserError(f"unknown model {name!r}", remedy=f"known: {', '.join(self.recipe.models)}")
        return self.recipe.models[name]

    @property
    def hashes(self) -> Path:
        """The cache of file hashes."""
        return self.cache / "models.json"

    def chat(self, name: str) -> dict[str, Any]:
        """How conversations of a model are rendered; part of every key that a rendering enters."""
        spec = self.spec(name)
        chat = {
            "template": models.template_text(spec.template),
            "template_args": dict(spec.template_args),
            "date": spec.date,
        }
        return chat | ({"post_instruction": True} if spec.post_instruction else {})

    def engine(self, name: str) -> dict[str, Any]:
        """How the engine of a model runs; not part of keys."""
        spec = self.spec(name)
        options = spec.model_dump(include={"tensor_parallel", "max_len", "dtype", "replicas"}, exclude_none=True)
        if need := self.recipe.execution.asked("engine"):
            options["need"] = need
        return {"engine": options, **self.asked("judge"), **self.asked("sandbox")}

    def asked(self, kind: Asked) -> dict[str, Any]:
        """What the recipe says that workers of a kind ask for; not part of keys."""
        need = self.recipe.execution.asked(kind)
        return {kind: need} if need else {}

    def encoder(self, name: str) -> Node:
        """The node of an encoder."""
        digest = self.where.digest(f"encoder {name}", lambda: models.encoder_digest(name, self.hashes))
        return self.node("encoder", f"encoder {name}", {"id": name}, {}, data=digest)

    # Tables

    def table(self, name: str) -> TableState:
        """The final state of a table of the recipe, or of a round `table@n`."""
        if name not in self.tables:
            spec = self.recipe.data[name]
            state = self.origins(name)
            for operation in spec.do:
                self.building[name] = state
                state = self.operation(name, operation, state)
            self.tables[name] = state
            self.building.pop(name, None)
        return self.tables[name]

    def rows_of(self, name: str) -> TableState:
        """A table, or `table@n`: the rows chosen up to that round."""
        whole = self.table(name.partition("@")[0])
        return self.rounds[name] if "@" in name else whole

    def empty_state(self, rows: Node) -> TableState:
        """A table of which only the rows count."""
        return TableState(rows)

    def origins(self, name: str) -> TableState:
        """What a table starts from: a source, another table, or several joined."""
        found = []
        for origin in self.recipe.data[name].origins:
            if isinstance(origin, str) and origin in self.recipe.data:
                found.append(replace(self.table(origin), nodes=()))
            else:
                found.append(TableState(self.load(origin)))
        if len(found) == 1:
            return found[0] if found[0].rows.step != "load" else replace(found[0], nodes=(found[0].rows,))
        inputs = {f"rows.{i}": state.rows for i, state in enumerate(found)}
        merged = self.node("merge", f"{name} · merge", {"part": "rows"}, inputs)
        held = tuple(dict.fromkeys(node for state in found for node in state.held))
        common = set.intersection(*(set(state.scores) for state in found))
        loads = [state.rows for state in found if state.rows.step == "load"]
        return TableState(merged, held, scores=tuple(sorted(common)), nodes=(*loads, merged))

    def load(self, origin: str | dict[str, Any]) -> Node:
        """The node that reads a source. Its draws (`limit`) follow the recipe's seed, not the repeats'."""
        settings = dict(origin) if isinstance(origin, dict) else {"path": origin}
        name = source_name(origin)
        settings.pop("name", None)
        source = sources.Source.model_validate(settings)
        digest = self.rows_digest(settings)
        # The address is not in the key: a file that is moved is the same data (its content is in the digest).
        config = {"name": name, "seed": self.recipe.seed if source.draws else 0}
        execution = {"source": source.model_dump(mode="json", exclude_defaults=True)}
        return self.node("load", f"{name} · load", config, {}, data=digest, execution=execution)

    def rows_digest(self, settings: Mapping[str, Any]) -> str:
        """The digest of a source's rows."""
        source = sources.Source.model_validate(settings)
        return self.where.digest(f"source {source.model_dump_json()}", lambda: sources.digest(source, self.cache))

    def operation(self, table: str, operation: Operation, state: TableState) -> TableState:
        """One entry of `do`."""
        method = getattr(self, f"do_{operation.name}", None)
        label = f"{table} · {operation.label}"
        if method is not None:
            return method(label, operation.config, state)  # type: ignore[no-any-return]
        config = operation.config.model_dump(mode="json")
        seed = self.seeds["sample"]
        return state.then(self.node(operation.name, label, config, {"rows": state.rows}, seed=seed))

    def do_holdout(self, label: str, config: Any, state: TableState) -> TableState:
        node = self.node("holdout", label, config.model_dump(mode="json"), {"rows": state.rows})
        return state.then(node, held=(*state.held, node))

    def do_dedup(self, label: str, config: Any, state: TableState) -> TableState:
        inputs = {"rows": state.rows}
        if config.semantic is not None:
            state = self.with_vectors(label, state)
            assert state.vectors is not None
            inputs["vectors"] = state.vectors
        return state.then(self.node("dedup", label, config.model_dump(mode="json"), inputs))

    def do_decontaminate(self, label: str, config: Any, state: TableState) -> TableState:
        from evaluation import tasks

        inputs = {"rows": state.rows}
        versions = {}
        for name in config.against:
            if name in self.recipe.data:
                inputs[f"against.{name}"] = self.table(name).rows
            else:
                versions[name] = tasks.get(name).version
        settings = {"options": config.model_dump(mode="json"), "against": list(config.against), "versions": versions}
        return state.then(self.node("decontaminate", label, settings, inputs))

    def do_corrupt(self, label: str, config: Any, state: TableState) -> TableState:
        inputs = {"rows": state.rows}
        if config.within == "cluster":
            if state.clusters is None:
                raise UserError(f"{label}: no clusters to exchange within", remedy="write cluster before corrupt")
            inputs["clusters"] = state.clusters
        node = self.node("corrupt", label, config.model_dump(mode="json"), inputs, seed=self.seeds["sample"])
        return state.answered(node)

    def do_embed(self, label: str, config: Any, state: TableState) -> TableState:
        inputs = {"rows": state.rows, "encoder": self.encoder(config.encoder)}
        node = self.node("embed", label, config.model_dump(mode="json"), inputs, execution=self.asked("embed"))
        return state.beside(node, vectors=node)

    def with_vectors(self, label: str, state: TableState) -> TableState:
        """The state with vectors: those that are there, else by the default encoder."""
        if state.vectors is not None:
            return state
        from selection.embedding import EmbedConfig

        return self.do_embed(f"{label.split(' · ')[0]} · embed", EmbedConfig(), state)

    def part_vectors(self, label: str, state: TableState, part: str) -> Node:
        """Vectors of the instruction or the response alone, by the encoder of the table's own."""
        from selection.embedding import EmbedConfig

        own = EmbedConfig.model_validate(state.vectors.config) if state.vectors else EmbedConfig()
        config = own.model_copy(update={"text": part})
        inputs = {"rows": state.rows, "encoder": self.encoder(config.encoder)}
        name = f"{label.split(' · ')[0]} · embed {part}"
        return self.node("embed", name, config.model_dump(mode="json"), inputs, execution=self.asked("embed"))

    def do_cluster(self, label: str, config: Any, state: TableState) -> TableState:
        state = self.with_vectors(label, state)
        assert state.vectors is not None
        inputs = {"rows": state.rows, "vectors": state.vectors}
        settings = config.model_dump(mode="json")
        return self.clusters(label, settings, inputs, state)

    def clusters(
        self, label: str, settings: Mapping[str, Any], inputs: Mapping[str, Node], state: TableState
    ) -> TableState:
        execution = self.asked("cluster")
        node = self.node("cluster", label, settings, inputs, seed=self.seeds["sample"], execution=execution)
        return state.beside(node, clusters=node)

    def do_score(self, label: str, config: Any, state: TableState) -> TableState:
        inputs = {"rows": state.rows}
        settings: dict[str, Any] = {"scorers": config.model_dump(mode="json")}
        execution: dict[str, Any] = {}
        for need in sorted(config.needs()):
            if need.startswith("vectors."):
                inputs[need] = self.part_vectors(label, state, need.removeprefix("vectors."))
        model = None
        if name := config.model_name(self.recipe.model_for()):
            inputs["model"] = model = self.model(name)
            settings["chat"] = self.chat(name)
            execution = self.engine(name)
        node = self.node("score", label, settings, inputs, execution=execution, model=model)
        return state.then(node, scores=(*state.scores, *config.columns()))

    def do_select(self, label: str, config: Any, state: TableState) -> TableState:
        state = self.ready_for(label.split(" · ")[0], config, state)
        inputs = {"rows": state.rows}
        if {"embedding", "cluster"} & self.needs(config, state):
            assert state.vectors is not None
            inputs["vectors"] = state.vectors
        if "cluster" in self.needs(config, state):
            assert state.clusters is not None
            inputs["clusters"] = state.clusters
        settings = config.model_dump(mode="json")
        return state.then(self.node("select", label, settings, inputs, seed=self.seeds["sample"]))

    def needs(self, config: Any, state: TableState) -> set[str]:
        """What a selector must find beside the rows."""
        from selection.methods import needs

        return set(needs(config, state.scores))

    def ready_for(self, table: str, config: Any, state: TableState) -> TableState:
        """The state with what a selector needs: vectors, clusters, the column that it ranks by."""
        from selection.clustering import ClusterConfig
        from selection.methods import clusters_of

        wanted = self.needs(config, state)
        if "cosine" in wanted and "cosine" not in state.scores:
            from selection.quality import ScoreConfig

            state = self.do_score(f"{table} · cosine", ScoreConfig.parse({"cosine": "cosine"}), state)
        if "quality" in wanted and config.quality is not None and config.quality not in state.scores:
            known = ", ".join(state.scores) or "none"
            raise UserError(
                f"{table}: no score named {config.quality!r} (known: {known})",
                remedy=f"add {{score: {{{config.quality}: …}}}} before it",
            )
        if {"embedding", "cluster"} & wanted:
            state = self.with_vectors(table, state)
        if "cluster" in wanted and (state.clusters is None or config.clusters is not None):
            label = f"{table} · cluster"
            if config.clusters is not None:
                return self.do_cluster(label, ClusterConfig(k=config.clusters), state)
            # k follows from the size of the pool, which is known only when the step runs.
            return self.rule_clusters(label, config, clusters_of.__name__, state)
        return state

    def rule_clusters(self, label: str, config: Any, rule: str, state: TableState) -> TableState:
        """Clusters whose number follows from the budget (`selection.methods.clusters_of`)."""
        from selection.clustering import ClusterConfig

        assert state.vectors is not None
        settings = {**ClusterConfig(k=2).model_dump(mode="json"), "k": {rule: config.model_dump(mode="json")}}
        inputs = {"rows": state.rows, "vectors": state.vectors}
        return self.clusters(label, settings, inputs, state)

    def do_respond(self, label: str, config: Any, state: TableState) -> TableState:
        from selection.responses import PROMPTS

        settings: dict[str, Any] = {"respond": config.model_dump(mode="json"), "judge": None}
        if config.generates or config.prompts:  # the gold too may be worded by a prompt set
            # An edit of a prompt without a new version must not be taken for the old prompt.
            settings["prompt"] = prompts.load(config.prompts or "generic", PROMPTS).digest
        inputs, execution = {"rows": state.rows}, {}
        model = None
        if config.generates:
            name = config.model or self.recipe.model_for()
            inputs["model"] = model = self.model(name)
            settings["chat"] = self.chat(name)
            execution = self.engine(name)
            inputs |= self.judge_models(settings, config.judge)
        node = self.node(
            "respond", label, settings, inputs, seed=self.seeds["generation"], execution=execution, model=model
        )
        return state.answered(node)

    def judge_models(self, settings: dict[str, Any], value: Any) -> dict[str, Node]:
        """Put a judge's settings into a step's config; the nodes of the models that it needs."""
        from evaluation.judges import JudgeConfig

        if value is None:
            return {}
        judge = JudgeConfig.parse(value)
        settings["judge"] = judge.model_dump(mode="json")
        settings["judge_version"] = judge.version()
        settings["judge_chat"] = {name: self.chat(name) for name in sorted(judge.model_names())}
        return {f"judge.{name}": self.model(name) for name in judge.model_names()}

    def held_rows(self, table: str) -> Node:
        """The held-out rows of a table and of the tables that it is made from, as one table."""
        held = self.table(table).held
        if len(held) == 1:
            return held[0]
        return self.node("merge", f"{table} · held out", {"part": "held"}, {f"rows.{i}": n for i, n in enumerate(held)})

    def all_held(self) -> list[Node]:
        """The hold-outs of all tables.

        A selection in rounds trains while its table is being built: of that table those made so far count, and tables
        that are made from it hold out nothing that it could know.
        """
        states = [
            self.building[name] if name in self.building else self.table(name)
            for name in self.recipe.data
            if name in self.building or not self.building.keys() & {*self.recipe.lineage(name)}
        ]
        return list(dict.fromkeys(node for state in states for node in state.held))
