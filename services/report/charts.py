"""Figures of results, mixtures, targets and trainings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from services.report.figure import (
    BAD,
    GOOD,
    GREY,
    PALETTE,
    Figures,
    Trace,
    horizontal,
    looks,
    names_axis,
    plain,
)
from services.report.sweep import is_loss
from services.report.texts import number, signed, signed_between

ROWS = 40
"""Rows of a forest plot, at most: those with the clearest differences."""
BARS = 24
APART = 6
"""Trainings that get a loss figure of their own; with more, each stage has one figure with a line an arm."""


def unit(metric: str) -> str:
    """What a metric counts; figures of different units do not share an axis."""
    if is_loss(metric):
        return "nats per token" if metric == "loss" else metric
    return "rating" if metric in ("rating", "score", "grade") else "share or score"


def forest(figures: Figures, changes: Sequence[Mapping[str, Any]], several: bool) -> list[dict[str, Any]]:
    """Paired differences from base with their intervals, a figure a unit."""
    made = []
    for kind in dict.fromkeys(unit(c["metric"]) for c in changes):
        listed = [c for c in changes if unit(c["metric"]) == kind and c["low"] is not None and c["high"] is not None]
        if len(listed) > ROWS:
            listed.sort(key=lambda c: -abs(c["difference"]) / max(c["high"] - c["low"], 1e-12))
            listed = listed[:ROWS]
        if not listed:
            continue
        names = [f"{c['task']} · {c['point']}" + (f" · {c['arm']}" if several else "") for c in listed]
        data = []
        for word, color, symbol in (
            ("better", GOOD, "circle"), ("worse", BAD, "x"), ("no difference shown", GREY, "circle-open"),
        ):  # fmt: skip
            mine = [
                i
                for i, c in enumerate(listed)
                if (c["standing"] if c["standing"] in ("better", "worse") else "no difference shown") == word
            ]
            if mine:
                data.append(_interval_trace(word, color, symbol, mine, listed, names))
        less = is_loss(listed[0]["metric"])
        caption = f"Difference from base in {kind}, item by item, with 95% intervals; {'left' if less else 'right'} of zero is better."
        alt = (
            caption
            + " "
            + "; ".join(
                f"{n}: {signed(c['difference'])} ({signed_between(c['low'], c['high'])})"
                for n, c in zip(names[:12], listed, strict=False)
            )
        )
        layout = {
            "yaxis": names_axis(names),
            "xaxis": {"title": {"text": f"difference ({kind})"}, "zeroline": False},
            "shapes": [
                {
                    "type": "line",
                    "x0": 0,
                    "x1": 0,
                    "yref": "paper",
                    "y0": 0,
                    "y1": 1,
                    "line": {"color": GREY, "width": 1.5, "dash": "dot"},
                }
            ],
        }
        made.append(figures.add(caption, alt, data, layout, height=horizontal(len(listed))))
    return made


def _interval_trace(
    word: str, color: str, symbol: str, mine: list[int], listed: Sequence[Mapping[str, Any]], names: list[str]
) -> Trace:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": word,
        "x": [listed[i]["difference"] for i in mine],
        "y": mine,
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [listed[i]["high"] - listed[i]["difference"] for i in mine],
            "arrayminus": [listed[i]["difference"] - listed[i]["low"] for i in mine],
            "color": color,
            "thickness": 2,
            "width": 5,
        },
        "marker": {"color": color, "symbol": symbol, "size": 10},
        "text": [
            f"{plain(names[i])}<br>{signed(listed[i]['difference'])} ({signed_between(listed[i]['low'], listed[i]['high'])})"
            for i in mine
        ],
        "hovertemplate": "%{text}<extra></extra>",
    }


def before_after(figures: Figures, lines: Sequence[Mapping[str, Any]], several: bool) -> list[dict[str, Any]]:
    """Scores of base and of the later models with their own intervals, a figure a unit."""
    made = []
    for kind in dict.fromkeys(unit(line["metric"]) for line in lines):
        mine = [line for line in lines if unit(line["metric"]) == kind and line["base"]][:ROWS]
        if not mine:
            continue
        names = [f"{m['task']} · {m['point']}" + (f" · {m['arm']}" if several else "") for m in mine]
        data = []
        for side, color, symbol, shift in (
            ("base", GREY, "circle-open", -0.14),
            ("tuned", PALETTE[0], "diamond", 0.14),
        ):
            known = [(i, m[side]) for i, m in enumerate(mine) if m[side] and m[side]["mean"] is not None]
            bounded = [s["low"] is not None and s["high"] is not None for _, s in known]
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": side,
                    "x": [s["mean"] for _, s in known],
                    "y": [i + shift for i, _ in known],
                    "error_x": {
                        "type": "data",
                        "symmetric": False,
                        "array": [
                            s["high"] - s["mean"] if ok else 0 for (_, s), ok in zip(known, bounded, strict=True)
                        ],
                        "arrayminus": [
                            s["mean"] - s["low"] if ok else 0 for (_, s), ok in zip(known, bounded, strict=True)
                        ],
                        "color": color,
                        "width": 4,
                    },
                    "marker": {"color": color, "symbol": symbol, "size": 9},
                    "text": [f"{plain(names[i])}<br>{side}: {number(s['mean'])}" for i, s in known],
                    "hovertemplate": "%{text}<extra></extra>",
                }
            )
        caption = f"Scores before and after in {kind}, each with its own 95% interval. Overlapping intervals do not mean that there is no difference: the paired ones above decide."
        alt = "; ".join(
            f"{n}: {number(m['base']['mean'])} to {number(m['tuned']['mean'])}"
            for n, m in zip(names[:12], mine, strict=False)
            if m["tuned"]
        )
        layout = {"yaxis": names_axis(names), "xaxis": {"title": {"text": kind}, "zeroline": False}}
        made.append(figures.add(caption, alt, data, layout, height=horizontal(len(mine))))
    return made


def mixture(figures: Figures, stages: Sequence[Mapping[str, Any]], several: bool) -> dict[str, Any] | None:
    """Rows asked and realised in an epoch, and the share of the stage's tokens."""
    lines = [(stage, line) for stage in stages for line in stage["realised"]][:BARS]
    if not lines:
        return None
    names = [f"{s['stage']} · {line['table']}" + (f" · {s['arms'][0]}" if several else "") for s, line in lines]
    place = list(range(len(lines)))
    data: list[Trace] = [
        {"name": name, "x": values, "color": color, "pattern": pattern}
        for name, values, color, pattern in (
            ("available", [line["available"] for _, line in lines], GREY, ""),
            ("asked", [line["asked_rows"] for _, line in lines], PALETTE[1], "/"),
            ("realised", [line["rows"] for _, line in lines], PALETTE[0], ""),
        )
    ]
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": trace["name"],
            "x": trace["x"],
            "y": place,
            "marker": {"color": trace["color"], "pattern": {"shape": trace["pattern"]}},
            "text": [plain(name) for name in names],
            "textposition": "none",
            "hovertemplate": f"%{{text}}<br>{trace['name']}: %{{x:,}} rows<extra></extra>",
        }
        for trace in data
    ]
    caption = "Rows of an epoch: what the table had, what the recipe asked for, what the list holds. Amounts in tokens have no asked rows."
    alt = "; ".join(
        f"{n}: {line['asked']} of {line['available']} rows asked, {line['rows']} realised"
        for n, (_, line) in zip(names, lines, strict=True)
    )
    layout = {
        "barmode": "group",
        "yaxis": names_axis(names),
        "xaxis": {"title": {"text": "rows"}, "rangemode": "tozero"},
    }
    return figures.add(caption, alt, data, layout, height=110 + 46 * len(lines))


