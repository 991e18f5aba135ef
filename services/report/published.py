"""The paper's figures beside ours.

A row of `published` names arms as a side of a contrast does; ours is the mean over the arms that it names (seeds).
Papers print shares in percent and ratings as they are: where the paper's figure is above 1 and ours is a share of
items, ours is shown in percent too. Nothing else is rescaled, and nothing is compared by a test: models, pools and
sizes differ, which the report says beside the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.arms import label
from services.report.artifacts import Artifacts
from services.report.sweep import final_metrics, is_loss

_SHARES = {"respond.own": "model_share", "respond.paraphrase": "paraphrase_share", "respond.gold": "gold_share"}


def published(artifacts: Artifacts, manifest: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Source, note, a line for each figure, and the lines as a table of arms by metrics; None if there are none."""
    block = manifest["recipe"].get("published")
    if not block:
        return None
    lines = []
    for row in block.get("rows") or []:
        arms = matching(row["arm"], manifest["arms"])
        for metric, value in row["scores"].items():
            values = [v for arm in arms if (v := ours(artifacts, arm, metric, results)) is not None]
            mean = sum(values) / len(values) if values else None
            if mean is not None and is_share(metric, results) and abs(value) > 1:
                mean *= 100
            lines.append(
                {
                    "arm": ", ".join(f"{k}={label(v)}" for k, v in row["arm"].items()),
                    "metric": metric,
                    "paper": value,
                    "ours": mean,
                    "runs": len(values),
                }
            )
    facts = {"models": _models(artifacts), "profiles": manifest["profiles"], "overrides": manifest["overrides"]}
    metrics = list(dict.fromkeys(line["metric"] for line in lines))
    by_arm: dict[str, dict[str, Any]] = {}
    for line in lines:
        by_arm.setdefault(line["arm"], {})[line["metric"]] = line
    table = [{"arm": arm, "cells": [cells.get(metric) for metric in metrics]} for arm, cells in by_arm.items()]
    shape = {"metrics": metrics, "table": table, "measured": sum(line["runs"] > 0 for line in lines)}
    return {"source": block["source"], "note": block.get("note", ""), "rows": lines, **shape, **facts}


def matching(side: Mapping[str, Any], arms: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The arms that set all keys of the side to its values; a key may be its last part alone."""
    return [arm for arm in arms if all(_setting(arm["settings"], k) == label(v) for k, v in side.items())]


def _setting(settings: Mapping[str, str], key: str) -> str | None:
    if key in settings:
        return settings[key]
    ending = [name for name in settings if name.endswith(f".{key}")]
    return settings[ending[0]] if len(ending) == 1 else None


def ours(artifacts: Artifacts, arm: Mapping[str, Any], metric: str, results: Mapping[str, Any]) -> float | None:
    """The metric of one arm: a task, `retention.drop`, a suite's mean if all its tasks are there, or target shares."""
    from evaluation import suites

    if metric in _SHARES:
        return _share(artifacts, arm, _SHARES[metric])
    found = final_metrics(arm, results)
    name = metric.removeprefix("tasks.")
    if name in suites.SUITES:
        weights = suites.weights(name)
        known = weights.keys() <= found.keys()
        return sum(weight * found[task] for task, weight in weights.items()) if known else None
    return found.get(name, found.get(suites.plain(name)))


def _share(artifacts: Artifacts, arm: Mapping[str, Any], column: str) -> float | None:
    keys = [key for table in arm["tables"].values() for key in (*table["steps"], table["rows"])]
    for key in keys:
        if key.startswith("respond-"):
            for line in artifacts.info(key).get("composition", []):
                if line["source"] == "all":
                    return float(line[column])
    return None


def is_share(metric: str, results: Mapping[str, Any]) -> bool:
    """Whether ours counts from 0 to 1 what papers print in percent: no loss, and no value above 1."""
    if metric in _SHARES or metric == "retention.drop":
        return True
    name = metric.removeprefix("tasks.")
    mine = [s for s in results["scores"] if s["task"] == name]
    return all(not is_loss(s["metric"]) and (s["mean"] is None or 0 <= s["mean"] <= 1) for s in mine)


def _models(artifacts: Artifacts) -> list[dict[str, Any]]:
    """The models of this run, with their size."""
    keys = [key for key, node in artifacts.nodes.items() if node["step"] == "model" and key in artifacts.finished]
    return [{"model": artifacts.info(k).get("model"), "parameters": artifacts.info(k).get("parameters")} for k in keys]
