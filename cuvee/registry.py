"""Names for selectors, judges, tasks, policies and objectives.

A registry is filled by decorators beside the code, and by entry points of the group `cuvee.<kind>`, so that users
add their own without a fork. Entry points are read at the first look-up, not at import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from cuvee.errors import UserError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """A mapping from a recipe's word to the thing that it names. `kind` is singular, e.g. "judge"."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator. Raises ValueError when the name is taken."""

        def add(item: T) -> T:
            if name in self._items:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._items[name] = item
            return item

        return add

    def __getitem__(self, name: str) -> T:
        self._load()
        try:
            return self._items[name]
        except KeyError:
            raise UserError(f"unknown {self.kind} {name!r}", remedy=nearest(name, self._items)) from None

    def __contains__(self, name: str) -> bool:
        self._load()
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted(self._items))

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        for point in entry_points(group=f"cuvee.{self.kind}"):
            if point.name in self._items:
                raise UserError(f"{self.kind} {point.name!r} of {point.value} is already registered")
            self._items[point.name] = point.load()
