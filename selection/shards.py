"""Where finished pieces of a long step are kept until the step is whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq


class ShardStore(Protocol):
    """Shards by name. What `get` returns was written whole."""

    def get(self, name: str) -> pa.Table | None: ...

    def put(self, name: str, table: pa.Table) -> None: ...


Progress = Callable[[int, int | None], object]
"""Called with what is done and how much there is, in rows."""


class FolderShards:
    """Parquet files in a folder, each written beside and renamed into place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str) -> pa.Table | None:
        path = self.folder / f"{name}.parquet"
        return pq.read_table(path) if path.exists() else None

    def put(self, name: str, table: pa.Table) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"{name}.{os.getpid()}.tmp"
        pq.write_table(table, partial, compression="zstd")
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(self.folder / f"{name}.parquet")
