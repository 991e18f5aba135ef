"""Figures of a selection: the map of its pool, shares of clusters, the choice of k, weights by round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.report.figure import (
    GREY,
    PALETTE,
    Figures,
    Trace,
    bars,
    horizontal,
    looks,
    names_axis,
    plain,
    wrapped,
)
from services.texts import number, percent

COLOURED = 9
"""Clusters that are told apart by colour; with more, colours would repeat."""
SHOWN = 30
"""Clusters in the bar chart and the lines of rounds."""


def pool_map(figures: Figures, pool: Mapping[str, Any]) -> dict[str, Any]:
    """Every sampled row as a point; chosen ones are filled diamonds. Clusters have colours where they are few."""
    points = pool["map"]
    indices = range(len(points["x"]))
    clusters = sorted({c for c in points["cluster"] if c is not None})
    coloured = 0 < len(clusters) <= COLOURED
    words = {c["cluster"]: c["keywords"] for c in pool.get("clusters", [])}
    data: list[Trace] = []
    for selected in (False, True):
        groups: list[tuple[str, str, list[int]]] = []
        mine = [i for i in indices if points["selected"][i] == selected]
        if coloured:
            for n, cluster in enumerate(clusters):
                said = ", ".join(words.get(cluster, [])[:2])
                members = [i for i in mine if points["cluster"][i] == cluster]
                groups.append((f"{cluster}: {said}" if said else str(cluster), PALETTE[n], members))
        else:
            groups.append(("chosen" if selected else "not chosen", PALETTE[0] if selected else GREY, mine))
        for name, color, members in groups:
            if members:
                data.append(_points(name, color, members, points, selected, legend=not coloured))
    if coloured:
        # The shape says what was chosen, the colour which cluster: one entry for each of these, and no product of them.
        data += [_key(f"{c}: {', '.join(words.get(c, [])[:2])}", PALETTE[n], "circle") for n, c in enumerate(clusters)]
        data += [_key("chosen", GREY, "diamond"), _key("not chosen", GREY, "circle-open")]
    chosen = sum(points["selected"])
    caption = (
        f"{len(points['x']):,} of {pool['pool']:,} rows of the pool on their first two principal components "
        f"({percent(points['variance'])} of the variance); the {chosen:,} chosen ones are filled diamonds."
    )
    if len(points["x"]) < pool["pool"]:
        caption += " Chosen rows are sampled apart, so their share here is not their share in the pool."
    axis = {"showticklabels": False, "zeroline": False}
    layout = {"xaxis": axis, "yaxis": axis, "dragmode": "pan", "margin": {"l": 5, "b": 5}}
    return figures.add(caption, f"Map of the pool of {pool['label']}. {caption}", data, layout, height=460)


def _points(
    name: str, color: str, members: Sequence[int], points: Mapping[str, Any], selected: bool, *, legend: bool
) -> Trace:
    texts = []
    for i in members:
        facts = [f"cluster {points['cluster'][i]}"] if points["cluster"][i] is not None else []
        facts += [f"quality {number(points['quality'][i])}"] if points["quality"][i] is not None else []
        facts += ["chosen"] if selected else []
        texts.append("<br>".join([wrapped(points["text"][i]), f"<i>{', '.join(facts)}</i>"]))
    symbol = "diamond" if selected else "circle-open"
    return {
        "type": "scatter",
        "mode": "markers",
        "name": plain(name, 40),
        "showlegend": legend,
        "x": [points["x"][i] for i in members],
        "y": [points["y"][i] for i in members],
        "text": texts,
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "color": color,
            "symbol": symbol,
            "size": 9 if selected else 5,
            "opacity": 0.95 if selected else 0.6,
        },
    }


def _key(name: str, color: str, symbol: str) -> Trace:
    """An entry of the legend without points."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": plain(name.removesuffix(": "), 34),
        "x": [None],
        "y": [None],
        "marker": {"color": color, "symbol": symbol, "size": 9},
        "hoverinfo": "skip",
    }


