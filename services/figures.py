"""Rows and tokens of a plan: each figure with how sure it is.

A figure is `exact` when it follows from the recipe and finished artifacts, `estimated from n rows` when it is carried
over from a finished table by sizes, and `known after <step>` when only that step can tell. Nothing is loaded for it but
records of the store.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cuvee.amounts import Amount
from services.graph import Node
from services.steps.model import model_folder
from services.store import Store

CHARACTERS_PER_TOKEN = 3.6
"""Of English and code under the usual tokenizers; used until a table has been rendered."""
TOKENS_PER_TURN = 6
"""Of the header and the end that a chat template puts around a message, until a table has been rendered."""


@dataclass(frozen=True)
class Figure:
    """A number with its certainty; `value` is None when it is not known yet."""

    value: int | None
    certainty: str

    def record(self) -> dict[str, Any]:
        """For `--json`."""
        return {"value": self.value, "certainty": self.certainty}

    def __str__(self) -> str:
        if self.value is None:
            return self.certainty
        return f"{self.value:,}" if self.certainty == "exact" else f"~{self.value:,}"


EXACT = "exact"


class Figures:
    """Rows and tokens of nodes, from records of the store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._rows: dict[str, Figure] = {}

    def info(self, node: Node) -> Mapping[str, Any] | None:
        """The record of a finished node."""
        done = self.store.done(node.key)
        return done.info if done else None

    def model_config(self, key: str) -> dict[str, Any] | None:
        """The `config.json` of a model or trained model; None while it is not there."""
        if self.store.done(key) is None:
            return None
        return dict(json.loads((model_folder(self.store.local(key)) / "config.json").read_text()))

    def rows(self, node: Node) -> Figure:
        """Rows of a table after a step."""
        if node.key not in self._rows:
            self._rows[node.key] = self._rows_of(node)
        return self._rows[node.key]

    def _rows_of(self, node: Node) -> Figure:
        info = self.info(node)
        if info is not None and "rows" in info:
            return Figure(int(info["rows"]), EXACT)
        if node.step == "load":
            return Figure(None, f"known after {node.label}")
        before = [self.rows(source) for name, source in sorted(node.inputs.items()) if name.startswith("rows")]
        if not before or any(figure.value is None for figure in before):
            unknown = next((f for f in before if f.value is None), Figure(None, f"known after {node.label}"))
            return _asked_rows(node, unknown)
        size = sum(figure.value or 0 for figure in before)
        certainty = before[0].certainty if len(before) == 1 else f"estimated from {size} rows"
        if node.step in ("score", "render", "corrupt") or (node.step == "respond" and _one_target(node)):
            return Figure(size, certainty)
        if node.step == "holdout":
            held = min(size, Amount.parse(node.config["amount"]).rows_of(size))
            return Figure(size - held, f"estimated from {size} rows")
        if node.step == "sample":
            return Figure(min(size, Amount.parse(node.config["amount"]).rows_of(size)), certainty)
        if node.step == "select" and node.config.get("by") is None:
            return Figure(min(size, Amount.parse(node.config["amount"]).rows_of(size)), certainty)
        if node.step == "iterate_propose":
            loop = node.config["iterate"]
            budget = min(size, Amount.parse(loop["amount"]).rows_of(size))
            return Figure(budget * node.config["round"] // loop["rounds"], certainty)
        if node.step == "merge":
            return Figure(size, f"estimated from {size} rows")
        return Figure(None, f"known after {node.label}")

    def tokens(self, node: Node) -> Figure:
        """Tokens of a rendered table, before truncation."""
        info = self.info(node)
        if info is not None and "tokens" in info:
            return Figure(int(info["tokens"]), EXACT)
        rows = self.rows(node)
        if rows.value is None:
            return rows
        source: Node | None = node.inputs["rows"]
        while source is not None and "characters" not in (self.info(source) or {}):
            source = next((n for name, n in sorted(source.inputs.items()) if name.startswith("rows")), None)
        if source is None:
            return Figure(None, f"known after {node.label}")
        seen = self.info(source) or {}
        whole = seen["characters"] / CHARACTERS_PER_TOKEN + TOKENS_PER_TURN * seen.get("messages", 0)
        return Figure(round(whole / max(seen["rows"], 1) * rows.value), f"estimated from {seen['rows']} rows")


def base_of(train: Node) -> Node:
    """The model that a training, or the first of the stages before it, starts from."""
    while train.step == "train":
        train = train.inputs["init"]
    return train


def _asked_rows(node: Node, before: Figure) -> Figure:
    """A number of rows that is asked of a table of unknown size, which may turn out to be smaller."""
    if node.step in ("select", "sample") and node.config.get("by") is None:
        amount = Amount.parse(node.config["amount"])
        if amount.kind == "rows":
            return Figure(int(amount.value), f"asked; {before.certainty}")
    return before


def _one_target(node: Node) -> bool:
    return node.config["respond"]["policy"] not in ("rft", "model_only")


def asked_of(node: Node, table: str, asked: str, known: Figures) -> dict[str, Any]:
    """What the list will hold of a table, before it is made."""
    tokens = node.inputs[f"tokens.{table}"]
    size, total = known.rows(tokens), known.tokens(tokens)
    amount, epochs = Amount.parse(asked), float(node.config["epochs"])
    line: dict[str, Any] = {"table": table, "asked": asked, "certainty": size.certainty}
    if size.value is None or amount.kind == "tokens":
        return {**line, "rows": None, "unique": None, "repeat": None, "tokens": None}
    each = max(amount.rows_of(size.value), node.config["minimum"] if amount.value else 0)
    unique = min(each, size.value)
    count = math.floor(each * epochs)
    mean = total.value / size.value if total.value is not None and size.value else None
    return {
        **line,
        "rows": count,
        "unique": unique,
        "repeat": count / unique if unique else None,
        "tokens": round(mean * count) if mean is not None else None,
    }


def asked_tokens(compose: Node, table: str, asked: str, known: Figures) -> int | None:
    """Tokens that a list will take of a table, as far as that can be said before."""
    amount = Amount.parse(asked)
    if amount.kind == "tokens":
        return round(float(amount.value) * float(compose.config["epochs"]))
    found = asked_of(compose, table, asked, known)["tokens"]
    return None if found is None else int(found)
