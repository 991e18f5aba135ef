r"""Where the final answer of a text stands.

The answer is taken by the first rule that finds one, in this order, and from the last place where the rule applies:
  1. `sentence`: after "the answer is" (or a regex of the recipe), up to the end of that sentence;
  2. `hash`: after `####` (GSM8K);
  3. `boxed`: inside `\boxed{}` (MATH);
  4. `last`: the last number of the text, or the result of an equation in its last sentence ("120 / 24 = 5 hours for
     the 120 pages"); without any digits, its last number in words.
A required sentence comes first because a last number may be anything: "The answer is 18. I checked it in 2 ways."
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from evaluation.judges import numbers, words
from evaluation.judges.numbers import Number
from evaluation.judges.units import UNITS

Rule = Literal["sentence", "hash", "boxed", "last"]

_END = re.compile(r"[.!?](?=\s|$)|[\n。！？]")
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_HEDGE = re.compile(r"\b(?:or|not|either|between|oder|nicht|ou|pas)\b", re.IGNORECASE)
# What makes a segment more than a number with words around it.
_MATH = re.compile(
    r"\\(?!(?:text|mathrm|mbox|left|right|quad|dollar)\b)[a-zA-Z]+|[√π∞^_±]|\bsqrt|\bpi\b|(?<![a-zA-Z'’])[a-zA-Z](?=\s*[-+*/^(])"
    r"|[-+*/(\[{]\s*$|^\s*[-+*/^]"
)
_FORMULA = re.compile(rf"{_MATH.pattern}|(?:[-+*^=]\s*|(?<![a-zA-Z])/\s*)[a-zA-Z]\b|\d(?![hmsglLkKMB]\b)[a-zA-Z]\b")
# Three words in a row are no formula.
_PROSE = re.compile(r"[a-z]{3,}\W+[a-z]{2,} [a-z]{2,}")
_LIST = re.compile(r"(?:\\?[{(\[])?\s*-?[\d./]+(?:\s*[,;]\s*-?[\d./]+)+\s*(?:\\?[})\]])?")
_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_DENIED = re.compile(r"\b(?:not|nicht|pas)\W*$", re.IGNORECASE)
_WHOLE = re.compile(r"(-)?(\d{1,3}(?:,\d{3})+|\d+)(?:\.(\d+))?")
# After a result, what says that the answer is still to come.
_REVISED = re.compile(
    r"[.!?;]\s+\S|\n|≈|->|→|\b(?:which|or|round\w*|meaning|so|thus|therefore|hence|is|are|i\.e|equals?)\b"
)
_JOINED = re.compile(r"\d\s*(?:[A-Za-z]+)?\s*,?\s*(?:and)?$")
_WORD = re.compile(r" ([A-Za-z]+)(?![\w/])")
# Words and letters after a number that say more than a unit does.
_SCALES = frozenset(
    {"thousand", "million", "billion", "trillion", "k", "K", "M", "B", "bn", "percent", "text"}
    | {"mathrm", "mbox", "am", "AM", "pm", "PM"}
)
_ATTACHED = re.compile(r"\s*(?:[*/^√π]|\\(?:sqrt|pi|cdot|times)|[-+]\s*[\w\\(]|[a-zA-Z](?![a-zA-Z])(?!\s+[a-z])|\()")
_NO_DIGIT = "".join(chr(c) for c in range(128) if not chr(c).isdigit())
_CLUSTER = "0123456789.,:'_/ $€£¥-+^{}*x×·eE\u00a0\u202f\u2009\u2019"
_EDGE = " \t\n*`:：,;"
_BEFORE, _AFTER = _EDGE + "$", _EDGE + ".$"
_BULLET = re.compile(r"^[-•+]\s+")


DENIED = "the answer says which number it is not"


@dataclass(slots=True)
class Answer:
    """`text`: what stands at the answer's place. `digits`: it is a plain decimal, here in its shortest form, whose
    `unit` is told apart.

    `number`: the number in it. `symbolic`: there is more to it than a number. `doubt`: why it cannot be taken.
    """

    rule: str
    text: str
    digits: str = ""
    unit: str = ""
    number: Number | None = None
    symbolic: bool = False
    doubt: str = ""


class Extract:
    """Finds final answers by the configured rules."""

    def __init__(self, rules: Sequence[Rule], phrases: Sequence[str], pattern: str | None = None) -> None:
        self._rules = tuple(rules)
        # By their first words, of which a text has few; those of other scripts apart, since most texts are ASCII.
        heads: dict[str, list[str]] = {}
        for phrase in phrases:
            heads.setdefault(phrase.lower().partition(" ")[0].rstrip(":："), []).append(phrase.lower())
        self._every = tuple(heads.items())
        self._ascii = tuple((head, found) for head, found in heads.items() if head.isascii())
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
                answer = _boxed(text) if "box" in text else None
            else:
                answer = _last(text)
            if answer is not None:
                return answer
        return _worded("last", text) if "last" in self._rules else None

    def _sentence(self, text: str) -> Answer | None:
        if self._pattern is not None:
            found = [match[1] for match in self._pattern.finditer(text) if match[1] is not None]
            return _read("sentence", found[-1]) if found else None
        low = text.lower()
        starts: list[int] = []
        for head, phrases in self._ascii if low.isascii() else self._every:
            if head in low:
                starts += [low.rfind(phrase) + len(phrase) for phrase in phrases if phrase in low]
                if starts:  # one language is enough
                    break
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
        return Answer(rule, bare, symbolic=True) if _MATH.search(bare) else _worded(rule, bare, first=True)
    number, start, end = found[0]
    answer = Answer(rule, bare, number=number)
    if _ATTACHED.match(bare, end) or _MATH.search(bare[:start]):
        answer.symbolic = True
    elif len({item[0].value for item in found}) > 1 and _HEDGE.search(bare):
        answer.doubt = "the answer names several numbers"
    elif _DENIED.search(bare, 0, start):
        answer.doubt = DENIED
    return answer


def _worded(rule: str, text: str, *, first: bool = False) -> Answer | None:
    """A number that is written in words."""
    found = words.find(text[-400:])
    if not found:
        return None
    value, start, end = found[0 if first else -1]
    answer = Answer(rule, text[-400:][start:end], number=Number(value, None, 99))
    if _DENIED.search(text[-400:], 0, start):
        answer.doubt = DENIED
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
    signs = set("(),=<>!") if rule == "boxed" else set("(),=<>")
    more = _MATH.search(rest) or _ATTACHED.match(right, end) or set(rest) & signs
    return Answer(rule, right, number=number, symbolic=len(found) > 1 or bool(more))


def _plain(rule: str, segment: str) -> Answer | None:
    """The shortest way, for what is only a decimal; with its dollar sign as text, since that is a unit."""
    plain = segment.lstrip(_BEFORE).rstrip(_AFTER)
    digits = _decimal(plain)
    if not digits:
        return None
    text = _trim(segment) if "$" in segment else plain
    return Answer(rule, text, digits, "$" if text[:1] == "$" else "")


def _decimal(text: str) -> str:
    """The shortest form of a decimal: no thousands separators, no zeros that say nothing; empty for anything else."""
    if text.isdecimal():
        return text.lstrip("0") or "0"
    match = _WHOLE.fullmatch(text)
    if match is None:
        return ""
    sign, whole, part = match.groups()
    whole = whole.replace(",", "").lstrip("0") or "0"
    part = part.rstrip("0") if part else ""
    digits = f"{whole}.{part}" if part else whole
    return f"-{digits}" if sign and digits != "0" else digits


def _trim(segment: str) -> str:
    """Without markup around it. Dollar signs go when they are LaTeX's pair, and stay when they are money."""
    bare = segment.strip(_EDGE).rstrip(".")
    if bare[:1] == "$" == bare[-1:]:
        bare = bare.strip("$")
    return _BULLET.sub("", bare, count=1) if bare[:2] in ("- ", "• ", "+ ") else bare


