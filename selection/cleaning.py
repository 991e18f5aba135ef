"""What a generated text must not carry into training: markers, fences, leaks of the instruction, and loops.

A model that is shown a reference and asked for its own version may talk about the reference. Such a target teaches the
tuned model to mention a text that nobody gave it (the SDFT authors filter a few phrases for this reason; the list here
is our own and longer). A phrase that stands in the question or in the gold is no leak.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Literal

Strip = Literal["markers", "fences"]

_BEGIN, _DONE = "[[BEGIN]]", "[[DONE]]"
_FENCE = re.compile(
    r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+#.-]*)[ \t]*\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)", re.MULTILINE | re.DOTALL
)

_LEAKS = re.compile(
    r"reference (?:answer|solution|response|text|code|implementation)"
    r"|(?:the|your|this) (?:given|provided|reference|original|above|gold(?:en)?|sample) (?:answer|solution|response)"
    r"|(?:as|like|was|were) (?:given|stated|provided|shown) (?:above|in the (?:reference|answer|solution))"
    r"|(?:answer|solution|response) (?:you|that was) (?:gave|provided|given)"
    r"|according to the (?:reference|given answer|provided answer)"
    r"|\bI was (?:shown|given)\b|\bfor guidance\b|(?:to|at) the end of the (?:answer|passage)"
    r"|I'm ready to help|your next question"
    r"|in my own words|rephras(?:e|ed|ing)|paraphras(?:e|ed|ing)|reworded|rewritten (?:answer|version|response)"
    r"|here is (?:my|a|the) (?:own )?(?:version|paraphrase|rewrite|restatement)"
    r"|\[\[(?:BEGIN|DONE)\]\]|^\s*your turn\b",
    re.IGNORECASE | re.MULTILINE,
)

ECHO = 5
"""So many words in a row are no chance."""
LOOP_CHARS = 60
LOOP_TIMES = 4


def clean(text: str, strip: Collection[Strip]) -> str:
    """The text without `[[BEGIN]]`/`[[DONE]]` and, if asked, without its code fences; outer white space dropped.

    With fences stripped, a text that has fenced blocks becomes the content of the longest one: what surrounds it is
    talk about the code.
    """
    if "markers" in strip:
        text = text.rpartition(_BEGIN)[2] if _BEGIN in text else text
        text = text.partition(_DONE)[0]
    if "fences" in strip:
        blocks = [match[3] for match in _FENCE.finditer(text)]
        text = max(blocks, key=len) if blocks else text
    return text.strip("\n").rstrip() if "fences" in strip else text.strip()


def leak(text: str, *known: str) -> str:
    """The first phrase that betrays the instruction and stands in none of the `known` texts; empty if there is none."""
    folded = [part.casefold() for part in known]
    for match in _LEAKS.finditer(text):
        if not any(match[0].casefold() in part for part in folded):
            return match[0].strip()
    return ""


def echo(text: str, instruction: str, *known: str) -> str:
    """Words in a row that the text takes from the instruction and from none of the `known` texts; empty if it does not.

    Small models like to repeat what they were told, in any wording that a recipe's own prompts may have.
    """
    echoed = _runs(text) & _runs(instruction)
    if echoed:
        echoed.difference_update(*map(_runs, known))
    return " ".join(min(echoed)) if echoed else ""


def _runs(text: str) -> set[tuple[str, ...]]:
    found = re.findall(r"\w+", text.casefold())
    return {tuple(found[i : i + ECHO]) for i in range(len(found) - ECHO + 1)}


def loop(text: str) -> str:
    """The repeated piece when the text runs in a circle; empty if it does not.

    A text loops when its end repeats one piece at least 4 times over 60 characters or more, or when one line with words
    stands in it more than 5 times and makes up half of it. Rules and padding ("-----", "0000") are no loops.
    """
    end = text.rstrip()
    for period in range(1, len(end) // LOOP_TIMES + 1):
        if period > 400:
            break
        times = max(LOOP_TIMES, -(-LOOP_CHARS // period))
        if period * times > len(end):
            continue
        piece = end[-period:]
        if any(c.isalpha() for c in piece) and end.endswith(piece * times):
            return piece.strip()[:60]
    lines = [line.strip() for line in end.splitlines() if any(c.isalpha() for c in line)]
    for line in set(lines):
        count = lines.count(line)
        if count > 5 and count * 2 > len(lines) and len(line) > 3:
            return line[:60]
    return ""
