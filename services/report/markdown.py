"""The view as Markdown: verdict, scores, changes, retention, contrasts, mixtures, and how to run it again.

Names and texts come from recipes and data, so whatever Markdown or HTML would read as markup is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from services.texts import between, number, p_value, percent, signed, signed_between

Cells = list[list[Any]]


def markdown(view: Mapping[str, Any]) -> str:
    """Tables of everything that the summary page shows."""
    results = view["results"]
    parts = [f"# {safe(view['run'])}", " ".join(safe(sentence) for sentence in view["verdict"])]
    if view["unfinished"]:
        lines = [f"- {safe(s['label'])}: {safe(s['status'])} {safe(s['error'])}".rstrip() for s in view["unfinished"]]
        parts += ["## Not done", "\n".join(lines)]
    parts += table("Scores", "arm, model, task, metric, score, 95% interval, items", _scores(results))
    parts += table("Changes from base", "arm, model, task, change, 95% interval, p (Holm), verdict", _changes(results))
    parts += table("Retention", "arm, model, mean drop, 95% interval", _retention(results))
    parts += table("Contamination", "arm, model, task, found, of items, score, without them", _contamination(results))
    parts += table("Declared contrasts", "contrast, a minus b, 95% interval, p (Holm), verdict", _contrasts(results))
    parts += table("Noise of seeds", "arm, task, mean, by stream, all streams, 95% interval", _noise(results))
    if paper := view["published"]:
        lines_ = [[r["arm"], r["metric"], number(r["paper"]), number(r["ours"])] for r in paper["rows"]]
        parts += table(f"Beside the paper: {paper['source']}", "arm, metric, paper, here", lines_)
    rows = [[t["table"], s["label"], number(s["rows"]), removed(s)] for t in view["tables"] for s in t["steps"]]
    parts += table("Rows", "table, after, rows, taken away", rows)
    columns = "arms, stage, table, asked, rows, unique, repeat, tokens, share of tokens"
    parts += table("Mixtures", columns, _mixtures(view["stages"]))
    command = view["command"].replace("\n", "\n    ")
    return "\n\n".join([*parts, "## Run it again", f"    {command}"]) + "\n"


def _scores(results: Mapping[str, Any]) -> Cells:
    return [
        [s["arm"], s["point"], s["task"], s["metric"], number(s["mean"]), between(s["low"], s["high"]), number(s["n"])]
        for s in results["scores"]
    ]


def _changes(results: Mapping[str, Any]) -> Cells:
    found = []
    for c in results["changes"]:
        interval = signed_between(c["low"], c["high"])
        figures = [signed(c["difference"]), interval, p_value(c["p_holm"])]
        found.append([c["arm"], c["point"], c["task"], *figures, c["standing"]])
    return found


def _retention(results: Mapping[str, Any]) -> Cells:
    return [
        [d["arm"], d["point"], signed(d["drop"]), signed_between(d["low"], d["high"])] for d in results["retention"]
    ]


def _contamination(results: Mapping[str, Any]) -> Cells:
    return [
        [c["arm"], c["point"], c["task"], *(number(c[name]) for name in ("found", "n", "score", "without"))]
        for c in results["contamination"]
    ]


def _contrasts(results: Mapping[str, Any]) -> Cells:
    found = []
    for c in results["contrasts"]:
        interval = signed_between(c.get("low"), c.get("high"))
        found.append([c["name"], signed(c.get("mean")), interval, p_value(c.get("p_holm")), c["verdict"]])
    return found


def _noise(results: Mapping[str, Any]) -> Cells:
    found = []
    for n in results["noise"]:
        streams = "; ".join(
            f"{p['stream']} {number(p['sd']) if p['touches'] else 'not drawn from'}" for p in n["parts"]
        )
        found.append(
            [n["variant"], n["task"], number(n["mean"]), streams, number(n["sd"]), between(n["low"], n["high"])]
        )
    return found


def _mixtures(stages: Iterable[Mapping[str, Any]]) -> Cells:
    found = []
    for stage in stages:
        for line in stage["realised"]:
            counts = [number(line[name]) for name in ("rows", "unique", "repeat", "tokens")]
            place = [", ".join(stage["arms"]), stage["stage"], line["table"], line["asked"]]
            found.append([*place, *counts, percent(line["token_share"])])
    return found


def removed(step: Mapping[str, Any]) -> str:
    """What a step took away, in words."""
    words = ("rejected", "removed", "held", "twice")
    return ", ".join(f"{step[word]:,} {word}" for word in words if step[word])


def table(title: str, columns: str, lines: Iterable[Sequence[Any]]) -> list[str]:
    """A heading and a table whose columns are given with commas; nothing when there are no lines."""
    listed = [[safe(cell) for cell in line] for line in lines]
    if not listed:
        return []
    names = columns.split(", ")
    head = [names, ["---"] * len(names)]
    return [f"## {safe(title)}", "\n".join("| " + " | ".join(line) + " |" for line in [*head, *listed])]


def safe(value: Any) -> str:
    """A text as Markdown shows it letter by letter, on one line."""
    folded = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", folded)
