r"""Where the final answer of a text stands.

The answer is taken by the first rule that finds one, in this order, and from the last place where the rule applies:
  1. `sentence`: after "the answer is" (or a regex of the recipe), up to the end of that sentence;
  2. `hash`: after `####` (GSM8K);
  3. `boxed`: inside `\boxed{}` (MATH);
  4. `last`: the last number of the text.
A required sentence comes first because a last number may be anything: "The answer is 18. I checked it in 2 ways."
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from evaluation.judges import numbers
from evaluation.judges.numbers import Number

Rule = Literal["sentence", "hash", "boxed", "last"]

_END = re.compile(r"[.!?](?=\s|$)|\n")
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_HEDGE = re.compile(r"\b(?:or|not|either|between|oder|nicht|ou|pas)\b", re.IGNORECASE)
# What makes a segment more than a number with words around it.
_MATH = re.compile(
    r"\\(?!(?:text|mathrm|mbox|left|right|quad|dollar)\b)[a-zA-Z]+|[√π∞^_±]|\bsqrt|\bpi\b|(?<![a-zA-Z'’])[a-zA-Z](?=\s*[-+*/^(])"
    r"|[-+*/(\[{]\s*$|^\s*[-+*/^]"
)
_FORMULA = re.compile(rf"{_MATH.pattern}|(?:[-+*/^=]\s*|\d)[a-zA-Z]\b")
_ATTACHED = re.compile(r"\s*(?:[*/^√π]|\\(?:sqrt|pi|cdot|times)|[-+]\s*[\w\\(]|[a-zA-Z](?![a-zA-Z])(?!\s+[a-z])|\()")
_NO_DIGIT = "".join(chr(c) for c in range(128) if not chr(c).isdigit())
_CLUSTER = "0123456789.,'_/ $€£¥-+^{}*x×·eE\u00a0\u202f\u2009\u2019"
_EDGE = " \t\n*`:,;"
_BEFORE, _AFTER = _EDGE + "$", _EDGE + ".$"
_BULLET = re.compile(r"^[-•+]\s+")


@dataclass(slots=True)
class Answer:
    """`text`: what stands at the answer's place. `digits`: it is a plain whole number, without leading zeros.

    `number`: the number in it. `symbolic`: there is more to it than a number. `doubt`: why it cannot be taken.
    """

    rule: str
    text: str
    digits: str = ""
    number: Number | None = None
    symbolic: bool = False
    doubt: str = ""


class Extract:
    """Finds final answers by the configured rules."""

    def __init__(self, rules: Sequence[Rule], phrases: Sequence[str], pattern: str | None = None) -> None:
        self._rules = tuple(rules)
        self._phrases = tuple(phrase.lower() for phrase in phrases)
        self._pattern = re.compile(pattern, re.DOTALL) if pattern else None

    def __call__(self, text: str) -> Answer | None:
        """The answer, or None when no rule finds one."""
        text = numbers.fold(text)
        for rule in self._rules:
            if rule == "sentence":
                answer = self._sentence(text)
            elif rule == "hash":
                at = text.rfind("####")
                answer = _read(rule, text[at + 4 :].lstrip().partition("\n")[0]) if at >= 0 else None
            elif rule == "boxed":
                answer = _boxed(text)
            else:
                answer = _last(text)
            if answer is not None:
                return answer
        return None

    def _sentence(self, text: str) -> Answer | None:
        if self._pattern is not None:
            found = [match[1] for match in self._pattern.finditer(text) if match[1] is not None]
            return _read("sentence", found[-1]) if found else None
        low = text.lower()
        starts = [low.rfind(phrase) + len(phrase) for phrase in self._phrases if phrase in low]
        for start in sorted(starts, reverse=True) if len(starts) > 1 else starts:
            rest = text[start : start + 400].lstrip(_EDGE)
            end = _END.search(rest)
            answer = _read("sentence", rest[: end.start()] if end else rest)
            if answer is not None:
                return answer
        return None


def _read(rule: str, segment: str) -> Answer | None:
    """The answer in a segment that a marker announced: its first number, or the one after the last equals sign."""
    if (answer := _plain(rule, segment)) is not None:
        return answer
    bare = _trim(segment)
    if not bare:
        return None
    if (inner := _inside(segment)) is not None:
        return _whole(rule, inner)
    if "=" in bare or "≈" in bare:
        bare = re.split(r"=|≈|\\approx", bare)[-1].strip()
    found = numbers.find(bare)
    if not found:
        return Answer(rule, bare, symbolic=True) if _MATH.search(bare) else None
    number, start, end = found[0]
    answer = Answer(rule, bare, number=number)
    if _ATTACHED.match(bare, end) or _MATH.search(bare[:start]):
        answer.symbolic = True
    elif len({item[0].value for item in found}) > 1 and _HEDGE.search(bare):
        answer.doubt = "the answer names several numbers"
    return answer


def _whole(rule: str, segment: str) -> Answer | None:
    r"""The answer when the segment is nothing else, as in `\boxed{}`: a lone number, or an expression."""
    if (answer := _plain(rule, segment)) is not None:
        return answer
    bare = _trim(segment)
    right = re.sub(r"^\s*\\?[a-zA-Z]\w{0,2}\s*=\s*", "", bare)
    found = numbers.find(right)
    if not found:
        # A word that nobody announced as the answer is none.
        symbolic = bool(right) and (rule != "last" or len(right) == 1 or bool(_MATH.search(right)))
        return Answer(rule, right, symbolic=True) if symbolic else None
    number, start, end = found[0]
    rest = right[:start] + " " + right[end:]
    more = _MATH.search(rest) or _ATTACHED.match(right, end) or set(rest) & set("(),=<>")
    return Answer(rule, right, number=number, symbolic=len(found) > 1 or bool(more))


def _plain(rule: str, segment: str) -> Answer | None:
    """The shortest way, for what is only a whole number; with its dollar sign as text, since that is a unit."""
    plain = segment.lstrip(_BEFORE).rstrip(_AFTER)
    if not plain.isdecimal():
        return None
    return Answer(rule, _trim(segment) if "$" in segment else plain, plain.lstrip("0") or "0")


def _trim(segment: str) -> str:
    """Without markup around it. Dollar signs go when they are LaTeX's pair, and stay when they are money."""
    bare = segment.strip(_EDGE).rstrip(".")
    if bare[:1] == "$" == bare[-1:]:
        bare = bare.strip("$")
    return _BULLET.sub("", bare, count=1) if bare[:2] in ("- ", "• ", "+ ") else bare


