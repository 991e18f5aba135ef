"""Plain files that single steps write: records in the format of their suffix, and folders, each whole or not at all."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from cuvee.errors import UserError
from services.places import FORMATS, format_of

Record = Mapping[str, Any]


def check_out(path: Path) -> None:
    """UserError, before any work, for a file that could not be written in the end."""
    if not format_of(path.name):
        raise UserError(f"{path}: its name says no format", remedy=f"end it with one of {', '.join(FORMATS)}")
    if path.is_dir():
        raise UserError(f"{path} is a folder", remedy="give the name of a file")


def beside(out: Path, ending: str) -> Path:
    """`chosen.selection.parquet` beside `chosen.jsonl`."""
    name = out.name.removesuffix(".gz")
    return out.with_name(name.removesuffix(Path(name).suffix) + f".{ending}")


def write_records(path: Path, records: Iterable[Record]) -> int:
    """Write records in the format of the suffix (FORMATS, also .gz); returns how many. Columns are those of all."""
    kind = format_of(path.name)
    with whole(path) as partial:
        if kind == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            rows = [dict(record) for record in records]
            pq.write_table(pa.Table.from_pylist(_same_columns(rows)), partial, compression="zstd")
            return len(rows)
        with _text(partial, path.name.endswith(".gz")) as file:
            if kind in (".csv", ".tsv"):
                return _write_csv(file, _same_columns([dict(r) for r in records]), "\t" if kind == ".tsv" else ",")
            if kind == ".json":
                rows = [dict(record) for record in records]
                file.write(json.dumps(rows, ensure_ascii=False, indent=1, default=str) + "\n")
                return len(rows)
            count = 0
            for count, record in enumerate(records, 1):  # noqa: B007 (counts what was written)
                file.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")
            return count


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name that becomes `path` when the block ends well, and vanishes when it does not.

    Raises UserError when the place cannot be written, or is full.
    """
    partial = path.with_name(f".{path.name}.tmp")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}", remedy="give another --out") from error


def copy_file(source: Path, path: Path) -> None:
    """A copy of a file of the store."""
    with whole(path) as partial:
        shutil.copyfile(source, partial)


def copy_model(source: Path, folder: Path) -> None:
    """A copy of a model's folder. UserError when something else than a model is at its place."""
    if folder.exists() and not (folder / "config.json").exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there and is no model", remedy="give another --out")
    partial = folder.with_name(f".{folder.name}.tmp")
    with _writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            shutil.copytree(source, partial)
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def folder_names(names: Iterable[str]) -> dict[str, str]:
    """A folder for each arm. `k=1/4` is `k=1-4`; names that fall together get numbers."""
    found: dict[str, str] = {}
    for name in names:
        safe = "".join(c if c.isalnum() or c in "-_=,.@+" else "-" for c in name).strip(".") or "arm"
        taken = sum(other == safe or other.startswith(f"{safe}~") for other in found.values())
        found[name] = f"{safe}~{taken}" if taken else safe
    return found


@contextmanager
def _text(path: Path, zipped: bool) -> Iterator[TextIO]:
    with gzip.open(path, "wt", encoding="utf-8") if zipped else path.open("w", encoding="utf-8", newline="") as file:
        yield file  # type: ignore[misc]


def _same_columns(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in columns} for row in rows]


def _write_csv(file: TextIO, rows: list[dict[str, Any]], delimiter: str) -> int:
    """Lists and maps are written as JSON, since a cell is a text."""
    if rows:
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return len(rows)


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict) else value
