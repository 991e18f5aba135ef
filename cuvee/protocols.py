"""What the science may ask of the outside: to generate, to score, to judge.

`services.inference` implements them on vLLM engines and on API endpoints, tests implement them with plain functions.
Requests and results are matched by (id, draw), never by position. An implementation yields results in any order and
exactly one for each request: a request that failed comes back with `finish="failed"` and its reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol, TypedDict

from cuvee.config import Config


class Message(TypedDict, total=False):
    """One turn. `weight` (0 to 1) scales the loss of the turn; absent means 1."""

    role: str
    content: str
    weight: float | None


class Decoding(Config):
    """How to generate. Part of a step's key. Temperature 0 is greedy."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    """When given, the answer is exactly one of these strings (constrained decoding)."""
    first_tokens: int = 0
    """How many of the likeliest first tokens to report with their log-probabilities (at most 20)."""


@dataclass(frozen=True)
class Request:
    """Something to continue: `messages` (rendered with the model's chat template) or raw `text`.

    `seed` is the request's own (from the row and the draw), so that results do not depend on batching.
    """

    id: str
    messages: tuple[Message, ...] = ()
    text: str | None = None
    draw: int = 0
    seed: int = 0


Finish = Literal["stop", "length", "failed"]


@dataclass(frozen=True)
class Completion:
    """`logprob` is the sum over the generated tokens under the generating model, in nats; `tokens` their number."""

    id: str
    draw: int
    text: str
    finish: Finish
    tokens: int = 0
    logprob: float | None = None
    error: str = ""
    first_token_logprobs: Mapping[str, float] = field(default_factory=dict)
    """Log-probabilities of the likeliest first tokens, by text (for expected scores); empty unless asked for."""


class Generate(Protocol):
    """A model that continues requests."""

    @property
    def name(self) -> str:
        """For provenance: model and revision."""

    def __call__(self, requests: Iterable[Request], decoding: Decoding) -> Iterator[Completion]: ...


@dataclass(frozen=True)
class ScoreRequest:
    """A text whose log-probability is asked: the assistant turns of `messages`, `continuation` after `context`, or
    every token of `ids` but the first."""

    id: str
    messages: tuple[Message, ...] = ()
    context: str | None = None
    continuation: str | None = None
    draw: int = 0
    last_only: bool = False
    """With messages: only the last assistant turn."""
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Scored:
    """`logprob` in nats, summed over the `tokens` scored tokens; `greedy`: each of them was the likeliest."""

    id: str
    draw: int
    logprob: float
    tokens: int
    greedy: bool = False
    truncated: bool = False
    error: str = ""
    each: tuple[float, ...] = ()
    """With ids: the log-probability of each scored token, in order."""


class Score(Protocol):
    """A model that tells the log-probability of given texts."""

    @property
    def name(self) -> str:
        """For provenance: model and revision."""

    def __call__(self, requests: Iterable[ScoreRequest]) -> Iterator[Scored]: ...


class Grade(Protocol):
    """A judge or a reward model: how good each answer is, higher is better, None where it did not decide.

    `asked`: (name, conversation, answer); the answer stands for the conversation's last assistant turn.
    """

    def __call__(
        self, kind: str, asked: Sequence[tuple[str, tuple[Message, ...], str]], rubric: str
    ) -> Mapping[str, float | None]: ...


class Label(StrEnum):
    """A judge's word. `unsure` covers every failure to decide and is never accepted as equivalent."""

    EQUIVALENT = "equivalent"
    DIFFERENT = "different"
    UNSURE = "unsure"


@dataclass(frozen=True)
class Case:
    """One prediction to judge. `references` are alternative golds, `tests` asserts for code."""

    id: str
    prompt: str
    prediction: str
    references: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """`evidence` is what the judge looked at (the two numbers, the failing assert); `score` where it has a degree."""

    label: Label
    reason: str
    evidence: str = ""
    score: float | None = None


class Judge(Protocol):
    """Decides whether predictions say the same as their references. One verdict a case, in order."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]: ...
