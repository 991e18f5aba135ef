"""What the arms of a sweep say together: laws over amounts, guesses of untried arms, and how far either may be trusted.

A law is fitted for each score over each number that was varied, if four amounts or more were tried; a search also gets
a surrogate over its space. Both come with a check on what they were not fitted to, and say so when it fails.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from cuvee.amounts import Amount
from cuvee.errors import UserError
from cuvee.rng import stream
from services.search import lower_is_better
from services.space import Dimension, Space, said

POINTS = 40
"""Points of a curve's band."""
TRUSTED = 0.3
"""R² of arms left out in turn below which the surrogate is no better than even points."""
CANDIDATES = 1024


def number(setting: Any) -> float | None:
    """The number that a setting says: `0.1`, `1/256`, `all`, `500 rows`; None for a word."""
    text = str(setting).strip()
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        pass
    try:
        return float(Amount.parse(text).value)
    except UserError:
        return None


def law(x: Sequence[float], y: Sequence[float], metric: str, name: str = "") -> dict[str, Any] | None:
    """The power law with its band over the range of x and its check; None for fewer than four amounts."""
    from evaluation.statistics import scaling

    positive = lower_is_better(metric)
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if a > 0 and math.isfinite(b)]
    if not pairs:
        return None
    xs, ys = [p[0] for p in pairs], [p[1] for p in pairs]
    found = scaling.fit(xs, ys, stream(0, "law", metric, name), positive=positive)
    if found is None:
        return None
    check = scaling.held_out(xs, ys, stream(0, "law check", metric, name), positive=positive)
    line = [min(xs) * (max(xs) / min(xs)) ** (i / (POINTS - 1)) for i in range(POINTS)]
    low, high = found.band(line)
    return {
        "offset": found.offset,
        "scale": found.scale,
        "exponent": found.exponent,
        "r2": found.r2,
        "sd": found.sd,
        "n": found.n,
        "x": line,
        "y": [float(v) for v in found.at(line)],
        "low": [float(v) for v in low],
        "high": [float(v) for v in high],
        "check": None if check is None else dict(check.__dict__),
        "fit": found,
    }


def plainly(found: Mapping[str, Any]) -> dict[str, Any]:
    """A law without what cannot be written as JSON."""
    return {k: v for k, v in found.items() if k != "fit"}


def space_of(recipe: Mapping[str, Any]) -> Space:
    """The space of a stored recipe's search."""
    written = recipe["arms"]["search"]["space"]
    return Space({name: Dimension.model_validate(dimension) for name, dimension in written.items()})


def finished(search: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The arms that have all scores."""
    return [a for a in search["arms"] if a["status"] == "finished" and all(m in a["scores"] for m in search["metrics"])]


def next_arms(search: Mapping[str, Any], space: Space, seed: int, count: int = 3) -> dict[str, Any]:
    """Arms to try next, each with what is expected of it, and how sure that is.

    With several metrics the sum of all is guessed, each scaled to the range that was seen. Where the guesses do not
    hold for arms left out in turn, even points of the space are proposed instead, and nothing is expected of them.
    """
    import numpy as np

    from evaluation.statistics.surrogate import LEAST, Surrogate

    tried = {said(arm["values"]) for arm in search["arms"]}
    even = [p for p in space.design(min(CANDIDATES, len(tried) + 256), seed) if said(space.values(p)) not in tried]
    arms = finished(search)
    guess: dict[str, Any] = {"arms": [], "trust": None, "sure": ""}
    if len(arms) < LEAST:
        guess["sure"] = f"{len(arms)} finished arms are too few for a guess: even points of the space"
    else:
        points = np.array([arm["point"] for arm in arms])
        cost = {m: np.array([a["scores"][m] for a in arms]) * _sign(m, search) for m in search["metrics"]}
        scaled = [(v - v.min()) / (float(np.ptp(v)) or 1.0) for v in cost.values()]
        model = Surrogate(points, np.sum(scaled, axis=0), seed)
        trust = model.trust()
        guess["trust"] = dict(trust.__dict__)
        guess["sure"] = (
            f"over {trust.n} arms left out in turn the guesses have R² {trust.r2:.2f}, "
            f"and {trust.covered:.0%} of the arms are inside their 90% intervals"
        )
        if trust.r2 >= TRUSTED and even:
            gain, chance = model.improvement(np.array(even))
            each = {m: Surrogate(points, values, seed) for m, values in cost.items()}
            for i in _apart(np.array(even), gain, count):
                expected = {}
                for m, surrogate in each.items():
                    mean, sd = surrogate.guess(np.array([even[i]]))
                    expected[m] = {"mean": float(mean[0]) * _sign(m, search), "sd": float(sd[0])}
                guess["arms"].append(
                    {"values": space.values(even[i]), "chance": float(chance[i]), "expected": expected}
                )
            return guess
        guess["sure"] += "; that is too little to go by: even points of the space"
    guess["arms"] = [{"values": space.values(p), "chance": None, "expected": {}} for p in even[:count]]
    return guess


def _sign(metric: str, search: Mapping[str, Any]) -> float:
    return 1.0 if metric in search["lower"] else -1.0


def _apart(points: Any, gain: Any, count: int) -> list[int]:
    """The points of most expected gain that are not next to each other."""
    import numpy as np

    chosen: list[int] = []
    for i in np.argsort(-gain, kind="stable"):
        if all(np.abs(points[i] - points[j]).max() > 0.1 for j in chosen):
            chosen.append(int(i))
        if len(chosen) == count:
            break
    return chosen
