r"""Final answers as numbers: where the answer stands, and whether two say the same.

The answer is taken by the first rule that finds one, in this order, and from the last place where the rule applies:
  1. `sentence`: after "the answer is" (or a regex of the recipe), up to the end of that sentence;
  2. `hash`: after `####` (GSM8K);
  3. `boxed`: inside `\boxed{}` (MATH);
  4. `last`: the last number of the text.
A required sentence comes first because a last number may be anything: "The answer is 18. I checked it in 2 ways."

Two paths. The cheap one reads numbers with one regex and compares rationals; it decides almost everything. What is not
a number (roots, variables, intervals, sets) goes to math-verify, which needs seconds at worst and SIGALRM to stop
itself, and so runs in a child process that is killed when it is late.

A prediction without an answer is `different`; a reference without one, an answer that names several ("5 or 6") and
whatever the slow path could not finish are `unsure`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field, field_validator

from cuvee.config import Config
from cuvee.protocols import Case, Judge, Label, Verdict
from evaluation.judges import numbers
from evaluation.judges.base import JUDGES, Kind, Parts, different, equivalent, unsure
from evaluation.judges.numbers import Number
from evaluation.judges.symbolic import Symbolic

VERSION = "1"

Rule = Literal["sentence", "hash", "boxed", "last"]

_END = re.compile(r"[.!?](?=\s|$)|\n")
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_HEDGE = re.compile(r"\b(?:or|not|either|between|oder|nicht|ou|pas)\b", re.IGNORECASE)
# What makes a segment more than a number with words around it.
_MATH = re.compile(
    r"\\(?!(?:text|mathrm|mbox|left|right|quad|dollar)\b)[a-zA-Z]+|[√π∞^_±]|\bsqrt|\bpi\b|(?<![a-zA-Z])[a-zA-Z](?=\s*[-+*/^(])"
    r"|[-+*/(\[{]\s*$|^\s*[-+*/^]"
)
_ATTACHED = re.compile(r"\s*(?:[*/^√π]|\\(?:sqrt|pi|cdot|times)|[-+]\s*[\w\\(]|[a-zA-Z](?![a-zA-Z])(?!\s+[a-z])|\()")
_NO_DIGIT = "".join(chr(c) for c in range(128) if not chr(c).isdigit())
_CLUSTER = "0123456789.,'_/ $€£¥-+^{}*x×·eE\u00a0\u202f\u2009\u2019"
_MARKUP = " \t\n*`:$.,;"
_LEAD = " \t\n*`:,;"


class NumericConfig(Config):
    """`rules`: where to look, in order. `sentence`: phrases (case is ignored) after which the answer stands.

    `pattern`: a regex with one group that replaces the phrases. `relative`: tolerance between decimals, as a share of
    the larger. `rounded`: accept a decimal that is the other one rounded (see `numbers.same`). `symbolic`: send what is
    no number to math-verify; `limit_s`: seconds that it may take for one pair.
    """

    rules: tuple[Rule, ...] = ("sentence", "hash", "boxed", "last")
    sentence: tuple[str, ...] = ("answer is", "answer:")
    pattern: str | None = None
    relative: float = Field(1e-6, ge=0, lt=1)
    rounded: bool = True
    symbolic: bool = True
    limit_s: float = Field(default=5.0, gt=0)

    @field_validator("pattern")
    @classmethod
    def _one_group(cls, pattern: str | None) -> str | None:
        if pattern is not None and re.compile(pattern).groups != 1:
            raise ValueError("the pattern needs exactly one group, around the answer")
        return pattern


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

    def __init__(self, config: NumericConfig) -> None:
        self._rules = config.rules
        self._phrases = tuple(phrase.lower() for phrase in config.sentence)
        self._pattern = re.compile(config.pattern, re.DOTALL) if config.pattern else None

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
            rest = text[start : start + 400].lstrip(_LEAD)
            end = _END.search(rest)
            answer = _read("sentence", rest[: end.start()] if end else rest)
            if answer is not None:
                return answer
        return None


def _read(rule: str, segment: str) -> Answer | None:
    """The answer in a segment that a marker announced: its first number, or the one after the last equals sign."""
    bare = segment.strip(_MARKUP)
    if bare.isdigit():
        return Answer(rule, bare, bare.lstrip("0") or "0")
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
    bare = segment.strip(_LEAD).rstrip(".")
    if bare.isdigit():
        return Answer(rule, bare, bare.lstrip("0") or "0")
    right = re.sub(r"^\s*\\?[a-zA-Z]\w{0,2}\s*=\s*", "", bare)
    found = numbers.find(right)
    if not found:
        return Answer(rule, right, symbolic=True) if right else None
    number, start, end = found[0]
    rest = right[:start] + " " + right[end:]
    lone = (
        len(found) == 1 and not _MATH.search(rest) and not _ATTACHED.match(right, end) and not set(rest) & set("(),=<>")
    )
    return Answer(rule, right, number=number, symbolic=not lone)


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
    bare = text.strip(_MARKUP)
    if bare.isdigit():
        return Answer("last", bare, bare.lstrip("0") or "0")
    if len(bare) <= 60 and "\n" not in bare and (" " not in bare or _MATH.search(bare)):
        return _whole("last", bare)
    # The end of the text, from the cluster of number-like characters around its last digit; all of it for LaTeX.
    upto = len(bare.rstrip(_NO_DIGIT))
    start = 0 if not upto or "\\" in bare[-200:] else max(len(bare[:upto].rstrip(_CLUSTER)) - 1, 0)
    found = numbers.find(bare[start : upto + 40])
    if not found:  # other scripts and signs after the last digit
        start, upto = 0, len(bare)
        found = numbers.find(bare)
    return Answer("last", bare[start : upto + 40][-80:], number=found[-1][0]) if found else None


class NumericJudge:
    """Compares the prediction's answer with each reference's."""

    name = "numeric"
    version = VERSION

    def __init__(self, config: NumericConfig) -> None:
        self.config = config
        self._extract = Extract(config)

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        slow: list[tuple[int, str, str]] = []
        verdicts = [self._judge(i, case, slow) for i, case in enumerate(cases)]
        if slow:
            self._finish(verdicts, slow)
        return verdicts

    def _judge(self, index: int, case: Case, slow: list[tuple[int, str, str]]) -> Verdict:
        """The cheap path. Pairs for the slow one are added to `slow`, and the verdict is then preliminary."""
        predicted = self._extract(case.prediction)
        verdict: Verdict | None = None
        before = len(slow)
        for reference in case.references:
            gold = self._extract(reference)
            if gold is None:
                continue
            if predicted is None:
                return different("no answer in the prediction", f"gold {gold.text!r}")
            if predicted.digits and gold.digits:
                alike, why = predicted.digits == gold.digits, "whole numbers"
            elif predicted.text == gold.text and not predicted.doubt:
                alike, why = True, "same text"
            elif predicted.doubt:
                return unsure(predicted.doubt, predicted.text)
            elif predicted.symbolic or gold.symbolic:
                slow.append((index, predicted.text, gold.text))
                continue
            else:
                config = self.config
                alike, why = numbers.same(
                    _number(predicted), _number(gold), relative=config.relative, rounded=config.rounded
                )
            evidence = f"{predicted.text!r} ({predicted.rule}) against {gold.text!r} ({gold.rule})"
            if alike:
                del slow[before:]
                return Verdict(Label.EQUIVALENT, why, evidence)
            verdict = Verdict(Label.DIFFERENT, why, evidence)
        if len(slow) > before:
            return unsure("no number, and symbolic comparison is off", slow[-1][1])
        return verdict or unsure("no answer in the reference")

    def _finish(self, verdicts: list[Verdict], slow: list[tuple[int, str, str]]) -> None:
        """Equivalent if any reference is, else unsure if any comparison failed, else different."""
        if not self.config.symbolic:
            return
        with Symbolic(self.config.limit_s) as compare:
            outcomes = compare([(gold, predicted) for _, predicted, gold in slow])
        by_case: dict[int, list[tuple[bool | None, str, str]]] = {}
        for (index, predicted, gold), (alike, why) in zip(slow, outcomes, strict=True):
            by_case.setdefault(index, []).append((alike, why, f"{predicted!r} against {gold!r}"))
        for index, tried in by_case.items():
            order = sorted(tried, key=lambda item: {True: 0, None: 1, False: 2}[item[0]])
            alike, why, evidence = order[0]
            verdicts[index] = {True: equivalent, False: different, None: unsure}[alike](why, evidence)


def _number(answer: Answer) -> Number:
    if answer.number is not None:
        return answer.number
    return numbers.find(answer.digits)[0][0]


def _fits(config: Any, source: pa.Table | Collection[str]) -> str | None:
    if not isinstance(source, pa.Table):
        return None
    extract = Extract(config)
    column = source["references"].slice(0, 1000).to_pylist()
    found = sum(any(extract(reference) is not None for reference in references or ()) for references in column)
    if found * 2 < len(column):
        return f"the judge 'numeric' needs numbers, and {found} of {len(column)} references have one"
    return None


def _build(config: Any, parts: Parts) -> Judge:
    return NumericJudge(config)


JUDGES.register("numeric")(Kind(NumericConfig, _build, fits=_fits))
