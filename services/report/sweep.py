"""Several arms side by side: what each sets, what came of it, and how scores follow a number that was varied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from services.sweep import learn

NOTHING: Mapping[str, list[Any]] = {
    name: [] for name in ("scores", "changes", "retention", "contamination", "contrasts", "noise")
}
RETENTION = "retention.drop"


def sweep(arms: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> dict[str, Any] | None:
    """The table of arms (seeds averaged), and curves over numeric settings; None for a single arm."""
    if len(arms) < 2:
        return None
    single = [{**_identity(arm), "metrics": final_metrics(arm, results)} for arm in arms]
    names = list(dict.fromkeys(name for arm in single for name in arm["metrics"]))
    variants = [_variant(name, [a for a in single if a["variant"] == name], names) for name in _unique(single)]
    lower = [name for name in names if lower_is_better(name, results)]
    return {"metrics": names, "lower": lower, "variants": variants, "curves": curves(variants, names)}


def _identity(arm: Mapping[str, Any]) -> dict[str, Any]:
    name, seed = str(arm["name"]), arm["seed"]
    return {"variant": name.removesuffix(f",seed={seed}"), "seed": seed, "settings": dict(arm["settings"])}


def _unique(arms: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(arm["variant"] for arm in arms))


def final_point(arm: Mapping[str, Any]) -> str:
    """The label of the last model that was measured."""
    return next(reversed(arm["points"]), "base") if arm["points"] else "base"


def final_metrics(arm: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, float]:
    """Task → score of the last model, and the mean drop over the retention suite."""
    point = final_point(arm)
    mine = [s for s in results["scores"] if s["arm"] == arm["name"] and s["point"] == point]
    found = {s["task"]: float(s["mean"]) for s in mine if s["mean"] is not None}
    for drop in results["retention"]:
        if drop["arm"] == arm["name"] and drop["point"] == point and drop["drop"] is not None:
            found[RETENTION] = float(drop["drop"])
    return found


def lower_is_better(name: str, results: Mapping[str, Any]) -> bool:
    """Whether less is better: losses, and what was forgotten."""
    if name == RETENTION:
        return True
    return any(s["task"] == name and is_loss(s["metric"]) for s in results["scores"])


def is_loss(metric: str) -> bool:
    """Losses and error rates; all other metrics of ours are better the higher they are."""
    return metric.split(",")[0] in ("loss", "ter", "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")


def _variant(name: str, arms: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Mean over seeds, and the standard deviation where there are several."""
    values = {metric: [a["metrics"][metric] for a in arms if metric in a["metrics"]] for metric in names}
    return {
        "name": name,
        "settings": arms[0]["settings"],
        "seeds": [arm["seed"] for arm in arms],
        "mean": {m: float(np.mean(v)) for m, v in values.items() if v},
        "sd": {m: float(np.std(v, ddof=1)) for m, v in values.items() if len(v) > 1},
        "values": {m: v for m, v in values.items() if v},
    }


def curves(variants: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """For each setting with three numbers or more: each metric over it, a line for each choice of the others."""
    found = []
    for key in dict.fromkeys(key for v in variants for key in v["settings"]):
        placed = [(learn.number(v["settings"][key]), v) for v in variants if key in v["settings"]]
        known = [(x, v) for x, v in placed if x is not None]
        if len({x for x, _ in known}) < 3:
            continue
        lines: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
        for x, variant in sorted(known, key=lambda pair: pair[0]):
            others = ", ".join(f"{k}={v}" for k, v in variant["settings"].items() if k not in (key, "arm"))
            lines.setdefault(others, []).append((x, variant))
        ticks = {x: v["settings"][key] for x, v in known}
        found.append(
            {
                "setting": key,
                "log": min(ticks) > 0 and max(ticks) / min(ticks) >= 8,
                "ticks": [{"x": x, "text": ticks[x]} for x in sorted(ticks)],
                "metrics": [
                    {"metric": metric, "lines": [m for o, line in lines.items() if (m := _line(o, line, metric))]}
                    for metric in names
                ],
            }
        )
    return found


def _line(name: str, line: Sequence[tuple[float, Mapping[str, Any]]], metric: str) -> dict[str, Any] | None:
    points = [(x, v["mean"][metric], v["sd"].get(metric)) for x, v in line if metric in v["mean"]]
    if not points:
        return None
    return {
        "name": name,
        "x": [p[0] for p in points],
        "y": [p[1] for p in points],
        "sd": [p[2] for p in points],
        "law": learn.plainly(found)
        if (found := learn.law([p[0] for p in points], [p[1] for p in points], metric))
        else None,
    }


def points_of(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str, str, list[float], list[float]]]:
    """(setting, metric, choice of other settings, x, y) of every number that was varied in a stored run.

    The arms of a search count as one line each, since all of its settings vary together.
    """
    if search := manifest.get("search"):
        arms = learn.finished(search)
        for setting in dict.fromkeys(key for arm in arms for key in arm["values"]):
            placed = [(learn.number(arm["values"].get(setting)), arm) for arm in arms]
            known = [(x, arm) for x, arm in placed if x is not None]
            for metric in search["metrics"]:
                yield setting, metric, "", [x for x, _ in known], [arm["scores"][metric] for _, arm in known]
        return
    table = sweep(manifest["arms"], {**NOTHING, **(manifest.get("results") or {})})
    for curve in table["curves"] if table else ():
        for entry in curve["metrics"]:
            for line in entry["lines"]:
                yield curve["setting"], entry["metric"], line["name"], line["x"], line["y"]
