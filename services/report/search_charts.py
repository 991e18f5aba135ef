"""Figures of a search: the front, scores by settings, losses on the way, and settings side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.report.figure import GREY, PALETTE, Figures, Trace, looks, plain
from services.report.sweep_charts import ARMS, LAWS, band, said
from services.texts import number

FIGURES = 12
_STATUS = {"finished": (PALETTE[0], "circle"), "stopped": (PALETTE[1], "x"), "failed": (PALETTE[4], "triangle-down")}


def draw(figures: Figures, search: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The figures by their place."""
    places: dict[str, list[dict[str, Any] | None]] = {
        "search_front": _front(figures, search) if len(search["metrics"]) > 1 else _progress(figures, search),
        "search_losses": _losses(figures, search),
        "search_curves": [figure for curve in search["curves"][:FIGURES] for figure in [_curve(figures, curve)]],
        "search_parallel": _parallel(figures, search),
    }
    return {name: [figure for figure in found if figure] for name, found in places.items()}


def _better(search: Mapping[str, Any], metric: str) -> str:
    return f"{plain(metric)} ({'less' if metric in search['lower'] else 'more'} is better)"


def _finished(search: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [a for a in search["arms"] if all(m in a["scores"] for m in search["metrics"])]


def _hover(arm: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{k}={v}" for k, v in arm["values"].items())
    scores = ", ".join(f"{k} {number(v)}" for k, v in arm["scores"].items())
    return "<br>".join(plain(text, 120) for text in (arm["name"], settings, scores or arm["said"]))


def _front(figures: Figures, search: Mapping[str, Any]) -> list[dict[str, Any] | None]:
    """A figure for each pair of the first metric with another: all arms, and the front as a stair."""
    first, arms = search["metrics"][0], _finished(search)
    made: list[dict[str, Any] | None] = []
    for other in search["metrics"][1:]:
        if not arms:
            continue
        data: list[Trace] = []
        for on, name, color, symbol in ((True, "front", PALETTE[0], "diamond"), (False, "beaten", GREY, "circle-open")):
            mine = sorted((a for a in arms if a["front"] is on), key=lambda a: a["scores"][first])
            if not mine:
                continue
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers" if on else "markers",
                    "name": name,
                    "x": [a["scores"][first] for a in mine],
                    "y": [a["scores"][other] for a in mine],
                    "line": {"color": color, "dash": "dot", "width": 1.5},
                    "marker": {"color": color, "symbol": symbol, "size": 10},
                    "text": [_hover(a) for a in mine],
                    "hovertemplate": "%{text}<extra></extra>",
                }
            )
        caption = f"Pareto front on validation rows: no other arm beats those on it in {first} and {other} at once."
        listed = "; ".join(
            f"{a['name']} {number(a['scores'][first])}, {number(a['scores'][other])}" for a in arms if a["front"]
        )
        layout = {
            "xaxis": {"title": {"text": _better(search, first)}, "zeroline": False},
            "yaxis": {"title": {"text": _better(search, other)}, "zeroline": False},
        }
        made.append(figures.add(caption, f"{caption} On it: {listed}", data, layout, height=380))
    return made


def _progress(figures: Figures, search: Mapping[str, Any]) -> list[dict[str, Any] | None]:
    """One metric: the scores in the order tried, and the best so far."""
    metric, arms = search["metrics"][0], _finished(search)
    if not arms:
        return []
    best: list[float] = []
    pick = min if metric in search["lower"] else max
    for arm in arms:
        best.append(pick([*best[-1:], arm["scores"][metric]]))
    xs = [arm["number"] for arm in arms]
    data: list[Trace] = [
        {"type": "scatter", "mode": "lines", "name": "best so far", "x": xs, "y": best, "hoverinfo": "skip",
         "line": {"color": PALETTE[2], "shape": "hv", "width": 2}},
        {"type": "scatter", "mode": "markers", "name": "arm", "x": xs, "y": [a["scores"][metric] for a in arms],
         "marker": {"color": PALETTE[0], "symbol": "circle", "size": 9}, "text": [_hover(a) for a in arms],
         "hovertemplate": "%{text}<extra></extra>"},
    ]  # fmt: skip
    caption = f"{metric} of finished arms in the order tried, on validation rows, and the best so far."
    layout = {"xaxis": {"title": {"text": "arm"}}, "yaxis": {"title": {"text": _better(search, metric)}}}
    return [figures.add(caption, caption, data, layout)]


