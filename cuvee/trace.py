"""Text that remembers which message each of its characters came from.

A chat template joins, strips, splits and slices the contents of messages. `Traced` is a `str` that carries its origin
through these operations, so that one rendering yields the text and the place of every message in it. It equals the
plain text, so a template takes the same branches. Looking for the message in the rendered text instead would be a
guess: "user" may be a header or somebody's whole message.

An operation that is not followed returns plain text. The message then seems to be missing from the rendering, and
`cuvee.chat` refuses it: losing the trace can never give a wrong mask in silence.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, SupportsIndex


class Run(NamedTuple):
    """Characters [start, stop) of the text came from characters [a, b) of message `turn`.

    With equal lengths they correspond one to one; otherwise the stretch was rewritten as a whole and is not divided.
    """

    start: int
    stop: int
    turn: int
    a: int
    b: int

    @property
    def rewritten(self) -> bool:
        return self.stop - self.start != self.b - self.a


class Traced(str):
    """A string with the origin of its characters; what no run covers was written by the template."""

    runs: tuple[Run, ...]

    def __new__(cls, text: str, runs: Iterable[Run] = ()) -> Traced:
        traced = super().__new__(cls, text)
        traced.runs = tuple(runs)
        return traced

    @classmethod
    def of(cls, text: str, turn: int) -> Traced:
        """The content of message `turn`."""
        return cls(text, (Run(0, len(text), turn, 0, len(text)),) if text else ())

    def cut(self, start: int, stop: int) -> Traced:
        """The characters [start, stop)."""
        runs = []
        for run in self.runs:
            s, e = max(start, run.start), min(stop, run.stop)
            if s < e and run.rewritten:
                runs.append(Run(s - start, e - start, run.turn, run.a, run.b))
            elif s < e:
                a = run.a + s - run.start
                runs.append(Run(s - start, e - start, run.turn, a, a + e - s))
        return Traced(str.__getitem__(self, slice(start, stop)), runs)

    def rewritten(self, text: str) -> str:
        """`text` as what has become of this whole string; plain text if it came from several messages or from none."""
        turns = {run.turn for run in self.runs}
        if len(turns) != 1 or not text:
            return text
        a, b = min(run.a for run in self.runs), max(run.b for run in self.runs)
        return Traced(text, (Run(0, len(text), self.runs[0].turn, a, b),))

    # Jinja calls str() on everything that it prints.
    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> str:
        return concat((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return concat((other, self)) if isinstance(other, str) else NotImplemented

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            return self.cut(start, max(start, stop)) if step == 1 else str.__getitem__(self, key)
        at = operator.index(key)
        at += len(self) if at < 0 else 0
        if not 0 <= at < len(self):
            raise IndexError("string index out of range")
        return self.cut(at, at + 1)

    def __iter__(self) -> Iterator[str]:
        return (self.cut(i, i + 1) for i in range(len(self)))

    def join(self, parts: Iterable[str], /) -> str:
        return join(self, parts)

    def lstrip(self, chars: str | None = None, /) -> str:
        return self.cut(len(self) - len(str.lstrip(self, chars)), len(self))

    def rstrip(self, chars: str | None = None, /) -> str:
        return self.cut(0, len(str.rstrip(self, chars)))

    def strip(self, chars: str | None = None, /) -> str:
        start = len(self) - len(str.lstrip(self, chars))
        return self.cut(start, max(start, len(str.rstrip(self, chars))))

    def removeprefix(self, prefix: str, /) -> str:
        return self.cut(len(self) - len(str.removeprefix(self, prefix)), len(self))

    def removesuffix(self, suffix: str, /) -> str:
        return self.cut(0, len(str.removesuffix(self, suffix)))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._located(str.split(self, sep, maxsplit), len(sep or ""))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._located(str.rsplit(self, sep, maxsplit), len(sep or ""))

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        head, middle, tail = self._located(str.partition(self, sep), 0)
        return head, middle, tail

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        head, middle, tail = self._located(str.rpartition(self, sep), 0)
        return head, middle, tail

    def splitlines(self, keepends: bool = False) -> list[str]:
        whole = self._located(str.splitlines(self, True), 0)
        return whole if keepends else [line[: len(str.splitlines(line)[0])] for line in whole]

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        if not old:
            return str.replace(self, old, new, count)
        parts: list[str] = []
        at = 0
        for piece in self.split(old, count):
            parts += [self.cut(at - len(old), at).rewritten(new)] if at else []
            parts.append(piece)
            at += len(piece) + len(old)
        return concat(parts)

    def _located(self, pieces: Iterable[str], gap: int) -> list[str]:
        """Pieces in their order; `gap` characters lie between two of them (0: find them, they start with no space)."""
        found: list[str] = []
        at = 0
        for piece in pieces:
            start = at if gap else str.find(self, piece, at)
            found.append(self.cut(start, start + len(piece)))
            at = start + len(piece) + gap
        return found


def concat(parts: Iterable[str]) -> str:
    """The parts joined, with their origins."""
    parts = list(parts)
    runs: list[Run] = []
    at = 0
    for part in parts:
        if isinstance(part, Traced):
            runs += [Run(run.start + at, run.stop + at, run.turn, run.a, run.b) for run in part.runs]
        at += len(part)
    text = "".join(parts)
    return Traced(text, runs) if runs else text


def join(separator: str, parts: Iterable[str]) -> str:
    """`separator.join(parts)` with origins."""
    joined: list[str] = []
    for part in parts:
        joined += [separator, part] if joined else [part]
    return concat(joined)


def _rewriting(name: str) -> Callable[..., str]:
    plain = getattr(str, name)

    def method(self: Traced, *args: Any, **kwargs: Any) -> str:
        return self.rewritten(plain(self, *args, **kwargs))

    method.__name__ = name
    return method


for _name in ("capitalize", "casefold", "expandtabs", "lower", "swapcase", "title", "translate", "upper"):
    setattr(Traced, _name, _rewriting(_name))
