"""Errors that people can act on: what is wrong, where, and what to do.

`UserError` ends a command with exit code 2, every other `CuveeError` with 1. Messages never contain a stack trace.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CuveeError(Exception):
    """Something that Cuvee could not do. `remedy` says what to do about it."""

    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} ({self.remedy})" if self.remedy else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only fields would be lost when a Ray worker sends the error to the driver.
        return _rebuild, (type(self), self.args, dict(self.__dict__))


def _rebuild(kind: type[CuveeError], args: tuple[object, ...], state: dict[str, object]) -> CuveeError:
    error = kind.__new__(kind)
    Exception.__init__(error, *args)
    error.__dict__.update(state)
    return error


class UserError(CuveeError):
    """The input, the recipe or the machine is not as it must be, and the user can change that."""

    exit_code = 2


class RecipeError(UserError):
    """A recipe that cannot be read. `path` is the YAML file, `line` its 1-based line, `field` the dotted key."""

    def __init__(self, message: str, *, path: str = "", line: int = 0, field: str = "", remedy: str = "") -> None:
        super().__init__(_located(message, path, line, field), remedy=remedy)
        self.path, self.line, self.field = path, line, field


class DataError(UserError):
    """Data that cannot be used. `path` is the file, `line` its 1-based line, `field` the column."""

    def __init__(self, message: str, *, path: str = "", line: int = 0, field: str = "", remedy: str = "") -> None:
        super().__init__(_located(message, path, line, field), remedy=remedy)
        self.path, self.line, self.field = path, line, field


class TemplateError(UserError):
    """A chat template whose spans cannot be proven; `turn` is the index of the message, -1 if none."""

    def __init__(self, message: str, *, turn: int = -1, remedy: str = "") -> None:
        super().__init__(message if turn < 0 else f"message {turn}: {message}", remedy=remedy)
        self.turn = turn


class MissingError(UserError):
    """A package, model, data set or setting that is needed and not there; the remedy is the command that brings it."""


class Unavailable(CuveeError):
    """An outside system (engine, endpoint, tracking server, cluster) that does not answer."""


def _located(message: str, path: str, line: int, field: str) -> str:
    place = f"{path}:{line}" if path and line else path
    prefix = ": ".join(part for part in (place, field) if part)
    return f"{prefix}: {message}" if prefix else message


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint such as ` (did you mean "kmq"?)`, or the list of what is known when nothing is near."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f'did you mean "{close[0]}"?'
    return "known: " + ", ".join(names) if names else ""