def _inside(text: str) -> str | None:
    r"""The content of the last `\boxed{}` whose braces close."""
    matches = list(_BOXED.finditer(text)) if "boxed" in text or "fbox" in text else []
    for match in reversed(matches):
        depth = 1
        for position in range(match.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[match.end() : position]
    return None


def _boxed(text: str) -> Answer | None:
    inner = _inside(text)
    return _whole("boxed", inner) if inner is not None else None


def _last(text: str) -> Answer | None:
    if (answer := _plain("last", text)) is not None:
        return answer
    bare = _trim(_BOXED.sub("", text) if "boxed" in text else text)  # a box that never closes
    if len(bare) <= 60 and "\n" not in bare and (" " not in bare or _FORMULA.search(bare)):
        return _whole("last", bare)
    # The end of the text, from the cluster of number-like characters around its last digit; all of it for LaTeX.
    upto = len(bare.rstrip(_NO_DIGIT))
    start = 0 if not upto or "\\" in bare[-200:] else max(len(bare[:upto].rstrip(_CLUSTER)) - 1, 0)
    end = bare[start : upto + 40]
    found = numbers.find(end)
    if not found:  # other scripts and signs after the last digit
        end = bare
        found = numbers.find(end)
    return Answer("last", end[found[-1][1] :][:80], number=found[-1][0]) if found else None
