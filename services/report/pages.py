"""The view as HTML and as Markdown.

Model output is hostile text: HTML is made by Jinja with escaping switched on, and Markdown puts it into code spans.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from importlib.resources import files
from typing import Any


def html(view: Mapping[str, Any]) -> str:
    """One self-contained page."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "moment": moment, "signed": signed}
    template = environment.from_string(files("services.report").joinpath("page.html.jinja").read_text("utf-8"))
    return template.render(view=view)


def markdown(view: Mapping[str, Any]) -> str:
    """Scores, changes, retention and contrasts as tables."""
    results = view["results"]
    lines = [
        f"# {view['run']}",
        "",
        "| arm | model | task | metric | score | 95% interval | items |",
        "|---|---|---|---|---|---|---|",
    ]
    for s in results["scores"]:
        between = f"{number(s['low'])} to {number(s['high'])}"
        lines.append(
            f"| {s['arm']} | {s['point']} | {s['task']} | {s['metric']} | {number(s['mean'])} | {between} | {s['n']} |"
        )
    if results["changes"]:
        lines += [
            "",
            "| arm | model | task | change from base | 95% interval | p (Holm) |",
            "|---|---|---|---|---|---|",
        ]
        for c in results["changes"]:
            between = f"{signed(c['low'])} to {signed(c['high'])}"
            change = f"{signed(c['difference'])} | {between} | {number(c['p_holm'])}"
            lines.append(f"| {c['arm']} | {c['point']} | {c['task']} | {change} |")
    for drop in results["retention"]:
        lines += ["", f"Retention ({drop['arm']}, {drop['point']}): mean drop {signed(drop['drop'])}"]
    for contrast in results["contrasts"]:
        lines += ["", f"Contrast {contrast['name']}: {contrast['verdict']}"]
    for stage in view["stages"]:
        lines += [
            "",
            f"Stage {stage['stage']} ({stage['arm']})",
            "",
            "| table | asked | rows | unique | repeat | tokens |",
        ]
        lines.append("|---|---|---|---|---|---|")
        for r in stage["realised"]:
            lines.append(
                f"| {r['table']} | {r['asked']} | {r['rows']} | {r['unique']} | {r['repeat']:.3g} | {r['tokens']} |"
            )
    return "\n".join(lines) + "\n"


def number(value: Any) -> str:
    """Three decimals; a dash for what is not known."""
    if value is None or (isinstance(value, float) and value != value):
        return "–"
    return f"{value:,.3f}" if isinstance(value, float) else f"{value:,}"


def signed(value: Any) -> str:
    """Three decimals with a sign."""
    return "–" if value is None or value != value else f"{value:+.3f}"


def moment(seconds: Any) -> str:
    """A time in UTC."""
    if not seconds:
        return "–"
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
