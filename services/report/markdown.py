"""The view as Markdown: verdict, scores, changes, retention, contrasts, mixtures, and how to run it again.

Names and texts come from recipes and data, so whatever Markdown or HTML would read as markup is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from services.report.texts import between, number, percent, signed, signed_between


def markdown(view: Mapping[str, Any]) -> str:
    """Tables of everything that the summary page shows."""
    results = view["results"]
    parts = [f"# {safe(view['run'])}", " ".join(safe(s) for s in view["verdict"])]
    if view["unfinished"]:
        lines = [f"- {safe(s['label'])}: {safe(s['status'])} {safe(s['error'])}".rstrip() for s in view["unfinished"]]
        parts += ["## Not done", "\n".join(lines)]
    scores = [
        [s["arm"], s["point"], s["task"], s["metric"], number(s["mean"]), between(s["low"], s["high"]), number(s["n"])]
        for s in results["scores"]
    ]
    parts += table("Scores", ["arm", "model", "task", "metric", "score", "95% interval", "items"], scores)
    changes = [
        [c["arm"], c["point"], c["task"], signed(c["difference"]), signed_between(c["low"], c["high"])]
        + [number(c["p_holm"]), c["standing"]]
        for c in results["changes"]
    ]
    columns = ["arm", "model", "task", "change from base", "95% interval", "p (Holm)", "verdict"]
    parts += table("Changes from base", columns, changes)
    drops = [
        [d["arm"], d["point"], signed(d["drop"]), signed_between(d["low"], d["high"])] for d in results["retention"]
    ]
    parts += table("Retention", ["arm", "model", "mean drop", "95% interval"], drops)
    contrasts = [
        [c["name"], signed(c.get("mean")), signed_between(c.get("low"), c.get("high")), number(c.get("p_holm"))]
        + [c["verdict"]]
        for c in results["contrasts"]
    ]
    parts += table("Declared contrasts", ["contrast", "a minus b", "95% interval", "p (Holm)", "verdict"], contrasts)
    if view["published"]:
        paper = [[r["arm"], r["metric"], number(r["paper"]), number(r["ours"])] for r in view["published"]["rows"]]
        parts += table(f"Beside the paper: {view['published']['source']}", ["arm", "metric", "paper", "here"], paper)
    rows = [[t["table"], s["label"], number(s["rows"]), removed(s)] for t in view["tables"] for s in t["steps"]]
    parts += table("Rows", ["table", "after", "rows", "taken away"], rows)
    mixes = [
        [", ".join(stage["arms"]), stage["stage"], line["table"], line["asked"], number(line["rows"])]
        + [number(line["unique"]), number(line["repeat"]), number(line["tokens"]), percent(line["token_share"])]
        for stage in view["stages"]
        for line in stage["realised"]
    ]
    columns = ["arms", "stage", "table", "asked", "rows", "unique", "repeat", "tokens", "share of tokens"]
    parts += table("Mixtures", columns, mixes)
    parts += ["## Run it again", f"    {view['command']}"]
    return "\n\n".join(parts) + "\n"


def removed(step: Mapping[str, Any]) -> str:
    """What a step took away, in words."""
    words = ("rejected", "removed", "held", "twice")
    return ", ".join(f"{step[word]:,} {word}" for word in words if step[word])


def table(title: str, columns: Sequence[str], lines: Iterable[Sequence[Any]]) -> list[str]:
    """A heading and a table; nothing when there are no lines."""
    listed = [[safe(cell) for cell in line] for line in lines]
    if not listed:
        return []
    head = [list(columns), ["---"] * len(columns)]
    return [f"## {safe(title)}", "\n".join("| " + " | ".join(line) + " |" for line in [*head, *listed])]


def safe(value: Any) -> str:
    """A text as Markdown shows it letter by letter, on one line."""
    folded = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", folded)
