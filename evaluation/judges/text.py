"""Text against text: exact match, containment, token F1 and ROUGE-L, the best over several golds.

Normalisation is SQuAD's (1606.05250: case, punctuation, articles, white space), after NFKC so that full-width forms
compare equal, and with characters as tokens where a script writes no spaces. Containment asks that the gold stands in
the prediction as whole tokens, and caps the prediction's length: without a cap, a text that lists every possibility
is right about everything.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

from pydantic import Field

from cuvee.config import Config
from cuvee.protocols import Case, Judge, Verdict
from evaluation.judges.base import JUDGES, Kind, Parts, different, equivalent, unsure

VERSION = "1"

_ARTICLES = frozenset({"a", "an", "the"})
# Han, kana, hangul, Thai, Lao, Khmer: one character a token. Everything else by runs of letters, marks and digits.
_UNSPACED = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_TOKEN = re.compile(rf"(?<!\w)-?\d+(?:\.\d+)*(?!\w)|[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
# Dropped rather than split at: apostrophes and the points of abbreviations ("don't" is "dont", "U.S." is "us"), and the
# commas of thousands. The point of a decimal and the sign of a number stay: 3.5 is not 35, nor -5 the same as 5.
_INNER = re.compile(r"(?<=\w)['’](?=\w)|(?<=[^\W\d])\.(?=[^\W\d])|(?<=\d),(?=\d{3}(?!\d))")


class TextConfig(Config):
    """`method`: how to compare. `threshold`: least F1 or ROUGE-L F-measure for equivalence, 0 to 1.

    `max_words`: longest prediction, in tokens, that containment accepts; default 10 more than the gold has.
    """

    method: Literal["exact", "contains", "f1", "rouge_l"] = "exact"
    threshold: float = Field(default=0.8, ge=0, le=1)
    max_words: int | None = Field(None, ge=1)


def tokens(text: str) -> list[str]:
    """Normalised tokens. Articles are dropped unless nothing else is left ("The A" keeps both)."""
    folded = unicodedata.normalize("NFKC", text).casefold().replace("\N{MINUS SIGN}", "-")
    found = _TOKEN.findall(_INNER.sub("", folded))
    return [token for token in found if token not in _ARTICLES] or found


def f1(prediction: Sequence[str], gold: Sequence[str]) -> float:
    """Harmonic mean of token precision and recall, tokens counted with multiplicity."""
    common = sum((Counter(prediction) & Counter(gold)).values())
    return 2 * common / (len(prediction) + len(gold)) if common else 0.0


def contains(prediction: Sequence[str], gold: Sequence[str]) -> bool:
    """Whether `gold` is a run of consecutive tokens of `prediction`."""
    size = len(gold)
    return any(list(prediction[i : i + size]) == list(gold) for i in range(len(prediction) - size + 1))


class _Split:
    """The library's own tokeniser knows only Latin letters; ours has been applied before."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Split())


def rouge_l(prediction: Sequence[str], gold: Sequence[str]) -> float:
    """ROUGE-L F-measure (Lin 2004)."""
    return float(_rouge().score(" ".join(gold), " ".join(prediction))["rougeL"].fmeasure)


class TextJudge:
    """Best over the references."""

    version = VERSION

    def __init__(self, config: TextConfig) -> None:
        self.config = config
        self.name = f"text:{config.method}"

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        return [self._judge(case) for case in cases]

    def _judge(self, case: Case) -> Verdict:
        golds = [(gold, words) for gold in case.references if (words := tokens(gold))]
        if not golds:
            return unsure("no reference with text")
        prediction = tokens(case.prediction)
        if not prediction:
            return different("the prediction has no text", score=0.0)
        scored = [(self._score(prediction, words), gold, words) for gold, words in golds]
        score, gold, words = max(scored, key=lambda item: item[0])
        evidence = f"{case.prediction.strip()[:200]!r} against {gold[:200]!r}"
        method = self.config.method
        if method == "contains":
            cap = self.config.max_words or len(words) + 10
            if score and len(prediction) > cap:
                return different(
                    f"the gold is in it, but {len(prediction)} words exceed the cap of {cap}", evidence, 0.0
                )
            reason = "the gold is in the prediction" if score else "the gold is not in the prediction"
        elif method == "exact":
            reason = "same after normalisation" if score else "not the same after normalisation"
        else:
            reason = f"{method} {score:.3f}, threshold {self.config.threshold:g}"
        accept = score >= self.config.threshold if method in ("f1", "rouge_l") else score == 1.0
        return equivalent(reason, evidence, score) if accept else different(reason, evidence, score)

    def _score(self, prediction: list[str], gold: list[str]) -> float:
        match self.config.method:
            case "exact":
                return float(prediction == gold)
            case "contains":
                return float(contains(prediction, gold))
            case "f1":
                return f1(prediction, gold)
            case "rouge_l":
                return rouge_l(prediction, gold)


def _build(config: Any, parts: Parts) -> Judge:
    return TextJudge(config)


JUDGES.register("text")(Kind(TextConfig, _build, short="method"))
