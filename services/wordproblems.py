"""Short arithmetic word problems with one-line solutions, for a model of 135M parameters.

GSM8K's problems are out of reach for it (3 of 64); one or two operations on small numbers are not, so that selection
and response policies have something to tell apart. Eight situations, and numbers that keep every step a positive whole
number.
"""

from __future__ import annotations

import random
from collections.abc import Callable

_NAMES = [
    "Ana",
    "Ben",
    "Chen",
    "Dora",
    "Emil",
    "Fatima",
    "Goran",
    "Hana",
    "Ivan",
    "Jun",
    "Kofi",
    "Lena",
    "Mira",
    "Nils",
    "Olga",
    "Pablo",
]
_THINGS = [
    "apples",
    "books",
    "coins",
    "stones",
    "letters",
    "tickets",
    "shells",
    "pencils",
    "stamps",
    "marbles",
    "eggs",
    "cards",
]
_BOXES = ["boxes", "bags", "baskets", "shelves", "drawers", "jars"]

Problem = tuple[str, str, int]
"""Question, worked solution without the final line, answer."""


def problem(draw: random.Random) -> Problem:
    """A problem from the generator's next numbers."""
    a, b = draw.sample(_NAMES, 2)
    return draw.choice(_SITUATIONS)(draw, a, b, draw.choice(_THINGS))


def _more(r: random.Random, a: str, _: str, t: str) -> Problem:
    x, y = r.randint(2, 60), r.randint(2, 40)
    return f"{a} has {x} {t} and finds {y} more. How many {t} does {a} have now?", f"{x} + {y} = {x + y}", x + y


def _fewer(r: random.Random, a: str, b: str, t: str) -> Problem:
    x = r.randint(10, 80)
    y = r.randint(2, x - 2)
    return f"{a} has {x} {t} and gives {y} of them to {b}. How many {t} are left?", f"{x} - {y} = {x - y}", x - y


def _boxes(r: random.Random, a: str, _: str, t: str) -> Problem:
    x, y, box = r.randint(2, 12), r.randint(2, 12), r.choice(_BOXES)
    return f"{a} fills {x} {box} with {y} {t} each. How many {t} is that?", f"{x} * {y} = {x * y}", x * y


def _share(r: random.Random, a: str, _: str, t: str) -> Problem:
    x, y, box = r.randint(2, 12), r.randint(2, 12), r.choice(_BOXES)
    question = f"{a} puts {x * y} {t} into {x} {box}, the same number in each. How many {t} are in one?"
    return question, f"{x * y} / {x} = {y}", y


def _together(r: random.Random, a: str, b: str, t: str) -> Problem:
    x, y = r.randint(2, 40), r.randint(2, 20)
    question = f"{a} has {x} {t}. {b} has {y} {t} more than {a}. How many {t} do they have together?"
    return question, f"{b} has {x} + {y} = {x + y}. {x} + {x + y} = {2 * x + y}", 2 * x + y


def _price(r: random.Random, a: str, _: str, t: str) -> Problem:
    x, y = r.randint(2, 9), r.randint(2, 9)
    z = x * y + r.randint(1, 40)
    question = f"{a} buys {x} {t} for {y} dollars each and pays with {z} dollars. How many dollars come back?"
    return question, f"{x} * {y} = {x * y}. {z} - {x * y} = {z - x * y}", z - x * y


def _twice(r: random.Random, a: str, b: str, t: str) -> Problem:
    x, y = r.randint(2, 30), r.randint(2, 4)
    word = {2: "twice", 3: "three times", 4: "four times"}[y]
    question = f"{a} sold {x} {t} on Monday and {word} as many on Tuesday. How many {t} did {a} sell in all?"
    return question, f"{y} * {x} = {x * y}. {x} + {x * y} = {x + x * y}", x + x * y


def _days(r: random.Random, a: str, _: str, t: str) -> Problem:
    x, y = r.randint(2, 12), r.randint(2, 9)
    z = r.randint(1, x * y - 1)
    question = f"{a} collects {x} {t} a day for {y} days and loses {z} of them. How many {t} are left?"
    return question, f"{x} * {y} = {x * y}. {x * y} - {z} = {x * y - z}", x * y - z


_SITUATIONS: tuple[Callable[[random.Random, str, str, str], Problem], ...] = (
    _more,
    _fewer,
    _boxes,
    _share,
    _together,
    _price,
    _twice,
    _days,
)
