"""What a report may ask of a stored run: which steps are done, what they said, and single files of theirs.

Small files are read one by one, so that a report over an object store does not fetch the weights that lie beside a
metrics file. A part that cannot be read (an artifact that was pruned, a file that was cut) is left out and noted: the
rest of the report is still worth having.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cuvee.errors import CuveeError, DataError
from services.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")

FETCH = 2_000_000_000
"""Bytes: a larger artifact is not copied from an object store to draw a picture of it."""


class Artifacts:
    """The artifacts that a run's manifest names. `notes` collects what could not be shown, and why."""

    def __init__(self, store: Store, manifest: Mapping[str, Any]) -> None:
        self.store = store
        self.nodes: Mapping[str, Mapping[str, Any]] = manifest["nodes"]
        self.finished = {key for key in self.nodes if store.done(key)}
        self.notes: list[str] = []

    def info(self, key: str) -> Mapping[str, Any]:
        """The figures that the step returned; empty while it is not done."""
        done = self.store.done(key)
        return done.info if done else {}

    def seconds(self, key: str) -> float | None:
        """How long the step took when it was computed."""
        done = self.store.done(key)
        return done.seconds if done else None

    def label(self, key: str) -> str:
        """The step's name for people."""
        return str(self.nodes[key]["label"])

    def place(self, key: str, name: str = "") -> str:
        """The address of an artifact, or of a file of it."""
        where = self.store.where(key)
        return f"{where}/{name}" if where and name else where

    def content(self, key: str, name: str) -> bytes:
        """A file of an artifact. DataError when it is not there."""
        done = self.store.done(key)
        found = self.store.objects.get(f"artifacts/{key}/{done.attempt}/{name}") if done else None
        if found is None:
            raise DataError("is not in the store", path=self.place(key, name) or f"{key}/{name}")
        return found[0]

    def lines(self, key: str, name: str) -> list[Any]:
        """The objects of a JSONL file."""
        return [json.loads(line) for line in self.content(key, name).splitlines() if line.strip()]

    def table(self, key: str, name: str, columns: list[str]) -> pa.Table:
        """Those of the columns that a Parquet file has."""
        import pyarrow.parquet as pq

        file = pq.ParquetFile(io.BytesIO(self.content(key, name)))
        return file.read([c for c in columns if c in file.schema_arrow.names])

    def folder(self, key: str, name: str) -> Path:
        """A folder of an artifact as local files. DataError when it would have to be copied and is large."""
        size = self.store.objects.size(f"artifacts/{key}") if "://" in self.store.url else 0
        if size > FETCH:
            raise DataError(f"{size / 1e9:.1f} GB are not copied for a report", path=self.place(key, name))
        folder = self.store.local(key) / name
        if not folder.is_dir():
            raise DataError("is not in the store", path=str(folder))
        return folder

    def attempt(self, what: str, function: Callable[..., T], *arguments: Any) -> T | None:
        """The function's result, or None with a note when its files cannot be read."""
        import pyarrow as pa

        try:
            return function(*arguments)
        except (OSError, pa.ArrowException, CuveeError, KeyError, json.JSONDecodeError) as error:
            self.notes.append(f"{what}: {type(error).__name__} {error}")
            return None