def targets(figures: Figures, responses: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Shares of own answers, paraphrases and gold in the chosen targets."""
    lines = [(r["label"], c) for r in responses for c in r["composition"]]
    lines = [(label, c) for label, c in lines if c["source"] != "all" or sum(n == label for n, _ in lines) > 2][:BARS]
    if not lines:
        return None
    names = [f"{label.split(' · ')[0]} · {c['source']}" for label, c in lines]
    data = []
    for column, word, color, pattern in (
        ("model_share", "own answer", PALETTE[0], ""), ("paraphrase_share", "paraphrase", PALETTE[2], "/"),
        ("gold_share", "gold", PALETTE[1], "x"),
    ):  # fmt: skip
        shares = [c.get(column) or 0 for _, c in lines]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": word,
                "x": shares,
                "y": list(range(len(lines))),
                "marker": {"color": color, "pattern": {"shape": pattern}},
                "text": [plain(name) for name in names],
                "textposition": "none",
                "hovertemplate": f"%{{text}}<br>{word}: %{{x:.1%}}<extra></extra>",
            }
        )
    alt = "; ".join(
        f"{n}: {c['model']} own, {c['paraphrase']} paraphrases, {c['gold']} gold of {c['rows']}"
        for n, (_, c) in zip(names, lines, strict=True)
    )
    layout = {"barmode": "stack", "yaxis": names_axis(names), "xaxis": {"tickformat": ".0%", "range": [0, 1]}}
    return figures.add("Where the targets come from.", alt, data, layout, height=horizontal(len(lines)))


def logprobs(figures: Figures, label: str, histogram: Mapping[str, Any]) -> dict[str, Any]:
    """How likely the model finds its own answers, the paraphrases and the gold ones."""
    words = {"own": "own answer", "paraphrase": "paraphrase", "gold": "gold"}
    data = []
    for kind, found in histogram["kinds"].items():
        look = {"own": (PALETTE[0], "solid"), "paraphrase": (PALETTE[2], "dash"), "gold": (PALETTE[1], "dot")}[kind]
        total = sum(found["counts"]) or 1
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": words[kind],
                "x": histogram["edges"],
                "y": [*(count / total for count in found["counts"]), 0],
                "line": {"shape": "hv", "color": look[0], "dash": look[1], "width": 2.5},
                "hovertemplate": f"{words[kind]}<br>%{{x:.2f}} nats per token: %{{y:.1%}} of {found['rows']:,} rows<extra></extra>",
            }
        )
    means = ", ".join(f"{words[k]} {signed(v['mean'])}" for k, v in histogram["kinds"].items())
    caption = f"{label}: log-probability per token under the model that answers (means: {means}). The further right, the nearer is a target to what the model says anyway."
    layout = {
        "xaxis": {"title": {"text": "nats per token"}, "zeroline": False},
        "yaxis": {"tickformat": ".0%", "rangemode": "tozero", "title": {"text": "rows"}},
    }
    return figures.add(caption, caption, data, layout)


def losses(figures: Figures, trainings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Loss by step: by source where there are few trainings, else a line an arm."""
    known = [t for t in trainings if t["curve"]]
    if len(known) <= APART:
        return [_loss_of(figures, t) for t in known]
    made = []
    for stage in dict.fromkeys(t["stage"] for t in known):
        mine = [t for t in known if t["stage"] == stage]
        data = [_curve(f"{', '.join(t['arms'])}", t["curve"], "loss", i) for i, t in enumerate(mine)]
        caption = f"Loss of stage {stage} in {len(mine)} trainings."
        made.append(figures.add(caption, caption, data, _steps("loss (nats per token)")))
    return made


def _loss_of(figures: Figures, training: Mapping[str, Any]) -> dict[str, Any]:
    curve = training["curve"]
    data = [_curve("all", curve, "loss", 0) | {"line": {"color": PALETTE[0], "width": 3}}]
    sources = sorted({name for line in curve for name in line.get("loss_by_source", {})})
    for i, source in enumerate(sources, 1):
        points = [(line["step"], line["loss_by_source"].get(source)) for line in curve if "loss_by_source" in line]
        data.append(_line(source, points, i))
    held = sorted({name for line in curve for name in line.get("validation") or {}})
    for i, name in enumerate(held, len(sources) + 1):
        points = [(line["step"], line["validation"].get(name)) for line in curve if line.get("validation")]
        data.append(_line(f"{name} (held out)", [(s, _number(v)) for s, v in points], i))
    first, last = curve[0].get("loss"), curve[-1].get("loss")
    caption = f"{training['label']}: loss by step, whole and by source."
    alt = f"{caption} From {number(first)} to {number(last)} over {training['summary'].get('steps', len(curve))} steps."
    return figures.add(caption, alt, data, _steps("loss (nats per token)"))


def _number(value: Any) -> Any:
    return value.get("loss") if isinstance(value, Mapping) else value


def rates(figures: Figures, trainings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Learning rate and throughput of all trainings."""
    made = []
    for key, title, caption in (
        ("lr", "learning rate", "Learning rate by step."),
        ("tokens_per_s", "tokens/s", "Throughput by step, tokens per second."),
    ):
        data = []
        for i, training in enumerate(trainings):
            if any(line.get(key) is not None for line in training["curve"]):
                several = sum(t["label"] == training["label"] for t in trainings) > 1
                name = training["label"] + (f" ({', '.join(training['arms'])})" if several else "")
                data.append(_curve(name, training["curve"], key, i))
        if data:
            layout = _steps(title)
            layout["yaxis"] |= {"rangemode": "tozero", "exponentformat": "power"}
            made.append(figures.add(caption, caption, data, layout, height=280))
    return made


def _curve(name: str, curve: Sequence[Mapping[str, Any]], key: str, look: int) -> Trace:
    return _line(name, [(line["step"], line.get(key)) for line in curve if "step" in line], look)


def _line(name: str, points: Iterable[tuple[Any, Any]], look: int) -> Trace:
    """A line; few points are marked, or a stage of one step would be invisible."""
    known = [(x, y) for x, y in points if y is not None]
    style = looks(look)
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(known) <= 30 else "lines",
        "name": plain(name, 40),
        "x": [x for x, _ in known],
        "y": [y for _, y in known],
        "line": {
            "color": style["color"],
            "dash": style["dash"] if look == 0 else ("dash", "dot", "dashdot", "longdash")[look % 4],
            "width": 1.8,
        },
        "marker": {"color": style["color"], "symbol": style["symbol"], "size": 6},
        "hovertemplate": f"{plain(name, 60)}<br>step %{{x}}: %{{y:.4g}}<extra></extra>",
    }


def _steps(title: str) -> dict[str, Any]:
    return {"xaxis": {"title": {"text": "step"}, "rangemode": "tozero"}, "yaxis": {"title": {"text": title}}}
