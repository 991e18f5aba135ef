"""Curves over the epochs of one training: scores of the models that `evaluate.at: stage@epoch` asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.report.figure import Figures, Trace, looks, plain
from services.report.score_charts import unit

FIGURES = 12
"""Tasks that are drawn, at most; all scores are in the table."""


def epochs(figures: Figures, scores: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A figure for each stage and task that was measured at two epochs or more, with a line an arm."""
    lines: dict[tuple[str, str], dict[str, list[tuple[int, Mapping[str, Any]]]]] = {}
    for score in scores:
        stage, _, number = score["point"].partition("@")
        if number.isdigit() and score["mean"] is not None:
            by_arm = lines.setdefault((stage, score["task"]), {})
            by_arm.setdefault(score["arm"], []).append((int(number), score))
    made: list[dict[str, Any]] = []
    for (stage, task), by_arm in lines.items():
        if len({number for points in by_arm.values() for number, _ in points}) < 2 or len(made) == FIGURES:
            continue
        data = [
            _line(arm, sorted(points, key=lambda p: p[0]), look) for look, (arm, points) in enumerate(by_arm.items())
        ]
        measure = unit(next(iter(by_arm.values()))[0][1]["metric"])
        caption = f"{task} by epoch of stage {stage}, with 95% intervals."
        axis = {"title": {"text": "epoch"}, "dtick": 1}
        layout = {"xaxis": axis, "yaxis": {"title": {"text": measure}}}
        made.append(figures.add(caption, f"{caption} {_said(by_arm)}", data, layout))
    return made


def _epoch(point: tuple[int, Mapping[str, Any]]) -> int:
    return point[0]


def _line(arm: str, points: Sequence[tuple[int, Mapping[str, Any]]], look: int) -> Trace:
    style = looks(look)
    means = [score["mean"] for _, score in points]
    bounded = [
        (s["low"], s["high"]) if None not in (s["low"], s["high"]) else (s["mean"], s["mean"]) for _, s in points
    ]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": plain(arm, 40),
        "x": [number for number, _ in points],
        "y": means,
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [high - mean for (_, high), mean in zip(bounded, means, strict=True)],
            "arrayminus": [mean - low for (low, _), mean in zip(bounded, means, strict=True)],
            "width": 3,
            "thickness": 1,
        },
        "line": {"color": style["color"], "dash": style["dash"], "width": 1.8},
        "marker": {"color": style["color"], "symbol": style["symbol"], "size": 7},
        "meta": plain(arm, 60),
        "hovertemplate": "%{meta}<br>epoch %{x}: %{y:.4g}<extra></extra>",
    }


def _said(by_arm: Mapping[str, Sequence[tuple[int, Mapping[str, Any]]]]) -> str:
    listed = [
        f"{arm}: " + ", ".join(f"{score['mean']:.3g}" for _, score in sorted(points, key=_epoch))
        for arm, points in by_arm.items()
    ]
    return "; ".join(listed[:12])
