"""A search as a report shows it: every arm that was tried, the front, the winner, and what to try next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.sweep import learn


def search(manifest: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any] | None:
    """The stored search with what can be learnt from it; None for a run that is none."""
    found = manifest.get("search")
    if not found:
        return None
    arms = [{**arm, "front": arm["name"] in found["front"]} for arm in found["arms"]]
    settings = list(dict.fromkeys(key for arm in arms for key in arm["values"]))
    proposed = None
    if learn.finished(found):
        proposed = learn.next_arms(found, learn.space_of(manifest["recipe"]), int(manifest["recipe"].get("seed", 0)))
    return {
        **found,
        "arms": arms,
        "settings": settings,
        "curves": list(_curves(found, settings)),
        "next": proposed,
        "test": _test(found, results),
    }


def _curves(found: Mapping[str, Any], settings: list[str]) -> Any:
    """Each metric over each setting that is a number, with a law where amounts were varied."""
    arms = learn.finished(found)
    for setting in settings:
        placed = [(learn.number(arm["values"].get(setting)), arm) for arm in arms]
        known = sorted(((x, arm) for x, arm in placed if x is not None), key=lambda pair: pair[0])
        if len({x for x, _ in known}) < 3:
            continue
        xs = [x for x, _ in known]
        for metric in found["metrics"]:
            ys = [arm["scores"][metric] for _, arm in known]
            law = learn.law(xs, ys, metric, setting)
            yield {
                "setting": setting,
                "metric": metric,
                "x": xs,
                "y": ys,
                "names": [arm["name"] for _, arm in known],
                "log": min(xs) > 0 and max(xs) / min(xs) >= 8,
                # All settings vary at once, so that a law over one of them is worth a line only if it explains most.
                "law": learn.plainly(law) if law and law["r2"] >= 0.5 else None,
            }


def _test(found: Mapping[str, Any], results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The winner's scores on test rows, seed by seed."""
    if not found["winner"]:
        return []
    name = found["winner"]["arm"]
    mine = [s for s in results["scores"] if s["arm"] == name or s["arm"].startswith(f"{name},seed=")]
    return [score for score in mine if score["point"] != "base"]