def _inside(text: str) -> str | None:
    r"""The content of the last `\boxed{}` whose braces close."""
    for match in reversed(list(_BOXED.finditer(text))):
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
    long = len(text) > 60
    if (answer := _ending(text) if long else _plain("last", text)) is not None:
        return answer
    bare = _trim(_BOXED.sub("", text) if "boxed" in text else text)  # a box that never closes
    if len(bare) <= 60 and "\n" not in bare and _formal(bare):
        return _whole("last", bare)
    if "=" in bare and (answer := _result(bare)) is not None:
        return answer
    if not long and (answer := _ending(text)) is not None:
        return answer
    # The end of the text, from the cluster of number-like characters around its last digit; all of it for LaTeX.
    upto = len(bare.rstrip(_NO_DIGIT))
    start = 0 if not upto or "\\" in bare[-200:] else max(len(bare[:upto].rstrip(_CLUSTER)) - 1, 0)
    end = bare[start : upto + 40]
    found = numbers.find(end)
    if found and found[-1][0].unit and start:  # 2 hours and 30 minutes
        end = bare[max(0, start - 30) : upto + 40]
        found = numbers.find(end)
    if not found:  # other scripts and signs after the last digit
        end = bare
        found = numbers.find(end)
    return Answer("last", end[found[-1][1] :][:80], number=found[-1][0]) if found else None


