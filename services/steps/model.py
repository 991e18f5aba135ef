"""A model as a Hugging Face folder: converted or downloaded once into the store, or a pointer to a path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from services.steps.base import Context, step


@step("model", "1", "services.models")
def model(context: Context) -> dict[str, Any]:
    """`model/` with config, weights, tokenizer and chat template; `pointer.json` when the model is a folder already,
    `endpoint.json` when it is somebody else's."""
    from services.models import ModelSpec, materialise
    from training.memory import parameters

    if "api" in context.config:
        (context.out / "endpoint.json").write_text(json.dumps(context.execution["endpoint"]))
        return {"model": context.config["api"]}
    spec = ModelSpec.model_validate(context.config)
    found = materialise(spec, context.out / "model")
    if found != context.out / "model":
        (context.out / "pointer.json").write_text(json.dumps({"path": str(found)}))
    config = json.loads((found / "config.json").read_text())
    return {"parameters": parameters(config), "vocabulary": config.get("vocab_size"), "model": spec.id}


@step("encoder", "1", "services.models")
def encoder(context: Context) -> dict[str, Any]:
    """`pointer.json`: where the encoder is."""
    from services.models import find_encoder

    (context.out / "pointer.json").write_text(json.dumps({"path": str(find_encoder(context.config["id"]))}))
    return {"encoder": context.config["id"]}


def model_folder(artifact: Path) -> Path:
    """The Hugging Face folder of a `model` or `train` artifact."""
    pointer = artifact / "pointer.json"
    return Path(json.loads(pointer.read_text())["path"]) if pointer.exists() else artifact / "model"
