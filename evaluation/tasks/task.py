"""What a benchmark is: items, how to ask, how to extract, how to score, each apart and versioned together.

Asking is a function of the item and the options alone; extraction and scoring see the answer and never the model. So
a change in one of them is visible as a new version, and answers that were paid for can be scored again. Everything
that changes a score is written into the `version` of each item row (shots, template, token limit, judge), because
figures of other harnesses differ by exactly these (lm-evaluation-harness 1841, 3150).

A `limit` takes the items whose ids hash lowest: the same items for every model and seed, spread over all subjects,
and the items of a smaller limit are among those of a larger one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar

import pyarrow as pa
from pydantic import Field

from cuvee.config import Config
from cuvee.errors import DataError, MissingError, UserError
from cuvee.protocols import Case, Completion, Decoding, Generate, Judge, Label, Message, Request, Score, Verdict
from cuvee.rng import stream_seed
from evaluation.data import Row, Source

Kind = Literal["numeric", "code", "choice", "qa", "instruction", "chat", "loss"]
T = TypeVar("T")


class EvalOptions(Config):
    """How tasks are run. Fields that are None leave it to the task."""

    limit: int | None = Field(default=None, ge=1, description="items of each task; None is all")
    shots: int | None = Field(default=None, ge=0, description="worked examples before the question")
    chat: bool | None = Field(default=None, description="ask through the model's chat template")
    max_new_tokens: int | None = Field(default=None, ge=1, description="tokens of an answer")
    judgements: int = Field(default=1, ge=1, description="of each answer of judged chat; more than one are sampled")
    judge_seed: int = Field(default=0, description="of sampled judgements")
    data: dict[str, str] = Field(default_factory=dict, description='task → path, glob, "hub:" or "hub:name@split"')


DEFAULTS = EvalOptions()


@dataclass(frozen=True)
class Item:
    """One question of a benchmark. `answer` is how a worked example would answer it; `references` are for the judge.

    Multiple choice: `contexts` and `choices` have one entry a choice, `gold` marks the right ones.
    """

    id: str
    question: str = ""
    answer: str = ""
    references: tuple[str, ...] = ()
    group: str = ""
    tests: tuple[str, ...] = ()
    contexts: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    gold: tuple[int, ...] = ()
    examples: tuple[Item, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """A benchmark. `run` gives an item table (`evaluation.items.SCHEMA`), whose rows have one metric of one item.

    `judge` decides answers where the default would not do; for kind "chat" it is the model that judges.
    """

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def metric(self) -> str: ...
    @property
    def sources(self) -> tuple[Source, ...]: ...

    def items(self, options: EvalOptions = DEFAULTS) -> list[Item]: ...

    def run(
        self,
        items: Sequence[Item],
        *,
        generate: Generate | None = None,
        score: Score | None = None,
        judge: Any = None,
        options: EvalOptions = DEFAULTS,
    ) -> pa.Table: ...


def content_id(*parts: object) -> str:
    """A stable item id from content, for data sets that have none."""
    return hashlib.blake2b("\x1f".join(str(p) for p in parts).encode(), digest_size=8).hexdigest()


def unique(items: Iterable[Item]) -> list[Item]:
    """Items whose repeated ids carry an occurrence number."""
    seen: Counter[str] = Counter()
    out = []
    for item in items:
        seen[item.id] += 1
        out.append(item if seen[item.id] == 1 else replace(item, id=f"{item.id}#{seen[item.id]}"))
    return out


def choose(items: Sequence[Item], pool: Sequence[Item] | None, options: EvalOptions, shots: int) -> list[Item]:
    """The items to ask, each with its `shots` examples.

    Examples come from `pool`, in its order and of the item's own group where the pool has it. Without a pool the
    first `shots` items (in the order of hashed ids) are held back for it and not asked.
    """
    ordered = sorted(unique(items), key=lambda item: (content_id(item.id), item.id))
    if shots and pool is None:
        pool, ordered = ordered[:shots], ordered[shots:]
    if not ordered:
        raise UserError("no items are left to ask", remedy="ask for fewer examples")
    asked = ordered[: options.limit]
    if not shots:
        return asked
    groups = {item.group for item in pool or ()}

    def of(item: Item) -> tuple[Item, ...]:
        near = [e for e in pool or () if item.group not in groups or e.group == item.group]
        if len(near) < shots:
            raise UserError(f"{shots} examples were asked for, and there are {len(near)}", remedy="ask for fewer")
        return tuple(near[:shots])

    return [replace(item, examples=of(item)) for item in asked]


def parse_rows(task: str, rows: Iterable[Row], parse: Callable[[Row], Item | None]) -> list[Item]:
    """Items from rows in the hub's format; `parse` gives None for a row that is not of the benchmark.

    Raises DataError for a row without what the task needs, with its number.
    """
    out = []
    for number, row in enumerate(rows):
        try:
            item = parse(row)
            if item is not None:
                out.append(item)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(
                f"row {number} of {task} has no usable {error}", remedy="the file must have the hub's columns"
            ) from error
    if not out:
        raise DataError(f"{task} has no rows")
    return out


def need(thing: T | None, what: str, task: str) -> T:
    if thing is None:
        raise UserError(f"{task} needs a model that can {what}", remedy=f"pass {what}=")
    return thing


def collect(generate: Generate, requests: Sequence[Request], decoding: Decoding) -> dict[str, Completion]:
    """Completions by request id; one that did not come back is a failed one."""
    found = {completion.id: completion for completion in generate(requests, decoding)}
    lost = {r.id: Completion(r.id, r.draw, "", "failed", error="no completion came back") for r in requests}
    return {**lost, **{key: found[key] for key in found if key in lost}}


def request(task: str, key: str, messages: Sequence[Message] = (), text: str | None = None) -> Request:
    """A request whose seed is its own."""
    return Request(key, tuple(messages), text=text, seed=stream_seed(0, "task", task, key))


def shown(messages: Sequence[Message]) -> str:
    """A conversation as text for people: the turn itself if there is one only."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{m['role']}: {m['content']}" for m in messages)


def stamp(version: str, options: EvalOptions, *, shots: int, chat: bool, extra: str = "") -> str:
    """The `version` of item rows: all that changes how an item is asked or scored."""
    tokens = f" max_new_tokens={options.max_new_tokens}" if options.max_new_tokens else ""
    return f"{version} shots={shots} chat={'on' if chat else 'off'}{tokens}{' ' + extra if extra else ''}"


def judged_row(completion: Completion, verdict: Verdict | None) -> dict[str, Any]:
    """score, verdict, reason, correct, error, logprob, tokens of one judged answer.

    `unsure` is not right, and stays visible as unsure; an answer that never came has no score.
    """
    row: dict[str, Any] = {"prediction": completion.text, "logprob": completion.logprob, "tokens": completion.tokens}
    if verdict is None or completion.finish == "failed":
        return {**row, "score": None, "correct": None, "error": completion.error or "the generation failed"}
    right = verdict.label is Label.EQUIVALENT
    cut = "cut at the token limit; " if completion.finish == "length" else ""
    return {
        **row,
        "score": float(right),
        "correct": right,
        "verdict": str(verdict.label),
        "reason": cut + verdict.reason,
    }


def verdicts(judge: Judge, cases: Sequence[Case]) -> dict[str, Verdict]:
    """Verdicts by case id. Raises MissingError when the judge does not answer each case."""
    found = judge(cases)
    if len(found) != len(cases):
        raise MissingError(f"the judge {judge.name} gave {len(found)} verdicts for {len(cases)} cases")
    return {case.id: verdict for case, verdict in zip(cases, found, strict=True)}
