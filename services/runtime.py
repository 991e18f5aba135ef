"""What a step may need from the machine, brought up when the first step asks and put away at the end.

A run whose artifacts are all there starts nothing. One inference engine is alive at a time, and none while training,
so that a small machine never holds two models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from cuvee.protocols import Judge

if TYPE_CHECKING:
    from evaluation.judges import JudgeConfig
    from services.inference import Engine
    from services.steps.base import Context
    from services.store import Store


class Runtime:
    """`address` is a Ray cluster's, or None for a local instance that ends with the command."""

    def __init__(
        self, store: Store, *, address: str | None = None, log: Path | None = None, hub_code: bool = False
    ) -> None:
        self.store, self.address, self.log, self.hub_code = store, address, log, hub_code
        self.engine_model = ""
        self._stack = ExitStack()
        self._connected = False
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

            self._stack.enter_context(cluster.connect(self.address, log_file=self.log, state=self.store.scratch))
            self._connected = True

    def close(self) -> None:
        """Put everything away that was started here."""
        if self._connected:
            self.release_engines()
        self._stack.close()
        self._connected = False

    # Engines

    def engine_for(self, context: Context, name: str) -> Engine:
        """The engine of the model that the step has as input `name`."""
        from services.steps.model import model_folder

        options = dict(context.execution.get("engine", {}))
        return self.engine(model_folder(context.inputs[name]), context.config.get("chat", {}), options)

    def engine(self, model: Path, chat: Mapping[str, Any], options: Mapping[str, Any]) -> Engine:
        """The engine of a model folder; another model's engine is put away first."""
        from services import inference

        self.ray()
        name = f"{model}|{sorted(chat.items())}|{sorted(options.items())}"
        if name not in self._engines:
            self.release_engines()
            self._engines[name] = inference.engine(
                model, inference.EngineOptions.model_validate(options), chat=dict(chat)
            )
        return self._engines[name]

    def release_engines(self) -> None:
        """End all engines and wait until their memory is free."""
        if self._engines:
            from services import inference

            inference.shutdown_engines()
            self._engines.clear()

    def judge(self, config: JudgeConfig, context: Context) -> Judge:
        """A judge; the models that it needs are inputs `judge.<model>` of the step."""
        from evaluation import judges

        generate = {name: self.engine_for(context, f"judge.{name}").generate for name in config.model_names()}
        return judges.build(config, generate=generate)

    # Resources

    def resources(self, step: str) -> dict[str, Any]:
        """CPUs, GPUs, actors and environment of a step's workers."""
        from services import cluster

        return cluster.resources(step).model_dump() | {"env": cluster.environment()}

    def environment(self) -> dict[str, str]:
        """Environment of workers: threads, telemetry, offline."""
        from services import cluster

        return cluster.environment()

    def training_defaults(self) -> dict[str, Any]:
        """Workers and device of a training where the recipe does not say."""
        from services import cluster

        return cluster.training_defaults()

    def vectors_like(self, context: Context) -> list[Path]:
        """Vector folders of finished embeddings with the same settings, so that only new rows are embedded."""
        settings = json.dumps(dict(context.config), sort_keys=True)
        encoder = context.input_keys["encoder"]
        found = [
            done.key
            for done in self.store.artifacts()
            if done.step == "embed" and done.inputs.get("encoder") == encoder and done.info["config"] == settings
        ]
        return [self.store.local(key) / "vectors" for key in found[-8:]]
