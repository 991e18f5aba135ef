"""Finds the program in a model's answer.

Answers come as chat (prose around fenced blocks, or markers), as bare code, or as the continuation of a prompt that is
itself code (HumanEval). Which block is meant is told by what the tests call.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

_FENCE = re.compile(
    r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+#.-]*)[^\n]*\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)", re.MULTILINE | re.DOTALL
)
_PYTHON = ("", "python", "py", "python3", "py3", "pycon", "ipython")
_CODE_LINE = re.compile(r"^(?:def |class |import |from \w|@|async def |\w+\s*=)")


@dataclass(frozen=True)
class Program:
    """`shape`: how it was found; `problem`: why there is none."""

    text: str
    shape: str
    problem: str = ""


def extract(prediction: str, *, prompt: str = "", names: Collection[str] = ()) -> Program:
    """The program in `prediction`. `names` are functions that the tests call."""
    if not prediction.strip():
        return Program("", "", "the prediction is empty")
    if "[[BEGIN]]" in prediction:
        inner = prediction.rpartition("[[BEGIN]]")[2].partition("[[DONE]]")[0]
        return extract(inner, prompt=prompt, names=names)
    blocks = [match[3] for match in _FENCE.finditer(prediction) if match[2].lower() in _PYTHON]
    if blocks:
        named = [block for block in blocks if _defines(block, names)]
        text, shape = (named[0] if named else max(blocks, key=len)), "fenced"
    elif _parses(prediction):
        text, shape = prediction, "code"
    else:
        text, shape = _in_prose(prediction), "chat"
    code_prompt = bool(prompt.strip()) and _parses(prompt.rstrip() + "\n    pass\n")
    if code_prompt and not _defines(text, names):
        continued = _continued(prompt, blocks[0] if blocks else prediction)
        if continued:
            return Program(continued, "completion")
    if not text.strip():
        return Program("", "", "no program in the prediction")
    if code_prompt:  # imports and helpers that stand before the function
        text = _before(prompt, names) + text
    return Program(text, shape)


def called(tests: Sequence[str]) -> set[str]:
    """Names that the tests use and neither define nor import."""
    used: set[str] = set()
    own: set[str] = set()
    for test in tests:
        try:
            tree = ast.parse(test)
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            match node:
                case ast.Name(id=name, ctx=ast.Load()):
                    used.add(name)
                case ast.Name(id=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
                    own.add(name)
                case ast.alias(name=name, asname=alias):
                    own.add(alias or name.partition(".")[0])
    return {name for name in used - own if not hasattr(builtins, name)}


def _parses(text: str) -> bool:
    try:
        return bool(ast.parse(text).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _defines(text: str, names: Collection[str]) -> bool:
    return any(
        re.search(rf"^(?:async\s+)?(?:def|class)\s+{re.escape(name)}\b|^{re.escape(name)}\s*=", text, re.M)
        for name in names
    )


def _in_prose(text: str) -> str:
    """The longest run of lines that starts like code and parses."""
    lines = text.splitlines()
    for start, line in enumerate(lines):
        if not _CODE_LINE.match(line):
            continue
        for end in range(len(lines), start, -1):
            piece = "\n".join(lines[start:end])
            if _parses(piece):
                return piece
        return "\n".join(lines[start:])  # it is code with an error, and the sandbox will say which
    return ""


def _continued(prompt: str, text: str) -> str:
    """Prompt and body as one program, cut before whatever follows the body; empty if that does not parse."""
    body = text if text[:1].isspace() else "    " + text
    lines = body.splitlines()
    for end in range(len(lines), 0, -1):
        whole = prompt.rstrip() + "\n" + "\n".join(lines[:end]) + "\n"
        if _parses(whole):
            return whole
    return ""


def _before(prompt: str, names: Collection[str]) -> str:
    """What of a code prompt comes before the function that is asked for."""
    starts = [match.start() for name in names if (match := re.search(rf"^def\s+{re.escape(name)}\b", prompt, re.M))]
    # The last of them: tests may also call helpers, which stand before.
    return prompt[: max(starts)] + "\n" if starts else ""