def cluster_shares(figures: Figures, pool: Mapping[str, Any]) -> dict[str, Any]:
    """Share of each cluster in the pool and in what was chosen."""
    lines = pool["clusters"][:SHOWN]
    names = [f"{c['cluster']}: {', '.join(c['keywords'][:2])}" for c in lines]
    data = [
        bars("of the pool", [c["share"] for c in lines], names, GREY, "", "%{x:.1%}"),
        bars("of the chosen", [c["chosen_share"] for c in lines], names, PALETTE[0], "/", "%{x:.1%}"),
    ]
    count, reached = pool["cluster_count"], pool["reached"]
    first = f"The {SHOWN} largest of {count} clusters" if count > SHOWN else "Clusters"
    caption = f"{first}: share of the pool and of the chosen rows. {reached} of {count} clusters have a chosen row."
    layout = {"barmode": "group", "yaxis": names_axis(names), "xaxis": {"tickformat": ".0%", "rangemode": "tozero"}}
    return figures.add(caption, caption, data, layout, height=110 + 34 * len(lines))


def choice_of_k(figures: Figures, label: str, choice: Mapping[str, Any]) -> dict[str, Any]:
    """Silhouette and inertia of the tried numbers of clusters."""
    tried = choice["tried"]
    ks = [t["k"] for t in tried]
    data: list[Trace] = []
    for i, (key, title, axis) in enumerate((("silhouette", "silhouette", "y"), ("inertia", "inertia", "y2"))):
        look = looks(i)
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": title,
                "x": ks,
                "y": [t[key] for t in tried],
                "yaxis": axis,
                "line": {"color": look["color"], "dash": ("solid", "dash")[i]},
                "marker": {"color": look["color"], "symbol": look["symbol"], "size": 8},
            }
        )
    caption = (
        f"{label}: silhouette (left) and inertia (right) over the tried numbers of clusters; {choice['k']} was taken."
    )
    layout = {
        "xaxis": {"title": {"text": "clusters"}, "type": "log", "tickvals": ks},
        "yaxis": {"title": {"text": "silhouette"}},
        "yaxis2": {"title": {"text": "inertia"}, "overlaying": "y", "side": "right", "showgrid": False},
    }
    return figures.add(caption, caption, data, layout)


def round_weights(figures: Figures, pool: Mapping[str, Any]) -> dict[str, Any]:
    """Weights of the clusters round by round, those that changed most."""
    lines: dict[int, list[tuple[int, float]]] = {}
    for state in pool["rounds"]:
        lines.setdefault(state["cluster"], []).append((state["round"], state["weight"]))
    spread = {cluster: max(w for _, w in line) - min(w for _, w in line) for cluster, line in lines.items()}
    shown = sorted(lines, key=lambda cluster: (-spread[cluster], cluster))[:SHOWN]
    words = {c["cluster"]: ", ".join(c["keywords"][:2]) for c in pool.get("clusters", [])}
    data: list[Trace] = []
    for cluster in shown:
        place = sorted(lines).index(cluster)
        look = looks(place)
        name = f"{cluster}: {words.get(cluster, '')}".removesuffix(": ")
        line = sorted(lines[cluster])
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": plain(name, 34),
                "x": [r for r, _ in line],
                "y": [w for _, w in line],
                "line": {"color": look["color"], "dash": look["dash"]},
                "marker": {"color": look["color"], "symbol": look["symbol"], "size": 7},
                "meta": plain(name, 60),
                "hovertemplate": "%{meta}<br>round %{x}: %{y:.1%}<extra></extra>",
            }
        )
    some = f", the {len(shown)} of {len(lines)} that moved most" if len(shown) < len(lines) else ""
    caption = f"Weights of clusters by round{some}."
    layout = {"xaxis": {"title": {"text": "round"}, "dtick": 1}, "yaxis": {"tickformat": ".1%", "rangemode": "tozero"}}
    return figures.add(caption, caption, data, layout, height=horizontal(12))
