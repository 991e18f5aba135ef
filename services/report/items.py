"""Items that tell base and tuned model apart, with both answers.

Where an item is right or wrong, it is shown when that changed. Where it has only a degree (a loss, a rating), the items
that moved furthest in each direction are shown. Texts are cut, and all items of a report share one budget: a sweep
over many arms shows fewer of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from services.report.artifacts import Artifacts

BASE = "base"
FLIPPED = 200
"""Flipped items of one task and model, at most."""
MOVED = 10
"""Items shown for each direction of a task with degrees."""
ALL_ITEMS = 2500
TEXT = 1200
"""Characters of a prompt or answer."""

_COLUMNS = ["item", "group", "metric", "main", "score", "prompt", "prediction", "reference", "correct", "reason"]


def compared(artifacts: Artifacts, arms: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each (arm, point, task) with a base: how many items changed, and those that are shown.

    Tasks with right and wrong come first.
    """
    pairs = list(_pairs(artifacts, arms))
    limit = max(10, min(FLIPPED, ALL_ITEMS // max(1, len(pairs))))
    found = []
    for arm, point, task, before, after in pairs:
        what = f"items of {task} at {point} ({arm})"
        entry = artifacts.attempt(what, _entry, artifacts, before, after, limit)
        if entry:
            found.append({"arm": arm, "point": point, "task": task, **entry})
    return sorted(found, key=lambda entry: not entry["flips"])


def _pairs(artifacts: Artifacts, arms: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str, str, str, str]]:
    """(arm, point, task, key of base, key of the other), each pair of artifacts once."""
    seen = set()
    for arm in arms:
        base = {m["task"]: m["key"] for m in arm["measures"] if m["point"] == BASE}
        for measure in arm["measures"]:
            before, after = base.get(measure["task"]), measure["key"]
            if measure["point"] == BASE or before is None or (before, after) in seen:
                continue
            if {before, after} <= artifacts.finished:
                seen.add((before, after))
                yield arm["name"], measure["point"], measure["task"], before, after


def _entry(artifacts: Artifacts, before: str, after: str, limit: int) -> dict[str, Any]:
    sides = [_main(artifacts, key) for key in (before, after)]
    both = sorted(item for item in sides[0] if item in sides[1])
    judged = [i for i in both if sides[0][i]["correct"] is not None and sides[1][i]["correct"] is not None]
    flips = [i for i in judged if sides[0][i]["correct"] != sides[1][i]["correct"]]
    gained = sum(bool(sides[1][i]["correct"]) for i in flips)
    entry: dict[str, Any] = {"both": len(both), "gained": gained, "lost": len(flips) - gained, "flips": bool(judged)}
    if judged:
        shown = flips[:limit]
    else:
        graded = [i for i in both if sides[0][i]["score"] is not None and sides[1][i]["score"] is not None]
        graded.sort(key=lambda i: (sides[1][i]["score"] - sides[0][i]["score"], i))
        each = min(MOVED, limit // 2)
        shown = list(dict.fromkeys([*graded[:each], *graded[-each:]]))
    return entry | {"items": [_item(sides[0][i], sides[1][i]) for i in shown]}


def _main(artifacts: Artifacts, key: str) -> dict[str, dict[str, Any]]:
    """Items of the main metric by their name; parts of a suite have a task each, which the name carries."""
    table = artifacts.table(key, "items.parquet", ["task", *_COLUMNS])
    several = len(table["task"].unique()) > 1
    records = (record for record in table.to_pylist() if record["main"])
    return {f"{r['task']}: {r['item']}" if several else r["item"]: r for r in records}


def _item(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    judged = before["correct"] is not None and after["correct"] is not None
    change = ("gained" if after["correct"] else "lost") if judged else "moved"
    shared = {name: long(before[name]) for name in ("item", "group", "metric", "prompt", "reference")}
    sides = {
        name: {"answer": long(side["prediction"]), "reason": long(side["reason"]), "score": side["score"]}
        for name, side in (("base", before), ("tuned", after))
    }
    return {**shared, "change": change, **sides}


def long(text: str | None) -> str:
    """A long text cut in the middle, where prompts differ least; what is left out is counted."""
    if not text or len(text) <= TEXT:
        return text or ""
    half = TEXT // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters left out …]\n{text[-half:]}"