def _result(text: str) -> Answer | None:
    """The right side of an equation in the last sentence, where more numbers follow that are not said to replace it."""
    right = text[text.rfind("=") + 1 :]
    found = numbers.find(right) if len(right) <= 200 else []
    if len(found) < 2 or right[: found[0][1]].strip():
        return None
    number, start, end = found[0]
    if _REVISED.search(right[end : found[-1][1] + 1]) or _ATTACHED.match(right, end):
        return None
    return Answer("last", right[start:][:80], number=number)


def _formal(bare: str) -> bool:
    """Whether a short text is an expression rather than words with a number."""
    if _LIST.fullmatch(bare):
        return True
    if " " not in bare:
        return not _UNSPACED.search(bare)
    return bool(_FORMULA.search(bare)) and ("\\" in bare or not _PROSE.search(bare))


def _ending(text: str) -> Answer | None:
    """The last number where nothing but words stands around it, told from few characters; None for all else.

    Most texts end so. What it reads, the grammar of `numbers` reads alike: a test compares the two.
    """
    upto = len(text.rstrip(_NO_DIGIT))
    if not upto or "\\" in text[-200:]:
        return None
    head = text[:upto]
    start = len(head.rstrip("0123456789.,"))
    digits = _decimal(head[start:])
    before = head[:start]
    unit = ""
    if before[-1:] == "$":
        before, unit, start = before[:-1], "$", start - 1
    if before[-2:] == "**":
        before = before.rstrip("*")
    if not digits or before[-1:] not in (" ", "\n", "="):
        return None
    left = before.rstrip()
    if not (left[-1:].isalpha() or left[-1:] in "=:") or left[-3:] in ("USD", "EUR", "GBP"):
        return None
    after = text[upto : upto + 1]
    if after in (" ", "\n"):
        word = _WORD.match(text, upto)
        if word is None or word[1] in _SCALES or (len(word[1]) == 1 and text[word.end() : word.end() + 1] == "."):
            return None
        if word[1] in UNITS or word[1].lower() in UNITS:
            unit = word[1] if word[1] in UNITS else word[1].lower()
            if text.startswith(" per ", word.end()):
                return None
    elif after == "%" and not text[upto + 1 : upto + 2].isalnum():
        if unit:
            return None
        unit = after
    elif after not in ("", ".", ",", "!", "?", ";", ")", "*"):
        return None
    if left[-1:] != "=" and "=" in left[-100:] and _result(text) is not None:
        return None
    if unit and left[-1:].isalpha() and _JOINED.search(left[-32:]):
        return None  # may be composed: 2 hours and 30 minutes
    return Answer("last", text[start : upto + 40][:80], digits, unit)
