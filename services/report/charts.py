"""Figures of mixtures, targets and trainings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from services.report.figure import GREY, PALETTE, Figures, Trace, bars, horizontal, looks, names_axis, plain
from services.texts import number, signed, told_apart

BARS = 24
APART = 6
"""Trainings that get a loss figure of their own; with more, each stage has one figure with a line an arm."""

_KINDS = {"own": "own answer", "paraphrase": "paraphrase", "gold": "gold"}
_LOOKS = {"own": (PALETTE[0], "solid", ""), "paraphrase": (PALETTE[2], "dash", "/"), "gold": (PALETTE[1], "dot", "x")}
"""Colour, dash and pattern of the sources of targets."""
_READING = {
    "answer": "A long answer is less probable than a short one that is as natural.",
    "token": "The further right, the nearer is a target to what the model says anyway.",
}


def mixture(figures: Figures, stages: Sequence[Mapping[str, Any]], several: bool) -> dict[str, Any] | None:
    """Rows of an epoch that a table had, that were asked for, and that the list holds."""
    lines = [(stage, line) for stage in stages for line in stage["realised"]][:BARS]
    if not lines:
        return None
    short = told_apart(stage["arms"][0] for stage in stages)
    names = [f"{s['stage']} · {line['table']}" + (f" · {short[s['arms'][0]]}" if several else "") for s, line in lines]
    data = [
        bars(word, [line[column] for _, line in lines], names, color, pattern, "%{x:,} rows")
        for word, column, color, pattern in (
            ("available", "available", GREY, ""),
            ("asked", "asked_rows", PALETTE[1], "/"),
            ("realised", "rows", PALETTE[0], ""),
        )
    ]
    caption = (
        "Rows of an epoch: what the table had, what the recipe asked for, what the list holds. "
        "Amounts in tokens have no asked rows."
    )
    said = [
        f"{name}: {line['asked']} of {line['available']} rows asked, {line['rows']} realised"
        for name, (_, line) in zip(names, lines, strict=True)
    ]
    axis = {"title": {"text": "rows"}, "rangemode": "tozero"}
    layout = {"barmode": "group", "yaxis": names_axis(names), "xaxis": axis}
    return figures.add(caption, "; ".join(said), data, layout, height=110 + 46 * len(lines))


def targets(figures: Figures, responses: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Shares of own answers, paraphrases and gold in the chosen targets, by source."""
    lines = [(r, c) for r in responses for c in r["composition"] if c["source"] != "all"][:BARS]
    if not lines:
        return None
    names = [f"{r['label'].split(' · ')[0]} · {c['source']}" for r, c in lines]
    # Bars of one name would be drawn on one another.
    short = _short(responses)
    names = [
        f"{name}, {_of(r, short)}" if names.count(name) > 1 else name for name, (r, _) in zip(names, lines, strict=True)
    ]
    columns = {"own": "model_share", "paraphrase": "paraphrase_share", "gold": "gold_share"}
    data = [
        bars(_KINDS[kind], [c.get(column) or 0 for _, c in lines], names, _LOOKS[kind][0], _LOOKS[kind][2], "%{x:.1%}")
        for kind, column in columns.items()
    ]
    said = [
        f"{name}: {c['model']} own, {c['paraphrase']} paraphrases, {c['gold']} gold of {c['rows']}"
        for name, (_, c) in zip(names, lines, strict=True)
    ]
    layout = {"barmode": "stack", "yaxis": names_axis(names), "xaxis": {"tickformat": ".0%", "range": [0, 1]}}
    caption = "Where the chosen targets come from, by source."
    return figures.add(caption, f"{caption} {'; '.join(said)}", data, layout, height=horizontal(len(lines)))


