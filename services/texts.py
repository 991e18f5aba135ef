"""How values look: for people, in any of the forms of a report, and in the terminal."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable
from typing import Any

UNKNOWN = "–"

TEXT = 180
"""Characters of a row's text that are shown in a table or beside a point."""


def cut(text: str, length: int = TEXT) -> str:
    """The beginning of a text, white space folded; what is left out is shown by an ellipsis."""
    folded = " ".join(text.split())
    return folded if len(folded) <= length else folded[: length - 1] + "…"


def ends(text: str, length: int) -> str:
    """Beginning and end of a name: names of arms begin alike and differ at the end, tasks the other way about."""
    tail = length // 2
    return text if len(text) <= length else f"{text[: length - 1 - tail]}…{text[-tail:]}"


def told_apart(arms: Iterable[str]) -> dict[str, str]:
    """Names of arms without the settings that all of them have."""
    settings = {arm: re.split(r",(?=[\w.]+=)", arm) for arm in arms}
    shared = set.intersection(*map(set, settings.values())) if len(settings) > 1 else set()
    return {arm: ",".join(word for word in words if word not in shared) or arm for arm, words in settings.items()}


def number(value: Any, digits: int = 3) -> str:
    """Three decimals (more for small values); a dash for what is not known. Whole numbers with separators."""
    if value is None or value != value:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.{digits}f}" if value == 0 or abs(value) >= 10**-digits else f"{value:.1e}"
    return str(value)


def p_value(value: Any) -> str:
    """Three decimals; what is smaller is said to be."""
    if value is None or value != value:
        return UNKNOWN
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def signed(value: Any) -> str:
    """Three decimals with a sign."""
    if value is None or value != value:
        return UNKNOWN
    if abs(value) < 0.0005:
        return "0.000" if value == 0 else "±0.000"
    return f"{value:+.3f}".replace("-", "\u2212")


def percent(value: Any) -> str:
    """A share of one as percent."""
    return UNKNOWN if value is None or value != value else f"{100 * value:.1f}%"


def between(low: Any, high: Any) -> str:
    """An interval of a score."""
    return UNKNOWN if low is None or high is None or low != low else f"{number(float(low))} to {number(float(high))}"


def signed_between(low: Any, high: Any) -> str:
    """An interval of a difference."""
    return UNKNOWN if low is None or high is None or low != low else f"{signed(low)} to {signed(high)}"


def duration(seconds: Any) -> str:
    """Seconds as people say them."""
    if seconds is None or seconds != seconds:
        return UNKNOWN
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def moment(seconds: Any) -> str:
    """A time in UTC."""
    if not seconds:
        return UNKNOWN
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
