"""`cuvee noise`: one arm of a recipe over seeds, and what each stream of seeds does to its scores.

The noise of a recipe is a recipe: the arm's own, with `repeat: {apart: true}`. So its run is like any other, its first
arm is the arm itself (whose steps are reused), and its report, lineage and MLflow runs come by themselves.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cuvee.errors import UserError, nearest
from services.evaluations import summary_of
from services.variants import STREAMS

if TYPE_CHECKING:
    from services.plan import ArmPlan, Plan
    from services.recipe import Recipe
    from services.store import Store


def noise_recipe(recipe: Recipe, *, arm: str | None, seeds: int, vary: Sequence[str]) -> Recipe:
    """The recipe of the noise of an arm: its first one (the base arm) if none is named.

    Seeds count on from the recipe's own. Raises UserError for names that are not there.
    """
    from services.arms import expand
    from services.recipe import parse
    from services.yaml_lines import Document

    if seeds < 2:
        raise UserError(f"{seeds} seed shows no noise", remedy="--seeds 3")
    for stream in vary:
        if stream not in STREAMS:
            raise UserError(f"no stream of seeds is named {stream!r}", remedy=nearest(stream, STREAMS))
    documents = {one.variant: one.document for one in expand(recipe)}
    if arm is not None and arm not in documents:
        raise UserError(f"the recipe has no arm {arm!r}", remedy=nearest(arm, documents))
    source = documents[arm or next(iter(documents))].source
    tree = copy.deepcopy(source.tree)
    tree["name"] = f"{recipe.name}-noise"
    listed = [recipe.seed + i for i in range(seeds)]
    tree["repeat"] = {"seeds": listed, "vary": list(dict.fromkeys(vary)), "apart": True}
    return parse(Document(tree, source.places))


def measured(plan: Plan, store: Store) -> list[dict[str, Any]]:
    """The noise of each variant that was repeated, task by task at its last point: `evaluation.statistics.Noise`."""
    if plan.recipe.repeat is None:
        return []
    groups: dict[str, list[ArmPlan]] = {}
    for arm in plan.arms:
        groups.setdefault(arm.arm.variant, []).append(arm)
    return [
        record
        for variant, arms in groups.items()
        for record in (_apart if plan.recipe.repeat.apart else _together)(variant, arms, store)
    ]


def _apart(variant: str, arms: Sequence[ArmPlan], store: Store) -> Iterator[dict[str, Any]]:
    first, rest = arms[0], arms[1:]
    base = _scores(first, store)
    for (task, metric), (score, key) in base.items():
        series: dict[str, list[float]] = {}
        still: dict[str, bool] = {}
        for arm in rest:
            stream = arm.arm.varies[0]
            if found := _scores(arm, store).get((task, metric)):
                series.setdefault(stream, [score]).append(found[0])
                # The same artifact: no seed of the stream enters anything on the way to this score.
                still[stream] = still.get(stream, True) and found[1] == key
        moving = {stream: values for stream, values in series.items() if not still[stream]}
        yield from _record(variant, task, metric, moving, [s for s in series if still[s]])


def _together(variant: str, arms: Sequence[ArmPlan], store: Store) -> Iterator[dict[str, Any]]:
    scores = [_scores(arm, store) for arm in arms]
    for task, metric in scores[0]:
        found = [score[task, metric] for score in scores if (task, metric) in score]
        if len(found) > 1 and len({key for _, key in found}) > 1:
            yield from _record(variant, task, metric, {"+".join(arms[0].arm.varies): [v for v, _ in found]}, [])


def _record(
    variant: str, task: str, metric: str, series: Mapping[str, Sequence[float]], still: Sequence[str]
) -> Iterator[dict[str, Any]]:
    from evaluation.statistics import noise

    if series or still:
        found = noise(series, still=still)
        parts = [part.__dict__ for part in found.parts]
        yield {"variant": variant, "task": task, "metric": metric, **found.__dict__, "parts": parts}


def _scores(arm: ArmPlan, store: Store) -> dict[tuple[str, str], tuple[float, str]]:
    """(task, main metric) → (mean, artifact) at the arm's last point; a task without a score is left out."""
    point = arm.last_point
    return {
        (task, figures["metric"]): (float(figures["mean"]), measure.node.key)
        for measure in arm.measures
        if measure.point == point
        for task, figures in summary_of(measure, store).items()
        if figures["mean"] is not None
    }
