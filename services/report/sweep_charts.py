"""Figures of a sweep: scores over a number that was varied, and parallel coordinates of all arms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.report.figure import Figures, Trace, looks, plain
from services.texts import number

LAWS = "Dotted: power law with its 95% band:"
METRICS = 12
"""Metrics that get a figure over each setting."""
ARMS = 60


def scaling(figures: Figures, curve: Mapping[str, Any], lower: list[str]) -> list[dict[str, Any]]:
    """A figure a metric: a line for each choice of other settings, with a law and its band from four points on."""
    made = []
    for entry in curve["metrics"][:METRICS]:
        data: list[Trace] = []
        fits = []
        for i, line in enumerate(entry["lines"]):
            look, name = looks(i), line["name"] or entry["metric"]
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": plain(name, 40),
                    "x": line["x"],
                    "y": line["y"],
                    "error_y": {"type": "data", "array": [sd or 0 for sd in line["sd"]], "color": look["color"]},
                    "line": {"color": look["color"], "width": 2},
                    "marker": {"color": look["color"], "symbol": look["symbol"], "size": 8},
                    "meta": plain(name, 60),
                    "hovertemplate": "%{meta}<br>%{x:.4g}: %{y:.4g}<extra></extra>",
                }
            )
            if line["law"]:
                fits.append(f"{name}: {said(line['law'])}")
                data = [*band(line["law"], look["color"]), *data]
        if not data:
            continue
        better = "lower" if entry["metric"] in lower else "higher"
        caption = f"{entry['metric']} over {curve['setting']} ({better} is better)."
        if any(sd is not None for line in entry["lines"] for sd in line["sd"]):
            caption += " Bars are one standard deviation over seeds."
        if fits:
            caption += f" {LAWS} " + "; ".join(fits[:6]) + "."
        ticks = curve["ticks"]
        layout = {
            "xaxis": {
                "title": {"text": plain(curve["setting"])},
                "type": "log" if curve["log"] else "linear",
                "tickvals": [t["x"] for t in ticks],
                "ticktext": [plain(t["text"], 12) for t in ticks],
            },
            "yaxis": {"title": {"text": plain(entry["metric"], 30)}},
        }
        made.append(figures.add(caption, caption, data, layout, height=300))
    return made


def band(law: Mapping[str, Any], color: str) -> list[Trace]:
    """A law as a dotted line in its 95% band."""
    quiet: Trace = {"type": "scatter", "mode": "lines", "showlegend": False, "hoverinfo": "skip", "x": law["x"]}
    fill = f"rgba({int(color[1:3], 16)},{int(color[3:5], 16)},{int(color[5:7], 16)},0.15)"
    return [
        {**quiet, "y": law["low"], "line": {"width": 0}},
        {**quiet, "y": law["high"], "line": {"width": 0}, "fill": "tonexty", "fillcolor": fill},
        {**quiet, "y": law["y"], "line": {"color": color, "dash": "dot", "width": 1.5}},
    ]


def said(law: Mapping[str, Any]) -> str:
    """A law in words, with its check."""
    sign = "+" if law["scale"] >= 0 else "−"
    text = f"{number(law['offset'])} {sign} {number(abs(law['scale']))} x^−{number(law['exponent'], 2)}"
    text += f", R² {number(law['r2'], 2)}"
    if check := law["check"]:
        text += f"; left out, the largest amount was {'' if check['inside'] else 'not '}predicted"
    return text


def parallel(figures: Figures, sweep: Mapping[str, Any]) -> dict[str, Any] | None:
    """Each arm as a line over all metrics, each scaled from its worst to its best arm.

    Drawn as ordinary lines: Plotly's own parallel coordinates need WebGL and code that a page without `eval` refuses.
    """
    metrics = [m for m in sweep["metrics"] if sum(m in v["mean"] for v in sweep["variants"]) > 1]
    if len(metrics) < 2:
        return None
    bounds = {}
    for metric in metrics:
        values = [v["mean"][metric] for v in sweep["variants"] if metric in v["mean"]]
        bounds[metric] = (max(values), min(values)) if metric in sweep["lower"] else (min(values), max(values))
    data: list[Trace] = []
    for i, variant in enumerate(sweep["variants"][:ARMS]):
        look = looks(i)
        known = [(n, m, variant["mean"][m]) for n, m in enumerate(metrics) if m in variant["mean"]]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": plain(variant["name"], 40),
                "x": [n for n, _, _ in known],
                "y": [_scaled(value, *bounds[m]) for _, m, value in known],
                "text": [f"{plain(variant['name'], 80)}<br>{plain(m)}: {number(value)}" for _, m, value in known],
                "hovertemplate": "%{text}<extra></extra>",
                "line": {"color": look["color"], "dash": look["dash"], "width": 2},
                "marker": {"color": look["color"], "symbol": look["symbol"], "size": 8},
            }
        )
    caption = "All arms over all metrics: each metric from its worst arm (bottom) to its best (top)."
    layout = {
        "xaxis": {
            "tickvals": list(range(len(metrics))),
            "ticktext": [plain(m, 18) for m in metrics],
            "range": [-0.3, len(metrics) - 0.7],
            "automargin": True,
        },
        "yaxis": {"tickvals": [0, 1], "ticktext": ["worst", "best"], "range": [-0.08, 1.08]},
    }
    return figures.add(caption, caption, data, layout, height=380)


def _scaled(value: float, worst: float, best: float) -> float:
    return 0.5 if best == worst else (value - worst) / (best - worst)
