"""`cuvee compose` and `cuvee train`: parts of a recipe's plan, made and copied to a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.errors import UserError, nearest
from services import single_files as files
from services.single import Session
from services.steps.model import model_folder

if TYPE_CHECKING:
    from services.broker import Observer
    from services.plan import ArmPlan, Plan


@dataclass(frozen=True)
class Part:
    """A stage of an arm and where its files go: `folder` is the arm's."""

    arm: ArmPlan
    stage: str
    folder: Path


def parts(plan: Plan, out: Path, arm: str | None = None, stage: str | None = None) -> list[Part]:
    """The stages of a plan's arms; of one arm alone when it is named or the only one, then without its folder.

    Raises UserError for names that are not there, and for data or models that cannot be reached.
    """
    if plan.missing:
        raise plan.missing[0]
    names = [one.arm.name for one in plan.arms]
    if arm is not None and arm not in names:
        raise UserError(f"the recipe has no arm {arm!r}", remedy=nearest(arm, names))
    arms = [one for one in plan.arms if arm in (None, one.arm.name)]
    folders = files.folder_names(one.arm.name for one in arms)
    stages = list(dict.fromkeys(name for one in arms for name in one.stages))
    if not stages:
        raise UserError("the recipe has no stages", remedy="write `stages`")
    if stage is not None and stage not in stages:
        raise UserError(f"the recipe has no stage {stage!r}", remedy=nearest(stage, stages))
    return [
        Part(one, name, out / folders[one.arm.name] if len(arms) > 1 else out)
        for one in arms
        for name in one.stages
        if stage in (None, name)
    ]


def compose(session: Session, wanted: Sequence[Part], *observers: Observer) -> list[dict[str, Any]]:
    """Write `<stage>.parquet` (stage, epoch, position, id, target, source, tokens) and `<stage>.realised.json`."""
    session.run([part.arm.stages[part.stage].compose for part in wanted], *observers)
    found = []
    for part in wanted:
        node = part.arm.stages[part.stage].compose
        path = part.folder / f"{part.stage}.parquet"
        files.copy_file(session.folder(node) / f"{part.stage}.parquet", path)
        files.copy_file(session.folder(node) / "realised.json", part.folder / f"{part.stage}.realised.json")
        info = session.info(node)
        found.append(_named(part, path) | {"rows": info["rows"], "tokens": info["tokens"], "key": node.key})
    return found


def train(session: Session, wanted: Sequence[Part], *observers: Observer) -> list[dict[str, Any]]:
    """Train, and write `<stage>/` (a Hugging Face folder) and `<stage>.metrics.jsonl` (one object a step)."""
    session.run([part.arm.stages[part.stage].train for part in wanted], *observers)
    found = []
    for part in wanted:
        node = part.arm.stages[part.stage].train
        path = part.folder / part.stage
        files.copy_model(model_folder(session.folder(node)), path)
        files.copy_file(session.folder(node) / "metrics.jsonl", part.folder / f"{part.stage}.metrics.jsonl")
        found.append(_named(part, path) | {"final_loss": session.info(node).get("final_loss"), "key": node.key})
    return found


def _named(part: Part, path: Path) -> dict[str, Any]:
    return {"arm": part.arm.arm.name, "stage": part.stage, "path": str(path)}


def plan_of_run(name: str, session: Session) -> Plan:
    """The plan of a stored run, from the recipe that it kept. Raises UserError when its data is not the same now."""
    from services.arms import expand
    from services.plan import make_plan
    from services.recipe import parse
    from services.yaml_lines import Document

    manifest = session.store.runs()[name]
    recipe = parse(Document(json.loads(json.dumps(manifest["recipe"]))))
    plan = make_plan(recipe, expand(recipe), session.store)
    known = set(manifest["keys"])
    for arm in plan.arms:
        for stage, made in arm.stages.items():
            if made.compose.key not in known:
                raise UserError(
                    f"stage {stage} of the run {name} cannot be traced: its data, model or code is not the same now",
                    remedy="give the recipe instead; what has changed is made again",
                )
    return plan
