"""English number words: seven, twenty-five, three dozen, one and a half, two thirds.

Read only where an answer shows no digits. A lone "one" is none: it is a pronoun more often than a number.
"""

from __future__ import annotations

import re
from fractions import Fraction

_SMALL = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50,
    "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
_TIMES = {"dozen": 12, "hundred": 100}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
_PARTS = {"half": 2, "halves": 2, "quarter": 4, "quarters": 4, "third": 3, "thirds": 3, "fourths": 4, "fifth": 5,
          "fifths": 5, "sixth": 6, "sixths": 6, "eighth": 8, "eighths": 8, "tenth": 10, "tenths": 10}  # fmt: skip
_KNOWN = "|".join(sorted({*_SMALL, *_TIMES, *_SCALES, *_PARTS}, key=len, reverse=True))
_RUN = re.compile(rf"\b(?:{_KNOWN})\b(?:(?:[\s-]+(?:and[\s-]+)?(?:an?[\s-]+)?)(?:{_KNOWN})\b)*", re.IGNORECASE)
_ONE = re.compile(r"\W*one\W*", re.IGNORECASE)


def find(text: str) -> list[tuple[Fraction, int, int]]:
    """All numbers in words, with start and end."""
    found = [(value, m.start(), m.end()) for m in _RUN.finditer(text) if (value := _value(m[0])) is not None]
    return found or ([(Fraction(1), 0, len(text))] if _ONE.fullmatch(text) else [])


def _value(run: str) -> Fraction | None:
    """None where the words do not make one number, as in "two three", or are a lone "one"."""
    words = [word for word in re.findall(r"[a-z]+", run.lower()) if word not in ("and", "a", "an")]
    if words == ["one"] or (words[0] in _PARTS and words[0] not in ("half", "quarter")):
        return None
    whole, group, last = Fraction(0), Fraction(0), 10**12
    for i, word in enumerate(words):
        if word in _SMALL:
            if last <= _SMALL[word] or (last < 20 and group):
                return None
            group, last = group + _SMALL[word], _SMALL[word]
        elif word in _TIMES:
            group, last = max(group, Fraction(1)) * _TIMES[word], 100
        elif word in _SCALES:
            whole, group, last = whole + max(group, Fraction(1)) * _SCALES[word], Fraction(0), 10**12
        else:
            part = Fraction(1, _PARTS[word])
            if i + 1 < len(words):
                return None
            # "two thirds" are parts, "two and a half" a whole and a part.
            several = re.search(rf"(?:and|and an?)[\s-]+{word}$", run, re.IGNORECASE)
            return whole + group + part if several else (max(group, Fraction(1)) * part if not whole else None)
    return whole + group
