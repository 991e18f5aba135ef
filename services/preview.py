"""A look at the tokens that will be trained: text, role and weight of each, on a terminal or as a page.

The entries are what `cuvee mask --json` prints. The texts of a row's tokens joined are the rendered conversation; of
tokens that share a character (bytes of one) the first shows it. Data are hostile: control and formatting characters
are written out on the terminal, and everything is escaped on the page.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cuvee import rows
from cuvee.chat import ROLE_NAMES, Chat
from cuvee.errors import TemplateError
from training.objective import Objective, token_weights

if TYPE_CHECKING:
    from rich.console import Console

COLOURS = {
    "template": (150, 150, 150),
    "system": (200, 120, 220),
    "user": (80, 160, 255),
    "assistant": (60, 200, 110),
    "tool": (240, 170, 60),
}
NAMED = {"template": "bright_black", "system": "magenta", "user": "blue", "assistant": "green", "tool": "yellow"}
"""For terminals of few colours, which would take a dark shade of any colour for grey."""
FAINT = 0.35
"""Intensity of a token of weight 0; one of weight 1 has its full colour."""


def preview(table: pa.Table, chat: Chat, objective: Objective) -> list[dict[str, Any]]:
    """`{"id", "tokens": [{"id", "text", "role", "weight"}]}` for each row of a table of `cuvee.rows.SCHEMA`.

    A row that cannot be rendered has no tokens and an `error`. The first token's weight is 0: nothing predicts it.
    """
    return [_entry(row, chat, objective) for row in rows.records(table)]


def _entry(row: Mapping[str, Any], chat: Chat, objective: Objective) -> dict[str, Any]:
    try:
        rendered = chat.render(row["messages"])
    except TemplateError as error:
        return {"id": row["id"], "tokens": [], "error": str(error)}
    scale = np.asarray([message.get("weight", 1.0) for message in row["messages"]] + [1.0], np.float32)
    weights = token_weights(
        objective,
        source=row["source"],
        roles=rendered.roles,
        turns=rendered.turns,
        scale=scale[rendered.turns],
        weight=row.get("weight"),
    )
    weights[:1] = 0
    tokens, shown = [], 0
    for token, (start, stop), role, weight in zip(rendered.ids, rendered.spans, rendered.roles, weights, strict=True):
        text = rendered.text[max(int(start), shown) : int(stop)]
        shown = max(shown, int(stop))
        tokens.append({"id": int(token), "text": text, "role": ROLE_NAMES[role], "weight": round(float(weight), 6)})
    return {"id": row["id"], "tokens": tokens}


def to_terminal(entries: Iterable[Mapping[str, Any]], console: Console) -> None:
    """Roles as colours, weight as intensity; what carries loss is underlined, so that it shows without colours too."""
    from rich.text import Text

    many = console.color_system in ("truecolor", "256")
    legend = Text("  ").join(Text(role, style=_style(role, 1, many)) for role in ROLE_NAMES)
    console.print(legend, Text("  faint: weight 0, underlined: in the loss"), sep="", end="\n\n", soft_wrap=True)
    for entry in entries:
        trained = sum(token["weight"] > 0 for token in entry["tokens"])
        console.print(Text(f"{entry['id']}: {trained} of {len(entry['tokens'])} tokens in the loss", style="bold"))
        line = Text(_visible(str(entry.get("error", ""))), style="red")
        for token in entry["tokens"]:
            underline = " underline" if token["weight"] > 0 else ""
            line.append(_visible(token["text"]), style=_style(token["role"], token["weight"], many) + underline)
        console.print(line, soft_wrap=True, end="\n\n")


def _style(role: str, weight: float, many_colours: bool) -> str:
    if not many_colours:
        return NAMED[role] + (" dim" if weight < 1 else "")
    return f"rgb({','.join(str(round(c * _intensity(weight))) for c in COLOURS[role])})"


def to_html(entries: Iterable[Mapping[str, Any]]) -> str:
    """A page of its own. Pointing at a token shows id, role and weight."""
    parts = [_HEAD, "<p>", *(f'<span class="{role} k">{role}</span> ' for role in ROLE_NAMES), "</p>"]
    for entry in entries:
        trained = sum(token["weight"] > 0 for token in entry["tokens"])
        parts.append(f"<h2>{html.escape(str(entry['id']))}</h2>")
        parts.append(f"<p>{trained} of {len(entry['tokens'])} tokens in the loss</p>")
        if "error" in entry:
            parts.append(f'<p class="error">{html.escape(str(entry["error"]))}</p>')
        parts.append("<pre>")
        for token in entry["tokens"]:
            title = html.escape(f"{token['id']} {token['role']} {token['weight']:g}")
            mark = " t" if token["weight"] > 0 else ""
            parts.append(
                f'<span class="{html.escape(token["role"])}{mark}" style="--w:{_intensity(token["weight"]):.3f}" '
                f'title="{title}">{html.escape(_visible(token["text"]))}</span>'
            )
        parts.append("</pre>")
    return "".join([*parts, "</body></html>\n"])


def _intensity(weight: float) -> float:
    return FAINT + (1 - FAINT) * min(max(weight, 0.0), 1.0)


def _visible(text: str) -> str:
    """Newlines stay, with a sign; other control, formatting and lone surrogate characters are written as escapes."""
    return "".join(_sign(char) for char in text)


def _sign(char: str) -> str:
    if char == "\n":
        return "↵\n"
    if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return f"\\u{{{ord(char):x}}}"
    return char


_RULES = "".join(
    f".{role}{{background:rgb({','.join(map(str, colour))},calc(var(--w)*.55))}}" for role, colour in COLOURS.items()
)
_HEAD = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Token weights</title><style>
body{{font:16px/1.5 system-ui,sans-serif;margin:2rem;max-width:70rem;color-scheme:light dark}}
h2{{font-size:1rem;margin-bottom:0}} pre{{white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.9}}
span{{padding:.1em 0;unicode-bidi:isolate}} .k{{--w:1;padding:.1em .5em}} .t{{border-bottom:2px solid}}
.error{{color:#c0392b}} {_RULES}
</style></head><body><h1>Token weights</h1>
<p>Colour is the role, strength the weight; what carries loss is underlined.</p>"""
