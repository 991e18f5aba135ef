"""What a step may need from the machine, brought up when the first step asks and put away at the end.

A run whose artifacts are all there starts nothing. One inference engine is alive at a time, and none while training,
so that a small machine never holds two models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from cuvee.protocols import Generate, Judge

if TYPE_CHECKING:
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
            self._engines[name] = inference.engine(model, settings, chat=dict(chat))
        return self._engines[name]

    def release_engines(self) -> None:
        """End all engines and wait until their memory is free."""
        if self._engines:
            from services import inference

            inference.shutdown_engines()
            self._engines.clear()

    def judge_for(self, context: Context) -> Judge | None:
        """The judge that the step's config names; the models that it needs are inputs `judge.<model>`."""
        if not context.config.get("judge"):
            return None
        from evaluation import judges

        config = judges.JudgeConfig.parse(context.config["judge"])
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
        return judges.build(config, generate=generate)

    def reward_for(self, context: Context, name: str) -> Reward:
        """The reward model that the step has as input `name`, on a worker of its own."""
        from services import cluster
        from services.reward import reward
        from services.steps.model import model_folder

        self.ray()
        need = cluster.resources("embed")
        return reward(model_folder(context.inputs[name]), cpus=need.cpus, gpus=need.gpus, env=self.environment())

    # Resources

    def embedding_resources(self) -> dict[str, Any]:
        """CPUs and GPUs for embedding: all GPUs, one actor each, or one actor on the CPUs."""
        import ray

        from services import cluster

        self.ray()
        have = ray.cluster_resources()
        worker = cluster.resources("embed", have=have)
        gpus = have.get("GPU", 0)
        return {"cpus": worker.cpus, "gpus": gpus, "actors": max(1, int(gpus)), "env": self.environment()}

    def environment(self) -> dict[str, str]:
        """Environment of workers: threads, telemetry, offline."""
        from services import cluster

        return cluster.quiet_environment()

    def training_defaults(self) -> dict[str, Any]:
        """Where a training runs if the recipe does not say: on one GPU, or on all CPUs but a little."""
        import ray

        self.ray()
        return {"use_gpu": ray.cluster_resources().get("GPU", 0) > 0}

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
