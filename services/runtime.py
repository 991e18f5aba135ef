"""What a step may need from the machine, brought up when the first step asks and put away at the end.

A run whose artifacts are all there starts nothing. One inference engine is alive at a time, and none while training,
so that a small machine never holds two models.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from cuvee.files import Carrier
from cuvee.protocols import Generate, Judge
from services.environment import quiet_environment

if TYPE_CHECKING:
    from selection.assign import Workers
    from services.capacity import Asked, Capacity, Resources
    from services.inference import Engine
    from services.reward import Reward
    from services.steps.base import Context
    from services.store import Store


@dataclass(frozen=True)
class Remote:
    """A model behind an endpoint: it generates, and tells no log-probabilities of given texts."""

    generate: Generate
    score: None = None

    @classmethod
    def open(cls, path: Path) -> Remote:
        """From the `endpoint.json` of a model artifact. Raises MissingError without its key."""
        from services.endpoint import Endpoint
        from services.models import ModelSpec

        return cls(Endpoint(ModelSpec.model_validate(json.loads(path.read_text()))))


class Runtime:
    """`address` is a Ray cluster's, or None for a local instance that ends with the command.

    `connected` is for a worker of a cluster, which neither joins it nor puts anything of it away.
    """

    def __init__(self, store: Store, *, address: str | None = None, log: Path, connected: bool = False) -> None:
        self.store, self.address, self.log = store, address, log
        self.engine_model = ""
        self._stack = ExitStack()
        self._connected = connected
        self._engines: dict[str, Engine] = {}

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ray(self) -> None:
        """Be connected to Ray."""
        if not self._connected:
            from services import cluster

            pids = self.store.scratch / "work" / "processes.json"
            self._stack.enter_context(cluster.connect(self.address, log_file=self.log, pids=pids))
            self._connected = True

    @property
    def capacity(self) -> Capacity:
        """The machines of the cluster, with those that its autoscaler could start; without an address, this one."""
        from services import cluster
        from services.capacity import Capacity

        if self.address:
            self.ray()
        return Capacity.of_ray() if self._connected else cluster.local_capacity()

    @cached_property
    def carrier(self) -> Carrier:
        """Brings artifacts to the machines of workers."""
        from services.carrier import carrier

        return carrier(self.store)

    def close(self) -> None:
        """Put everything away that was started here."""
        if self._connected:
            self.release_engines()
        self._stack.close()
        self._connected = False

    # Engines

    def engine_for(self, context: Context, name: str) -> Engine | Remote:
        """The engine, or the endpoint, of the model that the step has as input `name`."""
        options = dict(context.execution.get("engine", {}))
        return self.model_of(context.inputs[name], context.config.get("chat", {}), options)

    def model_of(self, artifact: Path, chat: Mapping[str, Any], options: Mapping[str, Any]) -> Engine | Remote:
        """What answers for a `model` or `train` artifact."""
        from services.steps.model import model_folder

        if (artifact / "endpoint.json").exists():
            return Remote.open(artifact / "endpoint.json")
        return self.engine(model_folder(artifact), chat, options)

    def engine(self, model: Path, chat: Mapping[str, Any], options: Mapping[str, Any]) -> Engine:
        """The engine of a model folder; another model's engine is put away first."""
        from services import inference

        self.ray()
        settings = inference.EngineOptions.model_validate(options)
        name = f"{model}|{dict(chat)}|{settings}"
        if name not in self._engines:
            self.release_engines()
            find = partial(self.carrier.here, model)
            self._engines[name] = inference.engine(model, settings, chat=dict(chat), find=find)
        return self._engines[name]

    def release_engines(self) -> None:
        """End all engines and wait until their memory is free."""
        if self._engines:
            from services import inference

            inference.shutdown_engines()
            self._engines.clear()

    def judge_for(self, context: Context, default: Any = None) -> Judge | None:
        """The judge that the step's config names, else `default`, which is written as in a recipe.

        The models that a judge needs are inputs `judge.<model>`.
        """
        form = context.config.get("judge") or default
        if not form:
            return None
        from evaluation import judges

        config = judges.JudgeConfig.parse(form)
        names = sorted(config.model_names())
        if config.kind == "reward":
            rewards = {name: self.reward_for(context, f"judge.{name}") for name in names}
            return judges.build(config, reward=rewards)
        chats = context.config.get("judge_chat", {})
        generate = {
            name: self.model_of(
                context.inputs[f"judge.{name}"], chats[name], context.execution.get("engine", {})
            ).generate
            for name in names
        }
        return judges.build(config, generate=generate, spread=self.spread(context))

    def spread(self, context: Context) -> Callable[[Judge], Judge]:
        """Puts judges that take processors on Ray tasks where there are several machines."""
        from services.judging import Spread

        if self.address is None or self.capacity.nodes < 2:
            return lambda judge: judge
        _, options = self._workers(context, "sandbox")
        return lambda judge: Spread(judge, options)

    def reward_for(self, context: Context, name: str) -> Reward:
        """The reward model that the step has as input `name`, on a worker of its own."""
        from services.reward import reward
        from services.steps.model import model_folder

        self.ray()
        _, options = self._workers(context, "judge")
        return reward(partial(self.carrier.here, model_folder(context.inputs[name])), options)

    # Resources

    def _workers(self, context: Context, kind: Asked) -> tuple[Resources, dict[str, Any]]:
        """What a worker of a kind asks for, and Ray's options with its runtime environment."""
        from services.capacity import Need, resources

        need = Need.model_validate(context.execution.get(kind, {}))
        found = resources(kind, self.capacity, need=need)
        return found, found.options() | {"runtime_env": need.environment(self.environment())}

    def embedding(self, context: Context) -> dict[str, Any]:
        """What `selection.embedding.embed` may use: an actor a GPU that is there, or one a machine."""
        from services.capacity import Need, resources

        self.ray()
        need = Need.model_validate(context.execution.get("embed", {}))
        found = resources("embed", self.capacity, need=need)
        return {
            "options": found.options(),
            "threads": found.threads,
            "actors": self.capacity.members(found),
            "runtime_env": need.environment(self.environment()),
            "bring": self.carrier.here,
        }

    def assigning(self, context: Context) -> Workers | None:
        """Ray tasks for the passes of k-means where there are several machines; else threads here are faster."""
        from selection.assign import Workers

        if self.address is None or self.capacity.nodes < 2:
            return None
        found, options = self._workers(context, "cluster")
        return Workers(self.capacity.members(found), options, self.carrier.here)

    def training(self, context: Context) -> tuple[dict[str, Any], dict[str, str]]:
        """(`Execution` of a training, environment of its workers), from what the recipe says of it."""
        from services.capacity import Need, resources

        self.ray()
        said = context.execution["execution"]
        need = Need.of_training(said)
        found = resources("train", self.capacity, workers=said.get("workers", 1), need=need)
        where = {**said, "use_gpu": found.gpus > 0, "cpus_per_worker": found.cpus}
        if not self.carrier.shared:
            where.setdefault("storage", f"{self.store.url}/work/{context.key}")
        return where, {**self.environment(), "OMP_NUM_THREADS": str(found.threads)}

    def carried(self, context: Context) -> None:
        """Forget what workers of a finished training have carried here."""
        from services.carrier import forget

        for folder in (context.out, context.work):
            forget(self.store, folder)

    def environment(self) -> dict[str, str]:
        """Environment of workers: threads, telemetry, offline."""
        return quiet_environment()

    def vectors_like(self, context: Context) -> list[Path]:
        """Vector folders of finished embeddings with the same settings, so that only new rows are embedded."""
        settings = json.dumps(dict(context.config), sort_keys=True)
        encoder = context.input_keys["encoder"]
        found = [
            done.key
            for done in self.store.artifacts()
            if done.step == "embed" and done.inputs.get("encoder") == encoder and done.info.get("settings") == settings
        ]
        return [self.store.local(key) / "vectors" for key in found[-8:]]
