"""`cuvee evaluate`: tasks on one model, whoever made it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cuvee.errors import UserError, nearest
from services import single_files as files
from services.single import MODEL, Session, builder, checked, model_spec
from services.single_respond import models_of, with_model


@dataclass(frozen=True)
class EvaluateRequest:
    """What the command asks for. `tasks`: names of tasks or suites; `judge` is for judged chat."""

    model: str
    tasks: Sequence[str]
    out: Path
    limit: int | None = None
    shots: int | None = None
    judge: Any = None
    template: str | None = None
    chat: bool | None = None
    max_new_tokens: int | None = None
    data: Mapping[str, str] = field(default_factory=dict)


def evaluate(session: Session, request: EvaluateRequest) -> dict[str, Any]:
    """Write `items.parquet` (a row a metric of an item) and `summary.json` (task to figures); returns the summary."""
    import pyarrow.parquet as pq

    from evaluation.items import concat

    made = builder(recipe_of(request), session.store)
    measures = made.build().measures
    checked(made)
    session.run([measure.node for measure in measures])
    folders = [session.folder(measure.node) for measure in measures]
    tasks: dict[str, Any] = {}
    for folder in folders:
        tasks |= json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    summary = {"model": request.model, "limit": request.limit, "shots": request.shots, "tasks": tasks}
    with files.whole(request.out / "items.parquet") as partial:
        pq.write_table(concat(pq.read_table(f / "items.parquet") for f in folders), partial, compression="zstd")
    with files.whole(request.out / "summary.json") as partial:
        partial.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return summary


def recipe_of(request: EvaluateRequest) -> dict[str, Any]:
    """The recipe that the command stands for."""
    from evaluation import suites, tasks

    names = suites.expand([name for name in request.tasks if name])
    if not names:
        raise UserError("no task is named", remedy="--tasks arc_easy,gsm8k, or --tasks list to see all")
    chat = [name for name in names if tasks.get(name).kind == "chat"]
    measured: dict[str, Any] = {"tasks": [name for name in names if name not in chat], "at": ["base"]}
    models = {MODEL: model_spec(request.model, request.template)}
    if request.limit:
        measured["limit"] = request.limit
    said = {"chat": request.chat, "max_new_tokens": request.max_new_tokens}
    options: dict[str, dict[str, Any]] = {
        suites.plain(name): {k: v for k, v in said.items() if v is not None} for name in names
    }
    if request.shots is not None:
        for name in measured["tasks"]:
            options[suites.plain(name)]["shots"] = request.shots
    for name, at in request.data.items():
        if suites.plain(name) not in options:
            raise UserError(f"--data names {name}, which is not asked", remedy=nearest(name, options))
        options[suites.plain(name)]["data"] = at
    measured["options"] = {name: one for name, one in options.items() if one}
    if chat:
        if request.judge is None:
            raise UserError(f"{chat[0]} needs `judge`, a model that grades", remedy=f"--judge '{RATING}'")
        judge = with_model(request.judge)
        models |= models_of(judge)
        measured["judged"] = {name: {"judge": judge} for name in chat}
    return {"name": "evaluate", "models": models, "train": {"model": MODEL}, "evaluate": measured}


RATING = "{rating: {model: hub:org/name}}"
"""A judge of open answers, as the command line takes it."""
