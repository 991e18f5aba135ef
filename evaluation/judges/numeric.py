"""Final answers as numbers: whether two say the same. Where an answer stands is told by `answers`.

Two paths. The cheap one reads numbers with one regex and compares rationals; it decides almost everything. What is not
a number (roots, variables, intervals, sets) goes to math-verify, which needs seconds at worst and SIGALRM to stop
itself, and so runs in a child process that is killed when it is late.

A prediction without an answer is `different`; a reference without one, an answer that names several ("5 or 6") and
whatever the slow path could not finish are `unsure`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

import pyarrow as pa
from pydantic import Field, field_validator

from cuvee.config import Config
from cuvee.protocols import Case, Judge, Label, Verdict
from evaluation.judges import numbers
from evaluation.judges.answers import DENIED, Answer, Extract, Rule
from evaluation.judges.base import JUDGES, Kind, Parts, different, equivalent, unsure
from evaluation.judges.numbers import Number
from evaluation.judges.symbolic import Symbolic

VERSION = "4"


class NumericConfig(Config):
    """`rules`: where to look, in order. `sentence`: phrases (case is ignored) after which the answer stands.

    `pattern`: a regex with one group that replaces the phrases. `relative`: tolerance between decimals, as a share of
    the larger. `rounded`: accept a decimal that is the other one rounded (see `numbers.same`). `symbolic`: send what is
    no number to math-verify; `limit_s`: seconds that it may take for one pair.
    """

    rules: tuple[Rule, ...] = ("sentence", "hash", "boxed", "last")
    sentence: tuple[str, ...] = (
        *("answer is", "answer:", "antwort ist", "antwort lautet", "antwort:", "réponse est", "réponse :", "réponse:"),
        *("respuesta es", "respuesta:", "resposta é", "resposta:", "risposta è", "risposta:", "cevap:", "ответ:"),
        "<answer>",
        *("答案是", "答案为", "答案:", "答案：", "答えは", "답은", "답:"),
    )
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


def extractor(config: NumericConfig) -> Extract:
    return Extract(config.rules, config.sentence, config.pattern)


class NumericJudge:
    """Compares the prediction's answer with each reference's."""

    name = "numeric"
    version = VERSION

    def __init__(self, config: NumericConfig) -> None:
        self.config = config
        self._predicted = extractor(config)
        self._gold = extractor(NumericConfig())  # a gold need not keep the form that was asked of the model

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        slow: list[tuple[int, str, str]] = []
        verdicts = [self._judge(i, case, slow) for i, case in enumerate(cases)]
        if slow:
            self._finish(verdicts, slow)
        return verdicts

    def _judge(self, index: int, case: Case, slow: list[tuple[int, str, str]]) -> Verdict:
        """The cheap path. Pairs for the slow one are added to `slow`, and the verdict is then preliminary."""
        predicted = self._predicted(case.prediction)
        verdict: Verdict | None = None
        before = len(slow)
        for reference in case.references:
            gold = self._gold(reference)
            if gold is None:
                continue
            if predicted is None:
                return different("no answer in the prediction", f"gold {gold.text!r}")
            if predicted.digits and gold.digits and (alike := _same_digits(predicted, gold)) is not None:
                why = "the same digits" if alike else "other digits"
            elif predicted.text == gold.text and not predicted.doubt:
                alike, why = True, "same text"
            elif predicted.doubt:
                return (different if predicted.doubt == DENIED else unsure)(predicted.doubt, predicted.text)
            elif (predicted.symbolic or gold.symbolic) and _tight(predicted.text) == _tight(gold.text):
                alike, why = True, "same text"
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


def _same_digits(a: Answer, b: Answer) -> bool | None:
    """Whether two plain decimals are one number; None where tolerance or units have a say."""
    if a.unit and b.unit and a.unit != b.unit:
        return None
    if a.digits == b.digits:
        return True
    return None if "." in a.digits + b.digits or "%" in (a.unit, b.unit) else False


def _tight(text: str) -> str:
    """An expression without white space, its dashes alike."""
    return "".join(text.split()).replace("–", "-")


def _number(answer: Answer) -> Number:
    if answer.number is not None:
        return answer.number
    return numbers.find(answer.text)[0][0]


def _fits(config: Any, source: pa.Table | Collection[str]) -> str | None:
    if not isinstance(source, pa.Table):
        return None
    extract = extractor(NumericConfig())
    column = source["references"].slice(0, 1000).to_pylist()
    found = sum(any(extract(reference) is not None for reference in references or ()) for references in column)
    if found * 2 < len(column):
        return f"the judge 'numeric' needs numbers, and {found} of {len(column)} references have one"
    return None


def _build(config: Any, parts: Parts) -> Judge:
    return parts.spread(NumericJudge(config))


JUDGES.register("numeric")(Kind(NumericConfig, _build, fits=_fits, version=lambda config: VERSION))
