"""Candidate targets: ask the model, clean, reject what no judge should see, then judge.

One function does it for own answers and for paraphrases, so that both pass the same gates. A request that fails is
asked once more with the same seed; what fails again is recorded as failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cuvee.protocols import Case, Completion, Decoding, Generate, Judge, Label, Message, Request, Score, ScoreRequest
from cuvee.rng import stream_seed
from selection.cleaning import Strip, clean, echo, leak, loop

Kind = Literal["own", "paraphrase"]
Decision = Literal["equivalent", "different", "unsure", "rejected", "failed"]
"""A judge's label, or what came before any judge: `rejected` by a gate here, `failed` in generation."""


@dataclass(frozen=True)
class Item:
    """One row as the pipeline sees it. `prompt` is what is trained on and what own answers continue."""

    id: str
    target: int
    source: str
    prompt: tuple[Message, ...]
    question: str
    gold: str
    references: tuple[str, ...]
    tests: tuple[str, ...]
    meta: dict[str, object]
    paraphrase: tuple[Message, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """One generated text, cleaned. `logprob` and `tokens` are those of the generation, before cleaning."""

    text: str
    finish: str
    decision: Decision
    reason: str
    draw: int = 0
    score: float | None = None
    logprob: float | None = None
    tokens: int = 0
    error: str = ""

    @property
    def accepted(self) -> bool:
        return self.decision == "equivalent"


def candidates(
    items: Sequence[Item],
    kind: Kind,
    *,
    generate: Generate,
    judge: Judge | None,
    decoding: Decoding,
    draws: int,
    seed: int,
    strip: Sequence[Strip],
) -> dict[str, list[Candidate]]:
    """By row id, `draws` candidates in draw order. Without a judge every text that passes the gates is `unsure`."""
    requests = [
        Request(
            id=item.id,
            messages=item.prompt if kind == "own" else item.paraphrase,
            draw=draw,
            seed=stream_seed(seed, "respond", kind, item.id, draw),
        )
        for item in items
        for draw in range(draws)
    ]
    done = ask(requests, generate, decoding)
    found = {item.id: [_gate(item, kind, done[item.id, draw], strip) for draw in range(draws)] for item in items}
    return _judged(items, found, judge) if judge is not None else found


def ask(requests: Sequence[Request], generate: Generate, decoding: Decoding) -> dict[tuple[str, int], Completion]:
    """One completion for each request, whatever the generator yields; failures are asked once more."""
    done = _collect(requests, generate, decoding)
    again = [request for request in requests if done[request.id, request.draw].finish == "failed"]
    if again:
        done.update(_collect(again, generate, decoding))
    return done


def _collect(requests: Sequence[Request], generate: Generate, decoding: Decoding) -> dict[tuple[str, int], Completion]:
    answers: Iterable[Completion] = generate(requests, decoding) if requests else ()
    done = {(answer.id, answer.draw): answer for answer in answers}
    for request in requests:
        missing = Completion(request.id, request.draw, "", "failed", error="the generator returned nothing for it")
        done.setdefault((request.id, request.draw), missing)
    return done


def _gate(item: Item, kind: Kind, answer: Completion, strip: Sequence[Strip]) -> Candidate:
    """What can be said without a judge."""
    text = clean(answer.text, strip)
    base = Candidate(
        text, answer.finish, "unsure", "not judged", answer.draw, None, answer.logprob, answer.tokens, answer.error
    )
    if answer.finish == "failed":
        return replace(base, decision="failed", reason=answer.error or "generation failed")
    if not text:
        return replace(base, decision="rejected", reason="empty")
    if answer.finish == "length":
        return replace(base, decision="rejected", reason="truncated at the token limit")
    if piece := loop(text):
        return replace(base, decision="rejected", reason=f"loops: {piece!r}")
    if kind == "paraphrase" and (phrase := leak(text, item.question, item.gold) or _echo(text, item)):
        return replace(base, decision="rejected", reason=f"leaks: {phrase!r}")
    return base


def _echo(text: str, item: Item) -> str:
    """What a paraphrase repeats of its prompt, and neither the row's own prompt nor the gold says."""
    return echo(text, _said(item.paraphrase), _said(item.prompt), item.gold)


def _said(messages: Sequence[Message]) -> str:
    """All that a conversation says."""
    return "\n".join(message["content"] for message in messages)


def _judged(items: Sequence[Item], found: dict[str, list[Candidate]], judge: Judge) -> dict[str, list[Candidate]]:
    """The candidates that passed the gates, with verdicts; one call, so that judges can batch."""
    open_ = [(item, c) for item in items for c in found[item.id] if c.decision == "unsure"]
    cases = [
        Case(f"{item.id}/{c.draw}", item.question, c.text, item.references, item.tests, item.meta) for item, c in open_
    ]
    verdicts = judge(cases) if cases else []
    words: dict[Label, Decision] = {
        Label.EQUIVALENT: "equivalent",
        Label.DIFFERENT: "different",
        Label.UNSURE: "unsure",
    }
    for (item, c), verdict in zip(open_, verdicts, strict=True):
        reason = f"{verdict.reason}: {verdict.evidence}" if verdict.evidence else verdict.reason
        found[item.id][c.draw] = replace(c, decision=words[verdict.label], reason=reason, score=verdict.score)
    return found


def logprobs(
    texts: Sequence[tuple[Item, str, str]], score: Score
) -> dict[tuple[str, str], tuple[float | None, int, str]]:
    """(row id, name) to (log-probability in nats, tokens, error) of texts as the answer to the row's own prompt."""
    names = sorted({name for _, name, _ in texts})
    requests = [
        ScoreRequest(
            id=item.id,
            messages=(*item.prompt, Message(role="assistant", content=text)),
            draw=names.index(name),
            last_only=True,
        )
        for item, name, text in texts
    ]
    return {
        (scored.id, names[scored.draw]): (None if scored.error else scored.logprob, scored.tokens, scored.error)
        for scored in score(requests)
    }
