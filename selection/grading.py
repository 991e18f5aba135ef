"""Grades of 1 to 6 by an instruct model, as in Deita (arXiv 2312.15685).

The grade is not the digit that the model writes but the expected value under the probabilities of the six digits as the
first token: a model that wavers between 3 and 4 says 3.5, and one forward pass a grade is enough. Deita trained two
scorers for this; here any instruct model is asked, with the prompts in `prompts/deita.jinja`. A chat has a grade for
each of its answers: Deita multiplies quality and complexity of a turn and sums over turns, which favours long chats.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from cuvee import prompts
from cuvee.protocols import Completion, Decoding, Message, Request

GRADES = {str(grade): grade for grade in range(1, 7)}
DECODING = Decoding(max_new_tokens=1, first_tokens=20)
PROMPTS = Path(__file__).with_name("prompts")

Turns = Sequence[tuple[str, str]]


def turns(messages: Sequence[Message], which: Literal["sum", "mean", "last"] = "sum") -> Turns:
    """(instruction, response) of each answer, or of the last; the instruction is the user's turn before it."""
    found, instruction = [], ""
    for message in messages:
        if message["role"] == "user":
            instruction = message["content"]
        elif message["role"] == "assistant" and instruction:
            found.append((instruction, message["content"]))
    return found[-1:] if which == "last" else found


def requests(rows: Mapping[str, Turns], kinds: Sequence[str]) -> Iterator[Request]:
    """For each row and turn one request a kind ("quality", "complexity"); `draw` is turn * kinds + kind."""
    prompt = prompts.load("deita", PROMPTS)
    for name, pairs in rows.items():
        for turn, (instruction, response) in enumerate(pairs):
            for i, kind in enumerate(kinds):
                text = prompt.text(kind, instruction=instruction, response=response)
                yield Request(id=name, messages=(Message(role="user", content=text),), draw=turn * len(kinds) + i)


def grades(completions: Iterable[Completion]) -> tuple[dict[str, dict[int, float]], dict[str, str]]:
    """The grades of each row by draw, and the reason for each row that lacks one."""
    found: dict[str, dict[int, float]] = {}
    failed: dict[str, str] = {}
    for completion in completions:
        grade = expected(completion)
        if isinstance(grade, str):
            failed[completion.id] = grade
        else:
            found.setdefault(completion.id, {})[completion.draw] = grade
    return found, failed


def expected(completion: Completion) -> float | str:
    """The mean grade under the probabilities of the digits as the first token, or what is wrong."""
    if completion.finish == "failed":
        return completion.error or "the request failed"
    weights: dict[int, float] = {}
    for text, logprob in completion.first_token_logprobs.items():
        if grade := GRADES.get(text.strip()):  # "3" and " 3" are two tokens and one grade
            weights[grade] = weights.get(grade, 0.0) + math.exp(logprob)
    total = sum(weights.values())
    if not total:
        return f"no grade among the likeliest first tokens (said {completion.text!r})"
    return sum(grade * weight for grade, weight in weights.items()) / total


def combine(found: Mapping[int, float], kinds: int, *, mean: bool = False) -> float:
    """A row's score: the product of the kinds in each turn, summed (or averaged) over turns."""
    ordered = [found[draw] for draw in sorted(found)]
    products = np.prod(np.reshape(ordered, (-1, kinds)), axis=1)
    return float(products.mean() if mean else products.sum())
