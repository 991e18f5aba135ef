"""Figures of results: paired differences from base, and scores before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.report.figure import BAD, GOOD, GREY, PALETTE, Figures, Trace, horizontal, names_axis, plain
from services.report.sweep import is_loss
from services.texts import number, signed, signed_between

ROWS = 40
"""Rows of a figure, at most: in a forest plot those with the clearest differences."""

_STANDINGS = (("better", GOOD, "circle"), ("worse", BAD, "x"), ("no difference shown", GREY, "circle-open"))


def unit(metric: str) -> str:
    """What a metric counts; figures of different units do not share an axis."""
    if is_loss(metric):
        return "nats per token" if metric == "loss" else metric
    return metric if metric in ("rating", "grade", "bleu") else "share of items"


def forest(figures: Figures, changes: Sequence[Mapping[str, Any]], several: bool) -> list[dict[str, Any]]:
    """Paired differences from base with their intervals, a figure a unit."""
    made = []
    bounded = [c for c in changes if c["low"] is not None and c["high"] is not None]
    for kind in dict.fromkeys(unit(c["metric"]) for c in bounded):
        listed = [c for c in bounded if unit(c["metric"]) == kind]
        left_out = max(0, len(listed) - ROWS)
        if left_out:
            listed = sorted(listed, key=lambda c: -abs(c["difference"]) / max(c["high"] - c["low"], 1e-12))[:ROWS]
        names = _names(listed, several)
        data = [trace for look in _STANDINGS if (trace := _interval(*look, listed, names))]
        side = "left" if is_loss(listed[0]["metric"]) else "right"
        caption = f"Difference from base in {kind}, item by item, with 95% intervals; {side} of zero is better."
        if left_out:
            caption += f" The {ROWS} clearest; {left_out} more are in the table."
        said = [f"{name}: {_difference(c)}" for name, c in zip(names, listed, strict=True)]
        zero = {"type": "line", "x0": 0, "x1": 0, "yref": "paper", "y0": 0, "y1": 1}
        layout = {
            "yaxis": names_axis(names),
            "xaxis": {"title": {"text": f"difference ({kind})"}, "zeroline": False},
            "shapes": [{**zero, "line": {"color": GREY, "width": 1.5, "dash": "dot"}}],
        }
        alt = f"{caption} {'; '.join(said[:12])}"
        made.append(figures.add(caption, alt, data, layout, height=horizontal(len(listed))))
    return made


def _names(lines: Sequence[Mapping[str, Any]], several: bool) -> list[str]:
    """Task, model and arm; the model only where there is more than one, the arm only in a sweep."""
    points = len({line["point"] for line in lines}) > 1
    return [
        " · ".join([line["task"], *([line["point"]] if points else []), *([line["arm"]] if several else [])])
        for line in lines
    ]


def _difference(change: Mapping[str, Any]) -> str:
    return f"{signed(change['difference'])} ({signed_between(change['low'], change['high'])})"


def _interval(
    word: str, color: str, symbol: str, listed: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> Trace | None:
    """The changes of one standing."""
    plainly = [c["standing"] if c["standing"] in ("better", "worse") else "no difference shown" for c in listed]
    mine = [(i, c) for i, c in enumerate(listed) if plainly[i] == word]
    if not mine:
        return None
    return {
        "type": "scatter",
        "mode": "markers",
        "name": word,
        "x": [c["difference"] for _, c in mine],
        "y": [i for i, _ in mine],
        "error_x": _whiskers([(c["difference"], c["low"], c["high"]) for _, c in mine], color),
        "marker": {"color": color, "symbol": symbol, "size": 10},
        "text": [f"{plain(names[i])}<br>{_difference(c)}" for i, c in mine],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _whiskers(values: Sequence[tuple[float, float | None, float | None]], color: str) -> dict[str, Any]:
    """Asymmetric bars from (middle, low, high); none where there is no interval."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [0 if high is None else high - middle for middle, _, high in values],
        "arrayminus": [0 if low is None else middle - low for middle, low, _ in values],
        "color": color,
        "thickness": 2,
        "width": 4,
    }


def before_after(figures: Figures, lines: Sequence[Mapping[str, Any]], several: bool) -> list[dict[str, Any]]:
    """Scores of base and of the later models with their own intervals, a figure a unit."""
    made = []
    known = [line for line in lines if line["base"] and line["tuned"]]
    for kind in dict.fromkeys(unit(line["metric"]) for line in known):
        mine = [line for line in known if unit(line["metric"]) == kind][:ROWS]
        names = _names(mine, several)
        data = [
            _side(side, color, symbol, shift, mine, names)
            for side, color, symbol, shift in (
                ("base", GREY, "circle-open", -0.14),
                ("tuned", PALETTE[0], "diamond", 0.14),
            )
        ]
        caption = (
            f"Scores before and after in {kind}, each with its own 95% interval. Two intervals that overlap "
            "do not say that there is no difference; the paired differences of the summary do."
        )
        said = [
            f"{name}: {number(line['base']['mean'])} to {number(line['tuned']['mean'])}"
            for name, line in zip(names, mine, strict=True)
        ]
        layout = {"yaxis": names_axis(names), "xaxis": {"title": {"text": kind}, "zeroline": False}}
        made.append(figures.add(caption, "; ".join(said[:12]), data, layout, height=horizontal(len(mine))))
    return made


def _side(
    side: str, color: str, symbol: str, shift: float, lines: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> Trace:
    scores = [(i, line[side]) for i, line in enumerate(lines) if line[side]["mean"] is not None]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": side,
        "x": [s["mean"] for _, s in scores],
        "y": [i + shift for i, _ in scores],
        "error_x": _whiskers([(s["mean"], s["low"], s["high"]) for _, s in scores], color),
        "marker": {"color": color, "symbol": symbol, "size": 9},
        "text": [f"{plain(names[i])}<br>{side}: {number(s['mean'])}" for i, s in scores],
        "hovertemplate": "%{text}<extra></extra>",
    }
