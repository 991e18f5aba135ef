"""What is known of each arm of a search, kept in the store as it happens: a killed search goes on from here.

A record is written when an arm is proposed, at each report to the scheduler, and at its end. Ray Tune's own state is
not used again: the scheduler and the sampler are told the records instead, which hold for any machine and version.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from services.arms import seeded
from services.recipe import SILENT, Recipe
from services.store import Store

Status = Literal["running", "finished", "stopped", "failed"]


@dataclass
class Record:
    """One arm. `point` are its coordinates in the space, `values` what they set.

    `reports` are (optimiser step, signal), `scores` the metrics of a finished arm, `seconds` those of its own training.
    """

    number: int
    name: str
    point: list[float]
    values: dict[str, Any]
    status: Status = "running"
    step: int = 0
    steps: int = 0
    reports: list[tuple[int, float]] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    seconds: float = 0.0
    workers: int = 1
    train: str = ""
    keys: list[str] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Whether nothing is left to do. A failed arm is tried again: the fault may have been the machine's."""
        return self.status in ("finished", "stopped")

    def said(self) -> str:
        """What became of it, for people."""
        if self.status == "stopped":
            return f"stopped at step {self.step}" + (f" of {self.steps}" if self.steps else "")
        return f"failed: {self.reason}" if self.status == "failed" else self.status


def search_name(recipe: Recipe) -> str:
    """What the records of a search are kept under: the same for another budget or other seeds of the finalists.

    So a search that was given more arms begins with those that it has.
    """
    said = {k: v for k, v in recipe.document.items() if k not in ("name", "repeat", "contrasts", *SILENT)}
    arms = {k: v for k, v in said["arms"].items() if k not in ("parallel", "max_failures", "add")}
    arms["search"] = {k: v for k, v in arms["search"].items() if k not in ("budget", "finalists")}
    said |= {"arms": arms, "repeat": next(seeded(recipe, "", {}, recipe)).seeds}
    text = json.dumps(said, sort_keys=True, default=str)
    return f"search-{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}"


class Records:
    """The records of one search, by number. `name` is that of the search."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self.name = store, name
        known = {f.name for f in fields(Record)}
        found = [Record(**{k: v for k, v in saved.items() if k in known}) for saved in store.saved_arms(name)]
        for record in found:
            record.reports = [(int(step), float(signal)) for step, signal in record.reports]
        self.by_number = {record.number: record for record in found}

    def all(self) -> list[Record]:
        """In the order in which they were proposed."""
        return [self.by_number[number] for number in sorted(self.by_number)]

    def save(self, record: Record) -> None:
        """Keep a record, also a new one."""
        self.by_number[record.number] = record
        self._store.save_arm(self.name, record.name, asdict(record))
