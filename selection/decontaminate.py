"""Overlap with the data that a model will be scored on, by word n-grams.

Thirteen words are the span of GPT-3 (Brown et al. 2020, appendix C) and of most reports since; texts shorter than that
count as one span when they have at least `min_words` words, or short questions could never be found. Such checks raise
false alarms (common phrases, quoted laws, templates), so that what overlaps is part of the result: the words as they
stand in the row, the table and the number of the text there. `action: report` flags and removes nothing; the numbers of
the texts let scores be told with and without the items that were found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from cuvee.config import Config
from cuvee.errors import DataError
from cuvee.protocols import Message
from cuvee.rows import answer_of
from selection.hygiene import REMOVED, asked_text, conversations, full_text, word_spans, words


class DecontaminateConfig(Config):
    """`against` is written out in the recipe: if it followed the tasks, adding a benchmark would retrain everything."""

    against: tuple[str, ...] = Field(min_length=1, description="names of tasks or tables")
    n: int = Field(13, ge=2, description="words of a span")
    min_words: int = Field(6, ge=1, description="words of the shortest text that counts as a span of its own")
    fields: Literal["prompt", "answer", "both"] = "both"
    action: Literal["remove", "report"] = "remove"

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"against": [value]}
        return {"against": value} if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _ordered(self) -> DecontaminateConfig:
        if self.min_words > self.n:
            raise ValueError(f"min_words {self.min_words} is above n {self.n}")
        return self


def decontaminate(
    table: pa.Table, against: Mapping[str, Sequence[str]], config: DecontaminateConfig
) -> tuple[pa.Table, pa.Table]:
    """(kept, flagged). `against` gives the texts of every name in the config.

    `flagged` has a row for each row and table that overlap, with the longest overlap. With `action: report` every row
    is kept. Raises DataError when a table has no text.
    """
    index = _index(against, config)
    about = table.select(["id", "target", "source"]).to_pylist()
    flagged: list[dict[str, Any]] = []
    clean = []
    for row, messages in zip(about, conversations(table), strict=True):
        found = index.overlaps(_text(messages, config.fields))
        clean.append(not found or config.action == "report")
        for name, (item, span) in sorted(found.items()):
            flagged.append({**row, "reason": "overlap", "against": name, "item": item, "span": span})
    return table.filter(pa.array(clean, pa.bool_())), pa.Table.from_pylist(flagged, schema=REMOVED)


def _text(messages: Sequence[Message], fields: str) -> str:
    if fields == "both":
        return full_text(messages)
    return asked_text(messages) if fields == "prompt" else answer_of(messages)


@dataclass(frozen=True)
class _Index:
    """`spans`: words joined by spaces, to the texts that hold them. `heads`: the first `head` words of every span, so
    that a row is looked up once a position and not once a length."""

    spans: Mapping[str, Mapping[str, int]]
    heads: frozenset[str]
    head: int
    lengths: tuple[int, ...]

    def overlaps(self, text: str) -> dict[str, tuple[int, str]]:
        """For each table: number of its text and the longest overlap in the row's own characters."""
        w, places = word_spans(text)
        best: dict[str, tuple[int, int, int]] = {}  # words, item, first word
        running: dict[tuple[str, int], tuple[int, int]] = {}  # (table, item): first word, word after the last
        for i in range(len(w) - self.head + 1):
            if " ".join(w[i : i + self.head]) not in self.heads:
                continue
            for length in self.lengths:
                hits = self.spans.get(" ".join(w[i : i + length]), {}) if i + length <= len(w) else {}
                for name, item in hits.items():
                    start, stop = running.get((name, item), (i, i))
                    if i > stop:  # not the continuation of the last overlap
                        start, stop = i, i
                    running[name, item] = start, max(stop, i + length)
                    size = running[name, item][1] - start
                    if size > best.get(name, (0, 0, 0))[0]:
                        best[name] = size, item, start
        return {
            name: (item, text[places[start][0] : places[start + size - 1][1]])
            for name, (size, item, start) in best.items()
        }


def _index(against: Mapping[str, Sequence[str]], config: DecontaminateConfig) -> _Index:
    spans: dict[str, dict[str, int]] = {}
    lengths = set()
    for name in config.against:
        if not against.get(name):
            raise DataError(f"there is no text of {name!r} to compare with", field="decontaminate.against")
        for item, text in enumerate(against[name]):
            w = words(text)
            length = min(len(w), config.n)
            if length < config.min_words:
                continue
            lengths.add(length)
            for i in range(len(w) - length + 1):
                spans.setdefault(" ".join(w[i : i + length]), {}).setdefault(name, item)
    head = min(lengths, default=1)
    heads = frozenset(" ".join(span.split(" ", head)[:head]) for span in spans)
    return _Index(spans, heads, head, tuple(sorted(lengths)))