def _losses(figures: Figures, search: Mapping[str, Any]) -> list[dict[str, Any] | None]:
    """The signal of every arm over optimiser steps, as the scheduler saw it."""
    arms = [a for a in search["arms"] if a["reports"]][:ARMS]
    if not arms:
        return []
    data: list[Trace] = []
    shown: set[str] = set()
    for arm in arms:
        status = arm["status"] if arm["status"] in _STATUS else "failed"
        color, symbol = _STATUS[status]
        xs, ys = [r[0] for r in arm["reports"]], [r[1] for r in arm["reports"]]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": status,
                "legendgroup": status,
                "showlegend": status not in shown,
                "x": xs,
                "y": ys,
                "line": {"color": color, "width": 1.5, "dash": "solid" if status == "finished" else "dash"},
                "marker": {"color": color, "symbol": symbol, "size": [5] * (len(xs) - 1) + [10]},
                "text": [_hover(arm)] * len(xs),
                "hovertemplate": "%{text}<br>step %{x}: %{y:.4g}<extra></extra>",
            }
        )
        shown.add(status)
    caption = (
        f"{search['signal']} on the way, by optimiser step of the last stage; a cross is where ASHA stopped an arm."
    )
    layout = {
        "xaxis": {"title": {"text": "optimiser step"}},
        "yaxis": {"title": {"text": plain(search["signal"])}},
    }
    said_ = "; ".join(f"{a['name']}: {a['said']}" for a in arms[:12])
    return [figures.add(caption, f"{caption} {said_}", data, layout)]


def _curve(figures: Figures, curve: Mapping[str, Any]) -> dict[str, Any]:
    """A metric over a setting, an arm a point."""
    data: list[Trace] = band(curve["law"], PALETTE[0]) if curve["law"] else []
    data.append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": "arm",
            "showlegend": False,
            "x": curve["x"],
            "y": curve["y"],
            "text": [plain(name) for name in curve["names"]],
            "marker": {"color": PALETTE[0], "size": 9},
            "hovertemplate": "%{text}<br>%{x:.4g}: %{y:.4g}<extra></extra>",
        }
    )
    caption = f"{curve['metric']} over {curve['setting']}, all other settings varying too."
    if curve["law"]:
        caption += f" {LAWS} {said(curve['law'])}."
    layout = {
        "xaxis": {"title": {"text": plain(curve["setting"], 40)}, "type": "log" if curve["log"] else "linear"},
        "yaxis": {"title": {"text": plain(curve["metric"], 30)}},
    }
    return figures.add(caption, caption, data, layout, height=300)


def _parallel(figures: Figures, search: Mapping[str, Any]) -> list[dict[str, Any] | None]:
    """Each arm as a line over its settings and scores; numbers from their least to their most, words by their order."""
    axes = [*search["settings"], *search["metrics"]]
    arms = _finished(search)[:ARMS]
    if len(arms) < 2:
        return []
    columns = {axis: [arm["values"].get(axis, arm["scores"].get(axis)) for arm in arms] for axis in axes}
    places = {axis: _places(values) for axis, values in columns.items()}
    data: list[Trace] = []
    for i, arm in enumerate(arms):
        look = looks(i)
        final = arm["name"] in search["finalists"]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": plain(arm["name"]),
                "showlegend": final,
                "x": list(range(len(axes))),
                "y": [places[axis][i] for axis in axes],
                "text": [f"{plain(arm['name'])}<br>{plain(axis)}: {plain(_text(columns[axis][i]))}" for axis in axes],
                "hovertemplate": "%{text}<extra></extra>",
                "line": {"color": look["color"] if final else GREY, "width": 3 if final else 1},
                "marker": {
                    "color": look["color"] if final else GREY,
                    "symbol": look["symbol"],
                    "size": 9 if final else 5,
                },
            }
        )
    caption = (
        "Settings and scores of all finished arms; each axis from its least (bottom) to its most. Finalists in colour."
    )
    layout = {
        "xaxis": {
            "tickvals": list(range(len(axes))),
            "ticktext": [plain(axis, 18) for axis in axes],
            "range": [-0.3, len(axes) - 0.7],
            "automargin": True,
        },
        "yaxis": {"tickvals": [0, 1], "ticktext": ["least", "most"], "range": [-0.08, 1.08]},
    }
    return [figures.add(caption, caption, data, layout, height=380)]


def _places(values: Sequence[Any]) -> list[float]:
    from services.sweep.learn import number as number_of

    numbers = [number_of(value) for value in values]
    if any(n is None for n in numbers):
        order = sorted({str(v) for v in values})
        numbers = [float(order.index(str(v))) for v in values]
    known = [float(n or 0.0) for n in numbers]
    low, high = min(known), max(known)
    return [0.5 if high == low else (n - low) / (high - low) for n in known]


def _text(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)
