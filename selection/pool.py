"""The shapes in which people keep instruction data, and how each becomes a row.

A shape is recognised by the columns of a record, because that is what the tools that write them agree on; a recipe may
name it where two could fit. What no shape reads is kept in `meta`, so that nothing that a source said is lost.

| shape | columns |
|---|---|
| messages | `messages`: role and content, per turn `weight` or `train` (OpenAI, Tulu, UltraChat) |
| sharegpt | `conversations`: from and value (Vicuna), or plain strings that take turns (LIMA) |
| mbpp | `text` or `prompt`, `code`, `test_list`, `test_setup_code` |
| dolly | `instruction`, `context`, `response` |
| alpaca | `instruction`, `input`, `output` or `response`, `system` |
| qa | `question`, `answer` or `answers`, a passage as `context` (GSM8K, SQuAD, Natural Questions) |
| completion | `prompt`, `completion` or `response`: texts or lists of messages |
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cuvee.errors import DataError, UserError, nearest
from cuvee.protocols import Message
from cuvee.rows import check_messages

Record = Mapping[str, Any]

_ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "model": "assistant",
    "developer": "system",
    "function": "tool",
    "observation": "tool",
}
"""Other names of the four roles; those of `cuvee.rows.ROLES` stay as they are."""

_CALC = re.compile(r"<<[^<>\n]*>>")


def recognise(record: Record, shape: str | None = None, *, strip_calc: bool = False) -> dict[str, Any]:
    """The record as `{messages, references, tests, weight, meta}`, ready for `cuvee.rows.make_table`.

    `shape` names the shape; without it the columns decide. `strip_calc` removes the calculator marks of GSM8K
    (`<<48/2=24>>`) from the answers. `references` is empty where the last assistant turn is the only gold.
    Raises DataError that names the field, UserError for an unknown shape.
    """
    form = _named(shape) if shape is not None else _guess(record)
    row = form.read(record)
    messages = [dict(m) for m in row["messages"]]
    references = row.get("references") or _texts(record.get("references"))
    if strip_calc:
        for message in messages:
            if message["role"] == "assistant":
                message["content"] = _CALC.sub("", message["content"])
        references = [_CALC.sub("", r) for r in references]
    check_messages(messages)
    return {
        "messages": messages,
        "references": references,
        "tests": row.get("tests") or _texts(record.get("tests")),
        "weight": _weight(record.get("weight"), "weight"),
        "meta": _meta(record, {*form.reads, *_OWN}),
    }


_OWN = ("target", "references", "tests", "weight", "meta")
"""Columns of our own tables beside the conversation. `id` and `source` go to `meta`: a row gets its own here."""


def _meta(record: Record, used: set[str]) -> dict[str, Any]:
    rest = {str(k): v for k, v in record.items() if k not in used and v is not None and v != ""}
    meta = record.get("meta")
    if isinstance(meta, str) and meta.startswith("{"):  # our own tables keep it as JSON
        meta = json.loads(meta)
    return {**(meta if isinstance(meta, Mapping) else {"meta": meta} if meta else {}), **rest}


@dataclass(frozen=True)
class Shape:
    """`needs`: for each entry, one of these columns must be there. `reads`: the columns that `read` consumes."""

    needs: tuple[tuple[str, ...], ...]
    reads: tuple[str, ...]
    read: Callable[[Record], dict[str, Any]]

    def fits(self, record: Record) -> bool:
        return all(any(record.get(c) is not None for c in columns) for columns in self.needs)


def shapes() -> tuple[str, ...]:
    """The names that a recipe may write as `shape`."""
    return tuple(SHAPES)


def _named(shape: str) -> Shape:
    try:
        return SHAPES[shape]
    except KeyError:
        raise UserError(f"unknown shape {shape!r}", remedy=nearest(shape, SHAPES)) from None


def _guess(record: Record) -> Shape:
    for form in SHAPES.values():
        if form.fits(record):
            return form
    raise DataError(
        f"columns {', '.join(sorted(map(str, record))) or '(none)'} fit no known shape",
        remedy=f"name the shape ({', '.join(SHAPES)}) or map the columns, e.g. columns: {{question: problem}}",
    )


def _messages(record: Record) -> dict[str, Any]:
    turns = _list(record, "messages")
    return {"messages": [_turn(turn, f"messages[{i}]", "role", "content") for i, turn in enumerate(turns)]}


def _sharegpt(record: Record) -> dict[str, Any]:
    name = next(c for c in ("conversations", "conversation", "items") if record.get(c) is not None)
    turns = _list(record, name)
    if all(isinstance(turn, str) for turn in turns):
        return {"messages": [_said("assistant" if i % 2 else "user", turn) for i, turn in enumerate(turns)]}
    messages = []
    if system := _optional(record, "system"):
        messages.append(_said("system", system))
    for i, turn in enumerate(turns):
        keys = ("from", "value") if isinstance(turn, Mapping) and "from" in turn else ("role", "content")
        messages.append(_turn(turn, f"{name}[{i}]", *keys))
    return {"messages": messages}


def _mbpp(record: Record) -> dict[str, Any]:
    task = _text(record, "text" if record.get("text") is not None else "prompt")
    code = _text(record, "code").replace("\r\n", "\n").strip("\n")
    tests = [str(t) for t in _list(record, "test_list")]
    setup = str(record.get("test_setup_code") or "").replace("\r\n", "\n")
    prompt = "\n".join([f"{task}\nYour code should pass these tests:\n", *tests]) if tests else task
    return {
        "messages": [_said("user", prompt), _said("assistant", code)],
        "tests": [*([setup] if setup else []), *tests],
    }


def _dolly(record: Record) -> dict[str, Any]:
    prompt = _join(_text(record, "instruction"), _optional(record, "context"))
    return {"messages": [_said("user", prompt), _said("assistant", _text(record, "response"))]}


def _alpaca(record: Record) -> dict[str, Any]:
    system = _optional(record, "system")
    prompt = _join(_text(record, "instruction"), _optional(record, "input"))
    answer = _text(record, "output" if record.get("output") is not None else "response")
    head = [_said("system", system)] if system else []
    return {"messages": [*head, _said("user", prompt), _said("assistant", answer)]}


def _qa(record: Record) -> dict[str, Any]:
    passage = next((t for c in ("context", "passage") if (t := _optional(record, c))), "")
    question = _text(record, "question")
    given = record.get("answers") if record.get("answers") is not None else record.get("answer")
    if isinstance(given, Mapping):  # SQuAD: {"text": [...], "answer_start": [...]}
        given = given.get("text")
    answers = [given] if isinstance(given, str) else given
    if not isinstance(answers, list | tuple) or not answers or not all(isinstance(a, str) for a in answers):
        raise DataError("is neither a text nor a list of texts", field="answer")
    prompt = f"{passage}\n\nQuestion: {question}" if passage else question
    return {
        "messages": [_said("user", prompt), _said("assistant", answers[0])],
        "references": list(dict.fromkeys(answers)) if len(answers) > 1 else [],
    }


def _completion(record: Record) -> dict[str, Any]:
    name = "completion" if record.get("completion") is not None else "response"
    return {"messages": [*_part(record, "prompt", "user"), *_part(record, name, "assistant")]}


def _part(record: Record, name: str, role: str) -> list[Message]:
    if isinstance(record.get(name), str):
        return [_said(role, record[name])]
    return [_turn(turn, f"{name}[{i}]", "role", "content") for i, turn in enumerate(_list(record, name))]


SHAPES: dict[str, Shape] = {
    "messages": Shape((("messages",),), ("messages",), _messages),
    "sharegpt": Shape(
        (("conversations", "conversation", "items"),), ("conversations", "conversation", "items", "system"), _sharegpt
    ),
    "mbpp": Shape(
        (("text", "prompt"), ("code",), ("test_list",)),
        ("text", "prompt", "code", "test_list", "test_setup_code"),
        _mbpp,
    ),
    "dolly": Shape((("instruction",), ("context",), ("response",)), ("instruction", "context", "response"), _dolly),
    "alpaca": Shape(
        (("instruction",), ("output", "response")), ("instruction", "input", "output", "response", "system"), _alpaca
    ),
    "qa": Shape((("question",), ("answer", "answers")), ("question", "answer", "answers", "context", "passage"), _qa),
    "completion": Shape((("prompt",), ("completion", "response")), ("prompt", "completion", "response"), _completion),
}
"""In the order of the guess: a conversation wins over its parts, more columns over fewer."""


def _said(role: str, content: str) -> Message:
    return Message(role=role, content=content)


def _turn(turn: object, field: str, role_key: str, text_key: str) -> Message:
    if not isinstance(turn, Mapping):
        raise DataError("is not a turn with a role and a text", field=field)
    role = str(turn.get(role_key, ""))
    message = Message(role=_ROLES.get(role, role), content=_content(turn.get(text_key), f"{field}.{text_key}"))
    weight = _weight(turn.get("weight"), f"{field}.weight")
    if turn.get("train") is False:
        weight = 0.0
    if weight is not None:
        message["weight"] = weight
    return message


def _content(value: object, field: str) -> str:
    """Text as it is, or the text parts of OpenAI's list form."""
    if isinstance(value, list):
        if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in value):
            raise DataError("has parts that are not text", field=field)
        return "".join(part["text"] for part in value)
    if not isinstance(value, str):
        raise DataError("is not text", field=field, remedy="tool calls must be rendered as text first")
    return value


def _weight(value: object, field: str) -> float | None:
    if value is None or value == "":
        return None
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise DataError(f"{value!r} is not a number", field=field) from None


def _list(record: Record, name: str) -> list[Any]:
    value = record.get(name)
    if not isinstance(value, list | tuple):
        raise DataError("is not a list", field=name)
    return list(value)


def _texts(value: object) -> list[str]:
    return [str(v) for v in value] if isinstance(value, list | tuple) else []


def _text(record: Record, name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str):
        raise DataError("is not text" if value is not None else "is missing", field=name)
    return value


def _optional(record: Record, name: str) -> str:
    return _text(record, name) if record.get(name) is not None else ""


def _join(instruction: str, extra: str) -> str:
    return f"{instruction}\n\n{extra}" if extra.strip() else instruction
