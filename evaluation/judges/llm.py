"""A language model as the judge of two texts.

Its answer is constrained to three words, so that no verdict is searched for in prose ("correct" stands in
"incorrect"). Each pair is asked in both orders, because models prefer a place; verdicts that disagree are `unsure`.
With several golds one equivalent is enough, and an open one keeps the case open.

A model that judges its own answers tends to accept them: `generators` names the models asked, so that whoever knows
who answered can mark it. Measure any such judge with `calibrate` before trusting it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from cuvee import prompts
from cuvee.config import Config
from cuvee.errors import RecipeError
from cuvee.protocols import Case, Completion, Decoding, Generate, Judge, Label, Request, Verdict
from evaluation.judges.base import JUDGES, Kind, Parts, unsure

VERSION = "1"
PROMPTS = Path(__file__).with_name("prompts")


class LlmConfig(Config):
    """`model`: a model of the recipe. `prompt`: a prompt by name or a path ending in `.jinja`, with the variables
    `question`, `first`, `second`, `prediction`, `gold`, and in its header the words that it asks for and their
    verdicts. `both_orders`: ask twice, with prediction and gold exchanged."""

    model: str
    prompt: str = "equivalence"
    both_orders: bool = True


class LlmJudge:
    """One request for each case, gold and order."""

    def __init__(self, config: LlmConfig, generate: Generate) -> None:
        self.config = config
        self._generate = generate
        self._prompt = prompts.load(config.prompt, PROMPTS)
        self._words = words_of(self._prompt)
        self.name = f"llm:{config.model}"
        self.version = f"{VERSION}/{self._prompt.name}@{self._prompt.version}"
        self.generators = (generate.name,)

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        requests = [request for index, case in enumerate(cases) for request in self._requests(index, case)]
        decoding = Decoding(max_new_tokens=8, choices=tuple(self._words))
        done = {(c.id, c.draw): c for c in self._generate(requests, decoding)} if requests else {}
        verdicts = []
        for index, case in enumerate(cases):
            if not case.references:
                verdicts.append(unsure("no reference"))
                continue
            verdicts.append(
                _any([self._agreed([done.get((f"{index}.{gold}", order)) for order in self._orders])
                      for gold in range(len(case.references))])
            )  # fmt: skip
        return verdicts

    @property
    def _orders(self) -> tuple[int, ...]:
        return (0, 1) if self.config.both_orders else (0,)

    def _requests(self, index: int, case: Case) -> list[Request]:
        requests = []
        for number, gold in enumerate(case.references):
            for order in self._orders:
                first, second = (gold, case.prediction) if order == 0 else (case.prediction, gold)
                messages = self._prompt.messages(
                    question=case.prompt, first=first, second=second, prediction=case.prediction, gold=gold
                )
                requests.append(Request(f"{index}.{number}", messages, draw=order))
        return requests

    def _agreed(self, completions: Sequence[Completion | None]) -> Verdict:
        """One verdict from the orders."""
        said = []
        for completion in completions:
            if completion is None or completion.finish == "failed":
                return unsure(f"the judge model failed: {completion.error if completion else 'no answer'}")
            word = completion.text.strip().strip(".\"'").casefold()
            if word not in self._words:
                return unsure("unreadable verdict", completion.text[:200])
            said.append(self._words[word])
        if len(set(said)) > 1:
            return unsure(f"the orders disagree: {' and '.join(said)}")
        return Verdict(said[0], "both orders agree" if len(said) > 1 else "one order asked", f"said {said[0]}")


def words_of(prompt: prompts.Prompt) -> Mapping[str, Label]:
    """Word to verdict, from the header of a prompt."""
    words = prompt.settings.get("words", {label.value: label.value for label in Label})
    try:
        found = {str(word).casefold(): Label(label) for word, label in words.items()}
    except (AttributeError, ValueError) as error:
        raise RecipeError(f"prompt {prompt.name!r}: words must map to equivalent, different, unsure") from error
    if set(found.values()) != set(Label):
        raise RecipeError(f"prompt {prompt.name!r}: words must cover equivalent, different and unsure")
    return found


def _any(verdicts: Sequence[Verdict]) -> Verdict:
    """Over several golds: equivalent to one is enough, and an open one keeps it open."""
    order = {Label.EQUIVALENT: 0, Label.UNSURE: 1, Label.DIFFERENT: 2}
    return min(verdicts, key=lambda verdict: order[verdict.label])


class RatingConfig(Config):
    """`scale`: lowest and highest number. `accept`: least score that is equivalent; default three quarters up."""

    model: str
    prompt: str = "rating"
    scale: tuple[int, int] = (1, 10)
    accept: float | None = Field(default=None)


@dataclass(frozen=True)
class _Rated:
    score: float
    how: str


class RatingJudge:
    """Scores an answer alone. The score is the expected number where the numbers of the scale are single digits and the
    model tells first-token probabilities, and the number that it wrote otherwise."""

    def __init__(self, config: RatingConfig, generate: Generate) -> None:
        self.config = config
        self._generate = generate
        self._prompt = prompts.load(config.prompt, PROMPTS)
        low, high = config.scale
        if not 0 <= low < high:
            raise RecipeError(f"the scale {low} to {high} is none")
        self._numbers = [str(number) for number in range(low, high + 1)]
        self._accept = config.accept if config.accept is not None else low + 0.75 * (high - low)
        self.name = f"rating:{config.model}"
        self.version = f"{VERSION}/{self._prompt.name}@{self._prompt.version}"
        self.generators = (generate.name,)

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        low, high = self.config.scale
        requests = [
            Request(
                str(index),
                self._prompt.messages(
                    question=case.prompt, prediction=case.prediction, references=case.references, low=low, high=high
                ),
            )
            for index, case in enumerate(cases)
        ]
        single = high <= 9
        decoding = Decoding(max_new_tokens=8, choices=tuple(self._numbers), first_tokens=20 if single else 0)
        done = {c.id: c for c in self._generate(requests, decoding)} if requests else {}
        return [self._verdict(done.get(str(index)), single) for index in range(len(cases))]

    def _verdict(self, completion: Completion | None, single: bool) -> Verdict:
        if completion is None or completion.finish == "failed":
            return unsure(f"the judge model failed: {completion.error if completion else 'no answer'}")
        rated = self._expected(completion.first_token_logprobs) if single else None
        if rated is None:
            word = completion.text.strip().rstrip(".")
            if word not in self._numbers:
                return unsure("unreadable score", completion.text[:200])
            rated = _Rated(float(word), "as written")
        label = Label.EQUIVALENT if rated.score >= self._accept else Label.DIFFERENT
        return Verdict(label, f"score {rated.score:.2f}, accepted from {self._accept:g}", rated.how, rated.score)

    def _expected(self, logprobs: Mapping[str, float]) -> _Rated | None:
        shares = {number: 0.0 for number in self._numbers}
        for token, logprob in logprobs.items():
            if token.strip() in shares:
                shares[token.strip()] += math.exp(logprob)
        total = sum(shares.values())
        if total < 0.5:  # the model hardly considered a number
            return None
        return _Rated(sum(int(n) * p for n, p in shares.items()) / total, "expected over first tokens")


def _models(config: Any) -> set[str]:
    return {config.model}


def _build_llm(config: Any, parts: Parts) -> Judge:
    return LlmJudge(config, parts.generator(config.model))


def _build_rating(config: Any, parts: Parts) -> Judge:
    return RatingJudge(config, parts.generator(config.model))


def _version(config: Any) -> str:
    """With the prompt's text: an edit without a new version must not be taken for the old prompt."""
    return f"{VERSION}/{prompts.load(config.prompt, PROMPTS).digest}"


JUDGES.register("llm")(Kind(LlmConfig, _build_llm, short="model", models=_models, version=_version))
JUDGES.register("rating")(Kind(RatingConfig, _build_rating, short="model", models=_models, needs=(), version=_version))
