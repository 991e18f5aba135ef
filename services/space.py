"""The space of a search: which keys vary, and over what.

    k: {choice: [none, 1/16, 1/4]}            one of these
    train.lr: {loguniform: [1e-5, 1e-3]}      evenly in the logarithm
    chat: {uniform: [40 rows, 240 rows]}      bounds are written like the values: amounts stay amounts
    shares: {simplex: [math, code, chat], total: 240 rows}     a name of its own; it sets the three keys

Every dimension reads coordinates of the unit cube, so that one low-discrepancy sequence or one sampler serves all. What
comes out is rounded before it is hashed: numbers to 6 significant digits, shares to 6 decimals, rows and tokens whole.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from pydantic import Field, model_validator

from cuvee.amounts import Amount
from cuvee.config import Config
from cuvee.errors import UserError

WORDS = ("choice", "uniform", "loguniform", "simplex")
DIGITS = 6


class Dimension(Config):
    """One of `choice`, `uniform`, `loguniform`, `simplex`."""

    choice: list[Any] | dict[str, Any] | None = Field(default=None, description="values; a map names them")
    uniform: tuple[Any, Any] | None = Field(default=None, description="[low, high]; whole bounds give whole numbers")
    loguniform: tuple[Any, Any] | None = Field(default=None, description="[low, high], both above zero")
    simplex: tuple[str, ...] | None = Field(default=None, description="keys that get shares, which sum to one")
    total: Amount | None = Field(default=None, description="what a simplex shares out, in rows or tokens")
    floor: float = Field(default=0.0, ge=0, lt=1, description="least share of each key of a simplex")

    @model_validator(mode="after")
    def _one(self) -> Dimension:
        given = [word for word in WORDS if getattr(self, word) is not None]
        if len(given) != 1:
            raise ValueError(f"write exactly one of {', '.join(WORDS)}")
        if self.simplex is None and (self.total is not None or self.floor):
            raise ValueError("`total` and `floor` belong to a simplex")
        if self.choice is not None and not self.choice:
            raise ValueError("choice has no values")
        if self.simplex is not None:
            self._check_simplex(self.simplex)
        if bounds := self.uniform or self.loguniform:
            low, high = (_size(bound) for bound in bounds)
            if _kind(bounds[0]) != _kind(bounds[1]) and 0 not in (low, high):
                raise ValueError(f"{bounds[0]} and {bounds[1]} count different things")
            if not low < high:
                raise ValueError(f"the lower bound {bounds[0]} is not below {bounds[1]}")
            if self.loguniform and low <= 0:
                raise ValueError("loguniform needs bounds above zero")
        return self

    def _check_simplex(self, keys: tuple[str, ...]) -> None:
        if len(keys) < 2:
            raise ValueError("a simplex over one source has nothing to share out: name two keys or more")
        if len(set(keys)) != len(keys):
            raise ValueError("a simplex names a key twice")
        if self.floor * len(keys) >= 1:
            raise ValueError(f"floors of {self.floor} for {len(keys)} keys leave nothing to share out")
        if self.total is not None and self.total.kind not in ("rows", "tokens"):
            raise ValueError("the total of a simplex is a number of rows or tokens")

    @property
    def width(self) -> int:
        """Coordinates that it reads."""
        return len(self.simplex) if self.simplex else 1

    @property
    def options(self) -> list[tuple[str | None, Any]]:
        """(name, value) of each choice."""
        if isinstance(self.choice, dict):
            return list(self.choice.items())
        return [(None, value) for value in self.choice or ()]

    def values(self, key: str, point: Sequence[float]) -> dict[str, Any]:
        """What the coordinates set: key to value."""
        if self.choice is not None:
            options = self.options
            return {key: options[min(int(point[0] * len(options)), len(options) - 1)][1]}
        if self.simplex:
            return self._shares(point)
        bounds = self.uniform or self.loguniform
        assert bounds is not None
        return {key: _between(bounds, point[0], log=self.loguniform is not None)}

    def _shares(self, point: Sequence[float]) -> dict[str, Any]:
        from evaluation.statistics.simplex import simplex
        from selection.sampling import apportion

        assert self.simplex is not None
        shares = simplex([point], self.floor)[0]
        units = int(self.total.value) if self.total else 10**DIGITS
        parts = [int(part) for part in apportion(shares, [units] * len(shares), units)]
        said = [f"{part} {self.total.kind}" for part in parts] if self.total else [part / units for part in parts]
        return dict(zip(self.simplex, said, strict=True))


class Space:
    """Dimensions side by side. A point has `width` coordinates, in the order written."""

    def __init__(self, dimensions: Mapping[str, Dimension]) -> None:
        self.dimensions = dict(dimensions)
        self.width = sum(dimension.width for dimension in self.dimensions.values())

    @property
    def keys(self) -> list[str]:
        """The keys that are set."""
        return [key for name, d in self.dimensions.items() for key in (d.simplex or (name,))]

    @property
    def size(self) -> float:
        """How many different arms there are; infinite where something is continuous."""
        return math.prod(len(d.options) if d.choice is not None else math.inf for d in self.dimensions.values())

    def parts(self, point: Sequence[float]) -> Iterable[tuple[str, Dimension, Sequence[float]]]:
        """Each dimension with its coordinates."""
        start = 0
        for name, dimension in self.dimensions.items():
            yield name, dimension, point[start : start + dimension.width]
            start += dimension.width

    def values(self, point: Sequence[float]) -> dict[str, Any]:
        """The settings of an arm."""
        return {key: value for name, d, part in self.parts(point) for key, value in d.values(name, part).items()}

    def design(self, count: int, seed: int) -> list[list[float]]:
        """The first points of the space's low-discrepancy sequence that are different arms: `count`, or all there are.

        More of them begin with these, so that a search can be continued.
        """
        from cuvee.rng import stream
        from evaluation.statistics.simplex import sobol

        wanted = int(min(count, self.size))
        found: dict[str, list[float]] = {}
        tried = max(64, 2 * wanted)
        while True:
            for point in sobol(tried, self.width, stream(seed, "search", "design")):
                exact = [float(u) for u in point]
                found.setdefault(said(self.values(exact)), exact)
            if len(found) >= wanted or tried > 64 * wanted + 4096:
                return list(found.values())[:wanted]
            tried *= 4


def said(values: Mapping[str, Any]) -> str:
    """Settings as one text, by which two arms are the same."""
    return json.dumps(values, sort_keys=True, default=str)


def _between(bounds: tuple[Any, Any], u: float, *, log: bool) -> Any:
    low, high = (_size(bound) for bound in bounds)
    value = math.exp(math.log(low) + u * (math.log(high) - math.log(low))) if log else low + u * (high - low)
    kind = _kind(bounds[0]) if low else _kind(bounds[1])
    if kind == "whole":
        return round(value) if log else min(int(low + u * (high - low + 1)), int(high))
    if kind == "number":
        return float(f"{value:.{DIGITS}g}")
    if kind in ("rows", "tokens"):
        return f"{round(value)} {kind}"
    return f"{_plain(100 * value, 4)}%" if kind == "fraction" else f"{_plain(value, 4)}x"


def _plain(value: float, decimals: int) -> str:
    text = f"{value:.{decimals}f}".rstrip("0").rstrip(".")
    return text or "0"


def _kind(bound: Any) -> str:
    """`whole`, `number`, or what an amount counts."""
    if isinstance(bound, int) and not isinstance(bound, bool):
        return "whole"
    if isinstance(bound, float):
        return "number"
    return Amount.parse(bound).kind


def _size(bound: Any) -> float:
    if isinstance(bound, bool):
        raise ValueError(f"{bound} is no bound")
    if isinstance(bound, int | float):
        return float(bound)
    try:
        return float(Fraction(Amount.parse(bound).value))
    except UserError as error:
        raise ValueError(str(error)) from None
