"""The view as one self-contained page.

Model output is hostile text. Jinja escapes everything that it puts into the page; data for the script is JSON in which
`<`, `>` and `&` are written as escapes, and the script puts texts into the page as text only. Should something slip
through nevertheless, the page's own policy lets no script run but the two whose hashes it names, and nothing load.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services import texts

if TYPE_CHECKING:
    from markupsafe import Markup

FOLDER = Path(__file__).parent


def html(view: Mapping[str, Any]) -> str:
    """The page as text, with Plotly's library inside."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    from services.report.drawing import draw

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("number", "p_value", "signed", "percent", "between", "signed_between", "duration", "moment", "cut")
    environment.filters |= {name: getattr(texts, name) for name in names}
    environment.filters["address"] = address
    environment.filters["sentence"] = lambda text: f"{text[:1].upper()}{text[1:].rstrip('.')}."
    environment.filters["mean"] = lambda values: sum(values) / len(values) if values else None
    environment.filters["as_yaml"] = as_yaml
    lines = summary(view["results"])
    figures, charts = draw(view, lines)
    plotly, script = get_plotlyjs(), (FOLDER / "script.js").read_text("utf-8")
    data = {"charts": figures, "compared": view["compared"], "sweep": view["sweep"]}
    return environment.get_template("page.html.jinja").render(
        view=view,
        lines=lines,
        charts=charts,
        policy=policy(plotly, script),
        style=Markup((FOLDER / "style.css").read_text("utf-8")),  # noqa: S704 (our own file)
        plotly=Markup(plotly),  # noqa: S704 (of the installed package)
        script=Markup(script),  # noqa: S704 (our own file)
        data=embedded(data),
    )


def summary(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A line for each arm, task and later model with base's score and the paired change; base alone if no other."""
    changes = {(c["arm"], c["point"], c["task"]): c for c in results["changes"]}
    base = {(s["arm"], s["task"]): s for s in results["scores"] if s["point"] == "base"}
    later = [s for s in results["scores"] if s["point"] != "base"]
    lines = [
        {
            **{name: score[name] for name in ("arm", "task", "metric", "point", "n", "errors", "unsure")},
            "base": base.get((score["arm"], score["task"])),
            "tuned": score,
            "change": changes.get((score["arm"], score["point"], score["task"])),
        }
        for score in later
    ]
    measured = {(s["arm"], s["task"]) for s in later}
    lines += [
        {
            **{name: score[name] for name in ("arm", "task", "metric", "point", "n", "errors", "unsure")},
            "base": score,
            "tuned": None,
            "change": None,
        }
        for place, score in base.items()
        if place not in measured
    ]
    order = {arm: i for i, arm in enumerate(dict.fromkeys(s["arm"] for s in results["scores"]))}
    return sorted(lines, key=lambda line: (order[line["arm"]], line["task"]))


def policy(*scripts: str) -> str:
    """The Content-Security-Policy: nothing from outside, and only these scripts."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    rules = ("default-src 'none'", f"script-src {hashes}", "style-src 'unsafe-inline'", "img-src data: blob:")
    return "; ".join([*rules, "connect-src 'none'", "form-action 'none'", "base-uri 'none'"])


def embedded(value: Any) -> Markup:
    """JSON for a `script` element: it cannot end the element, and reads back as it was."""
    from markupsafe import Markup

    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for letter in ("<", ">", "&", "\u2028", "\u2029"):
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)  # noqa: S704 (escaped above)


def address(place: str) -> str:
    """A link to a file of the store: `file:` for a local one; an object store has no link that a browser opens."""
    return Path(place).as_uri() if place.startswith("/") else ""


def as_yaml(value: Any) -> str:
    """A mapping as YAML, in the order written."""
    import yaml

    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)
