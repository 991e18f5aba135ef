"""Which figures a report has. The page asks for them by the names given here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.report import charts, epoch_charts, pool_charts, score_charts, search_charts, sweep_charts
from services.report.figure import Figures


def draw(
    view: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """All figures for the script, and where they stand: section → figures, pools and targets by their key."""
    figures = Figures()
    several = len(view["manifest"]["arms"]) > 1
    places: dict[str, list[dict[str, Any]]] = {
        "forest": score_charts.forest(figures, view["results"]["changes"], several),
        "mixture": _some(charts.mixture(figures, view["stages"], several)),
        "targets": _some(charts.targets(figures, view["responses"])),
        "loss": charts.losses(figures, view["training"]),
        "rates": charts.rates(figures, view["training"]),
        "epochs": epoch_charts.epochs(figures, view["results"]["scores"]),
        "scores": score_charts.before_after(figures, lines, several),
        "scaling": [],
        "parallel": [],
    }
    for pool in view["pools"]:
        places[pool["key"]] = _pool(figures, pool)
    for response in view["responses"]:
        found = response["logprobs"] or {}
        drawn = [charts.logprobs(figures, response["label"], by, histogram) for by, histogram in found.items()]
        places[response["key"]] = drawn
    if view["sweep"]:
        lower = view["sweep"]["lower"]
        for curve in view["sweep"]["curves"]:
            places["scaling"] += sweep_charts.scaling(figures, curve, lower)
        places["parallel"] = _some(sweep_charts.parallel(figures, view["sweep"]))
    if view["search"]:
        places |= search_charts.draw(figures, view["search"])
    return list(figures.made.values()), places


def _pool(figures: Figures, pool: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = []
    if pool.get("map"):
        found.append(pool_charts.pool_map(figures, pool))
    if pool.get("clusters"):
        found.append(pool_charts.cluster_shares(figures, pool))
    if pool["choice"]:
        found.append(pool_charts.choice_of_k(figures, pool["label"], pool["choice"]))
    if pool["rounds"]:
        found.append(pool_charts.round_weights(figures, pool))
    return found


def _some(figure: dict[str, Any] | None) -> list[dict[str, Any]]:
    return [figure] if figure else []
