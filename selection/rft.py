"""Which correct solutions of one problem are worth keeping: those that compute something else (RFT, 2308.01825).

A solution's key is the list of its equations without white space. Among solutions with one key the text farthest from
the texts already kept wins, by the sum of edit distances. The gold is always kept, so a solution with the gold's
equations is a duplicate of it. A solution with an equation that does not hold is dropped although its answer is right.

Equations are the calculator marks `<<48/2=24>>` where a text has them, and arithmetic written out ("48 / 2 = 24")
otherwise, since an instruct model writes no marks. Marks are checked within 1e-3, as in the released code; arithmetic
in prose within half a unit of the last place shown, because people round there.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Sequence

TOLERANCE = 1e-3

_MARK = re.compile(r"<<([^<>=]+)=([^<>=]+)>>")
_NUMBER = r"\(*\s*[$€£]?\s*\d[\d,]*(?:\.\d+)?%?\s*\)*"
_PROSE = re.compile(
    rf"({_NUMBER}(?:\s*[-+*/x×÷]\s*{_NUMBER})+)\s*=\s*[$€£]?\s*(-?\d[\d,]*(?:\.\d+)?)(?!\s*[-+*/x×÷(]\s*[\d(])"
)
_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def equations(text: str) -> tuple[tuple[str, str, bool], ...]:
    """(left, right, marked) in the order of the text."""
    if marks := _MARK.findall(text):
        return tuple((_tight(left), _tight(right), True) for left, right in marks)
    return tuple((_tight(left), _tight(right), False) for left, right in _PROSE.findall(text))


def key(text: str) -> tuple[str, ...]:
    """What makes two solutions the same."""
    return tuple(f"{left}={right}" for left, right, _ in equations(text))


def wrong_equation(text: str) -> str:
    """The first equation that does not hold or cannot be computed; empty if all hold."""
    for left, right, marked in equations(text):
        result, said = arithmetic(left), arithmetic(right)
        if result is None or said is None:
            return f"{left}={right}"
        places = len(right.partition(".")[2])
        allowed = TOLERANCE if marked else max(TOLERANCE, 0.5 * 10.0**-places + 1e-9)
        if abs(result - said) > allowed:
            return f"{left}={right}"
    return ""


def distinct(gold: str, solutions: Sequence[str]) -> list[int]:
    """Indices of the solutions to keep beside the gold, ascending."""
    from rapidfuzz.distance import Levenshtein

    groups: dict[tuple[str, ...], list[int]] = {}
    for index, text in enumerate(solutions):
        groups.setdefault(key(text), []).append(index)
    groups.pop(key(gold), None)
    kept: list[int] = []
    for indices in groups.values():
        texts = [gold, *(solutions[i] for i in kept)]
        # `max` takes the first of equals, so the order of draws decides and nothing else.
        kept.append(max(indices, key=lambda i: sum(Levenshtein.distance(solutions[i], text) for text in texts)))
    return sorted(kept)


def arithmetic(expression: str) -> float | None:
    """The value of + - * / and parentheses over numbers; None for anything else."""
    plain = re.sub(r"(\d)%", r"\1/100", re.sub(r"[$€£,]", "", expression)).replace("×", "*").replace("x", "*")
    if len(plain) > 200:
        return None
    try:
        return _value(ast.parse(plain.replace("÷", "/").strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError, RecursionError):
        return None


def _value(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as value) if math.isfinite(value):
            return float(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left), _value(right))
    raise ValueError("no arithmetic")


def _tight(text: str) -> str:
    return "".join(text.split())
