"""Multiple choice: an option's letter or an option's text.

Options come from `meta["choices"]` (a list of texts) or from lines of the prompt such as `B) text`. A letter counts
only where it stands as an answer (after "answer is", in `\\boxed{}`, in parentheses, alone, or before a point at the
start), because "A" is also an article. An answer that names two options is `unsure`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from cuvee.config import Config
from cuvee.protocols import Case, Judge, Verdict
from evaluation.judges.base import JUDGES, Kind, Parts, different, equivalent, unsure
from evaluation.judges.text import contains, tokens

VERSION = "1"

_OPTION = re.compile(r"^\s*\(?([A-Z])[.):]\)?\s+(.+?)\s*$", re.MULTILINE)
_EDGE = " \t\n*_`\"'$"
_LETTER = r"(?:\\text\{)?[*_`\"'$]*[\(\[]?[*_`]*([A-Z])(?![\w'’])[*_`]*[\)\]]?"
# A letter before a word in small letters is an article or a name, unless another option follows.
_NO_WORD = r"(?!\s+(?!(?:or|and)\s+[(*]*[A-Z]\b)[a-z])"
_PLACES = (
    re.compile(
        r"(?i:answer|option|choice)(?:\s+(?i:is|would be|must be))?\s*:?\s*(?i:option\s*|choice\s*)?"
        rf"{_LETTER}{_NO_WORD}"
    ),
    re.compile(rf"\\boxed\s*\{{\s*{_LETTER}"),
    re.compile(r"^[*_`\"'$(\[]*([A-Z])[*_`\"'$)\]]*(?:[.:)]|$|(?=\s+(?:or|and)\s+[A-Z]\b))", re.MULTILINE),
    re.compile(r"\(([A-Z])\)"),
)


class ChoiceConfig(Config):
    """`texts`: accept the text of an option too, not only its letter."""

    texts: bool = True


def options_of(case: Case) -> Mapping[str, str]:
    """Letter to text, from `meta["choices"]` or the prompt; empty when there are none."""
    given = case.meta.get("choices")
    if isinstance(given, Sequence) and not isinstance(given, str) and given:
        return {chr(ord("A") + i): str(text) for i, text in enumerate(given)}
    found: dict[str, str] = {}
    for letter, text in _OPTION.findall(case.prompt):
        if letter == chr(ord("A") + len(found)):  # in order only: "I. Introduction" is no option
            found[letter] = text
        elif letter == "A":
            found = {"A": text}
    return found if len(found) > 1 else {}


def letters_of(text: str, options: Mapping[str, str], *, texts: bool) -> tuple[set[str], str]:
    """The options that `text` names, and where; the first kind of place that names any decides."""
    bare = text.strip(_EDGE)
    if len(bare) == 1 and bare.upper() in options:
        return {bare.upper()}, "the letter alone"
    for place in _PLACES:
        # The last mention: a conclusion comes after the discussion of the options.
        found = [match for match in place.finditer(text) if match[1] in options]
        if found:
            rest = text[found[-1].end() :]
            other = re.match(rf"\s*(?:,|and|or|/|&)+\s*{_LETTER}{_NO_WORD}", rest)
            also = {other[1]} if other and other[1] in options else set()
            return {found[-1][1]} | also, f"the letter in {found[-1][0].strip()[:60]!r}"
    if texts:
        words = tokens(text)
        named = {letter for letter, option in options.items() if tokens(option) and contains(words, tokens(option))}
        # "a red car" also contains "car": keep the options that are not part of another one named.
        longest = {
            a
            for a in named
            if not any(a != b and tokens(options[a]) != tokens(options[b])
                       and contains(tokens(options[b]), tokens(options[a])) for b in named)
        }  # fmt: skip
        return longest, "the text of the option"
    return set(), ""


class ChoiceJudge:
    """Compares the option named by the prediction with the one named by the gold."""

    name = "choice"
    version = VERSION

    def __init__(self, config: ChoiceConfig) -> None:
        self.config = config

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        return [self._judge(case) for case in cases]

    def _judge(self, case: Case) -> Verdict:
        options = options_of(case)
        if not options:
            return unsure("no options in meta.choices or in the prompt")
        golds: set[str] = set()
        for reference in case.references:
            exact = {letter for letter, text in options.items() if tokens(text) == tokens(reference)}
            golds |= exact or letters_of(reference, options, texts=True)[0]
        if not golds:
            return unsure("the reference names no option", str(case.references)[:200])
        if not case.prediction.strip():
            return different("the prediction is empty")
        named, where = letters_of(case.prediction, options, texts=self.config.texts)
        if not named:
            return different("the prediction names no option", case.prediction.strip()[:200])
        evidence = f"{', '.join(sorted(named))} against {', '.join(sorted(golds))}"
        if len(named) > 1:
            return unsure("the prediction names several options", evidence)
        return equivalent(where, evidence) if named <= golds else different(where, evidence)


def _build(config: Any, parts: Parts) -> Judge:
    return ChoiceJudge(config)


JUDGES.register("choice")(Kind(ChoiceConfig, _build))