def _short(steps: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The arms of these steps by what tells them apart."""
    return told_apart(arm for step in steps for arm in step["arms"])


def _of(response: Mapping[str, Any], short: Mapping[str, str]) -> str:
    """The arms of a step, so that it can be told from others of its name."""
    first, *others = [short[arm] for arm in response["arms"]] or [response["key"][-6:]]
    return f"{first} and {len(others)} more" if others else str(first)


def logprobs(figures: Figures, label: str, by: str, histogram: Mapping[str, Any]) -> dict[str, Any]:
    """How likely the model finds its own answers, the paraphrases and the gold ones, `by` answer or token."""
    data: list[Trace] = []
    for kind, found in histogram["kinds"].items():
        color, dash, _ = _LOOKS[kind]
        total = sum(found["counts"]) or 1
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": _KINDS[kind],
                "x": histogram["edges"],
                "y": [*(count / total for count in found["counts"]), 0],
                "line": {"shape": "hv", "color": color, "dash": dash, "width": 2.5},
                "meta": f"{_KINDS[kind]}, {found['rows']:,} rows",
                "hovertemplate": f"%{{meta}}<br>%{{x:.2f}} nats per {by}: %{{y:.1%}}<extra></extra>",
            }
        )
    means = ", ".join(f"{_KINDS[kind]} {signed(found['mean'])}" for kind, found in histogram["kinds"].items())
    caption = f"{label}: log-probability per {by} under the model that answers (means: {means}). {_READING[by]}"
    layout = {
        "xaxis": {"title": {"text": f"nats per {by}"}, "zeroline": False},
        "yaxis": {"tickformat": ".0%", "rangemode": "tozero", "title": {"text": "rows"}},
    }
    return figures.add(caption, caption, data, layout)


def losses(figures: Figures, trainings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Loss by step: by source where there are few trainings, else a line an arm."""
    known = [t for t in trainings if t["curve"]]
    if len(known) <= APART:
        return [_loss_of(figures, title, t) for title, t in zip(_titles(known), known, strict=True)]
    made = []
    short = _short(known)
    for stage in dict.fromkeys(t["stage"] for t in known):
        mine = [t for t in known if t["stage"] == stage]
        data = [_curve(", ".join(short[a] for a in t["arms"]), t["curve"], "loss", i) for i, t in enumerate(mine)]
        caption = f"Loss by step of stage {stage}, in {len(mine)} trainings."
        made.append(figures.add(caption, caption, data, _steps("loss (nats per token)")))
    return made


def _titles(trainings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The label of each training, with its arms where others have the same."""
    labels = [training["label"] for training in trainings]
    short = _short(trainings)
    return [
        t["label"] + (f" ({', '.join(short[a] for a in t['arms'])})" if labels.count(t["label"]) > 1 else "")
        for t in trainings
    ]


def _loss_of(figures: Figures, title: str, training: Mapping[str, Any]) -> dict[str, Any]:
    curve = training["curve"]
    data = [_curve("all", curve, "loss", 0) | {"line": {"color": PALETTE[0], "width": 3}}]
    sources = sorted({name for line in curve for name in line.get("loss_by_source", {})})
    for i, source in enumerate(sources, 1):
        data.append(_line(source, [(n["step"], n.get("loss_by_source", {}).get(source)) for n in curve], i))
    held = sorted({name for line in curve for name in line.get("validation") or {}})
    for i, name in enumerate(held, len(sources) + 1):
        points = [(line["step"], (line.get("validation") or {}).get(name)) for line in curve]
        data.append(_line(f"{name} (held out)", points, i))
    caption = f"{title}: loss by step, whole and by source."
    first, last = number(curve[0].get("loss")), number(curve[-1].get("loss"))
    alt = f"{caption} From {first} to {last} over {training['summary'].get('steps', len(curve))} steps."
    return figures.add(caption, alt, data, _steps("loss (nats per token)"))


def rates(figures: Figures, trainings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Learning rate and throughput of all trainings."""
    made = []
    for key, title, caption in (
        ("lr", "learning rate", "Learning rate by step."),
        ("tokens_per_s", "tokens/s", "Throughput by step, tokens per second."),
    ):
        data = []
        for i, (name, training) in enumerate(zip(_titles(trainings), trainings, strict=True)):
            if any(line.get(key) is not None for line in training["curve"]):
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
        "line": {"color": style["color"], "dash": style["dash"], "width": 1.8},
        "marker": {"color": style["color"], "symbol": style["symbol"], "size": 6},
        "meta": plain(name, 60),
        "hovertemplate": "%{meta}<br>step %{x}: %{y:.4g}<extra></extra>",
    }


def _steps(title: str) -> dict[str, Any]:
    axis = {"title": {"text": "step"}, "rangemode": "tozero", "minallowed": 0, "tickformat": ",d"}
    return {"xaxis": axis, "yaxis": {"title": {"text": title}}}
