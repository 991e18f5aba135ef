"""How every figure of a report is made: one palette, no colour without a second sign, texts escaped.

Plotly reads `<b>` or `<a href>` in names and hover texts as markup, so every text from data goes through `plain`.
Fonts, grids and backgrounds are set in the browser, since they follow the reader's light or dark setting; the palette
is legible on both (3:1 and more, which a test computes).
"""

from __future__ import annotations

import html
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from services.texts import cut, ends

PALETTE = (
    "#2f7fd1", "#d4600a", "#0a8a62", "#a65cc0", "#d1445a", "#1590a8", "#a36f2c", "#7c8a12", "#d1579b", "#7b8290",
)  # fmt: skip
GREY = PALETTE[-1]
GOOD, BAD = PALETTE[2], PALETTE[4]
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x", "star", "hexagon", "triangle-down", "pentagon")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
NAME = 26
"""Characters of a name on an axis; the whole name is in the hover text."""
LEGEND = 12
"""Entries of a legend, at most; the names of the others are in the hover texts."""

Trace = dict[str, Any]


def plain(text: Any, length: int = 200) -> str:
    """A text from data as Plotly shows it letter by letter."""
    return html.escape(cut(str(text), length), quote=False)


def wrapped(text: str, width: int = 60) -> str:
    """A hover text in lines."""
    lines, line = [], ""
    for word in text.split():
        for piece in (word[i : i + width] for i in range(0, len(word), width)):
            if line and len(line) + len(piece) >= width:
                lines.append(line)
                line = piece
            else:
                line = f"{line} {piece}".strip()
    return "<br>".join(html.escape(part, quote=False) for part in [*lines, line])


def looks(number: int) -> dict[str, str]:
    """Colour, symbol and dash of the n-th series."""
    return {
        "color": PALETTE[number % (len(PALETTE) - 1)],
        "symbol": SYMBOLS[number % len(SYMBOLS)],
        "dash": DASHES[number % len(DASHES)],
    }


def bars(name: str, values: Sequence[float | None], names: Sequence[str], color: str, pattern: str, said: str) -> Trace:
    """Horizontal bars, one a name; `said` is how the hover text shows the value."""
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "x": list(values),
        "y": list(range(len(values))),
        "marker": {"color": color, "pattern": {"shape": pattern}},
        "text": [plain(text) for text in names],
        "textposition": "none",
        "hovertemplate": f"%{{text}}<br>{name}: {said}<extra></extra>",
    }


def names_axis(names: Iterable[str]) -> dict[str, Any]:
    """A vertical axis of names from the top down. Positions are numbers, so that two names cut alike stay two."""
    listed = list(names)
    return {
        "tickvals": list(range(len(listed))),
        "ticktext": [plain(ends(name, NAME)) for name in listed],
        "range": [len(listed) - 0.4, -0.6],
        "automargin": True,
        "zeroline": False,
        "fixedrange": True,
    }


class Figures:
    """The figures of one report. Each is checked by Plotly when it is added; the page draws them by their name."""

    def __init__(self) -> None:
        self.made: dict[str, dict[str, Any]] = {}
        self._numbers = itertools.count(1)

    def add(
        self, caption: str, alt: str, data: list[Trace], layout: Mapping[str, Any], *, height: int = 320
    ) -> dict[str, Any]:
        """`caption` is shown below, `alt` is what a screen reader says instead of the picture.

        `height` is in pixels. On a phone the entries of a long legend stand in a column, for which `legend` is added.
        """
        import plotly.graph_objects as go

        several = sum(trace.get("showlegend", True) and bool(trace.get("name")) for trace in data)
        basic: dict[str, Any] = {"template": "none", "showlegend": 1 < several <= LEGEND, "hovermode": "closest"}
        basic["legend"] = {"traceorder": "normal"}
        figure = go.Figure(data=data, layout={**basic, **layout})
        name = f"chart-{next(self._numbers)}"
        self.made[name] = {
            "name": name,
            "caption": caption,
            "alt": alt,
            "height": height,
            "legend": 17 * several if 3 < several <= LEGEND else 0,
            **json.loads(figure.to_json()),
        }
        return self.made[name]


def horizontal(rows: int) -> int:
    """The height of a figure with so many rows of names."""
    return 110 + 24 * rows
