"""What `services.diff` found, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from services.texts import p_value

_NOISE = {True: "yes", False: "no", None: "no interval"}


def markdown(found: Mapping[str, Any]) -> str:
    """The whole comparison, a section for each pair of arms."""
    lines = [f"# {found['a']['run']} and {found['b']['run']}", ""]
    for side in ("a", "b"):
        if found[side]["status"] != "finished":
            lines += [f"{found[side]['run']} is {found[side]['status']}: what it has not made is left out.", ""]
    for arm in found["arms"]:
        lines += [f"## {arm['a']} and {arm['b']}" if arm["a"] != arm["b"] else f"## {arm['a']}", "", *_arm(arm)]
    if found["seeds"]:
        lines += ["## Over seeds", "", *_seeds(found["seeds"])]
    for side, words in (("a", "first"), ("b", "second")):
        if alone := found[f"only_{side}"]:
            lines += [f"Arms of the {words} alone: {', '.join(alone)}", ""]
    return "\n".join(lines)


def _arm(arm: Mapping[str, Any]) -> list[str]:
    lines = ["### Recipe", ""]
    if arm["recipe"]:
        lines += table(("key", "a", "b"), ([r["key"], value(r["a"]), value(r["b"])] for r in arm["recipe"]))
    else:
        lines += ["The same.", ""]
    lines += ["### Rows", "", *_tables(arm["tables"])]
    lines += ["### Lists and weights", "", *_stages(arm["stages"])]
    lines += ["### Scores", ""]
    if arm["scores"]:
        titles = ("point", "task", "metric", "a", "b", "b - a", "interval", "p (Holm)", "items", "more than noise")
        lines += table(titles, (_score(score) for score in arm["scores"]))
    elif not arm["not_compared"]:
        lines += ["No score of two different models.", ""]
    lines += [f"- {each['task']} at {each['point']} not compared: {each['reason']}" for each in arm["not_compared"]]
    return [*lines, ""] if arm["not_compared"] else lines


def _tables(tables: Iterable[Mapping[str, Any]]) -> list[str]:
    titles = ("table", "rows in a", "rows in b", "removed", "added", "other target")
    columns = ("rows_a", "rows_b", "removed", "added", "other_target")
    return table(titles, ([t["table"], *_counts(t, columns, t["same"])] for t in tables))


def _stages(stages: Iterable[Mapping[str, Any]]) -> list[str]:
    titles = (
        "stage",
        "positions in a",
        "in b",
        "rows removed",
        "added",
        "other repeats",
        "same place",
        "weights",
        "because",
    )
    columns = ("rows_a", "rows_b", "removed", "added", "other_repeats", "same_place")
    return table(
        titles,
        (
            [
                s["stage"],
                *_counts(s, columns, s["same_list"]),
                "same" if s["same_weights"] else f"{_short(s['a'])}, {_short(s['b'])}",
                "; ".join(s["because"]),
            ]
            for s in stages
        ),
    )


def _counts(record: Mapping[str, Any], columns: Sequence[str], same: bool) -> list[str]:
    if same:
        return ["same", *[""] * (len(columns) - 1)]
    if columns[0] not in record:
        return ["not made", *[""] * (len(columns) - 1)]
    return [str(record[column]) for column in columns]


def _score(score: Mapping[str, Any]) -> list[str]:
    return [
        score["point"],
        score["task"],
        score["metric"],
        *(f"{score[name]:.4f}" for name in ("mean_a", "mean_b")),
        f"{score['difference']:+.4f}",
        f"{score['low']:+.4f} to {score['high']:+.4f}",
        p_value(score["p_holm"]),
        str(score["n"]),
        _NOISE[score["more_than_noise"]],
    ]


def _seeds(seeds: Iterable[Mapping[str, Any]]) -> list[str]:
    titles = ("variants", "point", "task", "metric", "seeds", "mean b - a", "interval", "p", "more than noise")
    return table(
        titles,
        (
            [
                s["a"] if s["a"] == s["b"] else f"{s['a']} and {s['b']}",
                s["point"],
                s["task"],
                s["metric"],
                ", ".join(map(str, s["seeds"])),
                f"{s['mean']:+.4f}",
                f"{s['low']:+.4f} to {s['high']:+.4f}",
                p_value(s["p"]),
                _NOISE[s["more_than_noise"]],
            ]
            for s in seeds
        ),
    )


def table(titles: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table with an empty line behind it."""
    rows = [f"| {' | '.join(map(cell, line))} |" for line in lines]
    return [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}", *rows, ""]


def cell(text: str) -> str:
    """Text that stays in its cell: names and reasons may come from data."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def value(of: Any) -> str:
    """A setting as it would be written."""
    return of if isinstance(of, str) else json.dumps(of, ensure_ascii=False)


def _short(key: str | None) -> str:
    return key[:18] if key else "none"
