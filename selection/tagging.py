"""Tags for what a conversation is about, so that a source can be divided by ability.

DMT (2310.05492) removes from ShareGPT the rows whose InsTag labels match "code" or "math". Where a data set carries
such labels they are matched in the same way (`labels` names the field). Without them, patterns look at the text itself:
code by its syntax and the names of languages, math by notation and the words of exercises. That is crude, cheap and
inspectable; a tag says that a pattern was found and not that a model understood the topic.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from pydantic import Field, model_validator

from cuvee.config import Config
from cuvee.errors import nearest
from cuvee.protocols import Message
from selection.hygiene import conversations, split

PATTERNS = {
    "code": r"""
        ```\s*(?:python|py|js|javascript|typescript|java|cpp|c\+\+|c\#|bash|sh|sql|html|css|go|rust|php|ruby|r)\b
      | ^\s*(?:def|class)\s+\w+\s*[(:] | ^\s*(?:import|from)\s+[\w.]+(?:\s+import\b|\s*$)
      | ^\s*\#include\s*[<"] | \bpublic\s+(?:static|class)\b | \bfunction\s+\w+\s*\( | =>\s*\{ | \bconsole\.log\(
      | \bSELECT\b[^.;\n]{1,200}\bFROM\b | <(?:div|html|script|body|span)\b
      | \b(?i:python|javascript|typescript|java|c\+\+|golang|sql|html|css|regex|source\ code|compiler|algorithm)\b
      | \b(?i:programming|code\ snippet|write\ (?:a|some)\ (?:code|script|function|program))\b
    """,
    "math": r"""
        \\(?:frac|sqrt|sum|int|begin\{equation|mathbb|cdot|times|pi)\b | \$\$.+?\$\$
      | \b\d+(?:\.\d+)?\s*[-+*/×÷^]\s*\d+(?:\.\d+)?\s*= | \b\d*[xyz]\s*[-+]\s*\d+\s*= | \b\d*[xyz]\s*\^\s*\d
      | \b(?i:equation|theorem|integral|derivative|polynomial|arithmetic|algebra|geometry|trigonometry|calculus)s?\b
      | \b(?i:quadratic|logarithm|square\ root|prime\ numbers?|standard\ deviation|hypotenuse)\b
      | \b(?i:solve\ for|calculate\ the|compute\ the|what\ is\ the\ (?:sum|product|probability)\ of)\b
      | \b(?i:how\ (?:many|much)\b[^?\n]{0,80}\b(?:left|altogether|in\ (?:all|total)|remain|together|each))\b
    """,
}


class TagConfig(Config):
    """Each tag becomes a column `tag.<name>`; rows with a tag of `drop` are removed."""

    tags: tuple[str, ...] = Field(tuple(PATTERNS), min_length=1)
    patterns: dict[str, str] = Field(
        {}, description="tag to regular expression (verbose syntax), before the built-in ones"
    )
    labels: str = Field("", description="field of `meta` with labels to match the tag's name in, e.g. InsTag's")
    drop: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _known(self) -> TagConfig:
        for tag in self.tags:
            if not self.labels and tag not in {*PATTERNS, *self.patterns}:
                raise ValueError(f"there is no pattern for tag {tag!r} ({nearest(tag, {*PATTERNS, *self.patterns})})")
        for tag, pattern in self.patterns.items():
            try:
                re.compile(pattern, re.VERBOSE)
            except re.error as error:
                raise ValueError(f"the pattern of {tag!r} is no regular expression: {error}") from None
        unknown = [tag for tag in self.drop if tag not in self.tags]
        if unknown:
            raise ValueError(f"drop names {', '.join(unknown)}, which is none of the tags")
        return self


def tag(table: pa.Table, config: TagConfig) -> tuple[pa.Table, pa.Table]:
    """(kept, removed): the kept rows with a boolean column `tag.<name>` for every tag.

    A row that lacks the field of `labels` gets no tag.
    """
    expressions = {name: _expression(name, config) for name in config.tags}
    metas = table.column("meta").to_pylist()
    found: dict[str, list[bool]] = {name: [] for name in config.tags}
    for messages, meta in zip(conversations(table), metas, strict=True):
        text = _labels(meta, config.labels) if config.labels else _said(messages)
        for name, expression in expressions.items():
            found[name].append(expression.search(text) is not None)
    for name, values in found.items():
        column = f"tag.{name}"
        if column in table.column_names:
            table = table.drop_columns(column)
        table = table.append_column(column, pa.array(values, pa.bool_()))
    gone: dict[int, dict[str, Any]] = {}
    for name in reversed(config.drop):  # the first one named is the reason
        gone |= {place: {"reason": f"tag {name}"} for place, value in enumerate(found[name]) if value}
    return split(table, gone)


def _expression(name: str, config: TagConfig) -> re.Pattern[str]:
    if name in config.patterns:
        return re.compile(config.patterns[name], re.VERBOSE | re.MULTILINE)
    if config.labels:
        return re.compile(re.escape(name), re.IGNORECASE)
    return re.compile(PATTERNS[name], re.VERBOSE | re.MULTILINE)


def _said(messages: Sequence[Message]) -> str:
    return "\n".join(m["content"] for m in messages if m["role"] != "system")


def _labels(meta: str | None, field: str) -> str:
    value = json.loads(meta).get(field) if meta else None
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) if value is not None else ""
