"""Rows of every table after each of its steps, with what was rejected, removed and held out, and why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from services.report.artifacts import Artifacts

REASONS = 6
"""Kinds of reasons shown for a step, the most frequent first."""
SCANNED = 200_000
"""Rows whose reasons are counted, at most; ids are hashes, so the first ones are a sample."""

_COUNTS = ("rows", "pool", "rejected", "removed", "held", "twice", "flagged", "failed")
_FILES = {"rejected": "rejected.jsonl", "removed": "removed.parquet", "flagged": "removed.parquet", "held": "held"}


def tables(artifacts: Artifacts, arms: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """One entry a table that ends in the same rows, with the arms that share it."""
    shared: dict[tuple[str, str], list[str]] = {}
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for arm in arms:
        for name, table in arm["tables"].items():
            shared.setdefault((name, table["rows"]), []).append(arm["name"])
            found[name, table["rows"]] = table
    for (name, last), table in found.items():
        keys = [key for key in dict.fromkeys([*table["steps"], last]) if key in artifacts.nodes]
        steps = [_step(artifacts, key) for key in keys]
        yield {"table": name, "arms": shared[name, last], "steps": steps}


def _step(artifacts: Artifacts, key: str) -> dict[str, Any]:
    info = artifacts.info(key)
    step: dict[str, Any] = {"label": artifacts.label(key), "key": key, "done": key in artifacts.finished}
    step |= {name: info.get(name) for name in _COUNTS}
    step["files"] = {name: artifacts.place(key, file) for name, file in _FILES.items() if info.get(name)}
    step["reasons"] = []
    for name in ("rejected", "removed"):
        if info.get(name):
            what = f"reasons of {artifacts.label(key)}"
            step["reasons"] += artifacts.attempt(what, _reasons, artifacts, key, _FILES[name]) or []
    return step


def _reasons(artifacts: Artifacts, key: str, file: str) -> list[dict[str, Any]]:
    if file.endswith(".jsonl"):
        texts = [str(item.get("reason", "")) for item in artifacts.lines(key, file)[:SCANNED]]
    else:
        table = artifacts.table(key, file, ["reason"])
        texts = table["reason"].slice(0, SCANNED).to_pylist() if "reason" in table.column_names else []
    kinds: Counter[str] = Counter()
    example: dict[str, str] = {}
    for text in texts:
        kind = _kind(text or "no reason")
        kinds[kind] += 1
        example.setdefault(kind, text)
    # A kind with one member is shown as it was said.
    return [
        {"reason": example[kind] if count == 1 else kind, "count": count} for kind, count in kinds.most_common(REASONS)
    ]


def _kind(reason: str) -> str:
    """The reason without what differs from row to row: its first number, and quoted text."""
    quoted = re.sub(r"(['\"]).*\1", "…", reason)
    return re.sub(r"\d[\d,.]*", "n", quoted, count=1)
