"""Records out of files: JSON lines, JSON, CSV and Parquet, also gzipped.

A line that cannot be read is one fault among the records and not the end of the file; a file that cannot be read at all
is an error. Every record knows its place, so that what is said about it later can name file and line.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from cuvee.errors import DataError
from services.places import FORMATS, Place, format_of


@dataclass(frozen=True)
class Entry:
    """A record, or the reason why there is none and the text as far as it helps. `line` counts from 1; in Parquet it
    is the row."""

    file: str
    line: int
    record: Mapping[str, Any] | None
    reason: str = ""
    text: str = ""


def read(place: Place) -> Iterator[Entry]:
    """The entries of a place in file order. Raises DataError when the file as a whole cannot be read."""
    suffix = format_of(place.name)
    if not suffix:
        raise DataError(
            "its name says no format that is known", path=place.name, remedy=f"one of {', '.join(FORMATS)}, also .gz"
        )
    with place.open() as raw:
        stream: BinaryIO = gzip.GzipFile(fileobj=raw, mode="rb") if place.name.endswith(".gz") else raw  # type: ignore[assignment]
        try:
            if suffix in (".jsonl", ".ndjson"):
                yield from _lines(place.name, stream)
            elif suffix == ".json":
                yield from _json(place.name, stream.read())
            elif suffix == ".parquet":
                yield from _parquet(place.name, stream)
            else:
                yield from _csv(place.name, stream.read(), "\t" if suffix == ".tsv" else ",")
        except (gzip.BadGzipFile, EOFError) as error:
            raise DataError(f"the gzip stream is damaged: {error}", path=place.name) from error


def _lines(name: str, stream: BinaryIO) -> Iterator[Entry]:
    for number, raw in enumerate(stream, 1):
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            yield Entry(name, number, None, f"not UTF-8: {error.reason}", raw.decode("utf-8", "replace").strip())
            continue
        if text:
            yield _object(name, number, text)


def _object(name: str, number: int, text: str) -> Entry:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        return Entry(name, number, None, f"malformed JSON: {error.msg} at column {error.colno}", text)
    except RecursionError:
        return Entry(name, number, None, "malformed JSON: nested too deeply", text)
    return _checked(name, number, record, text)


def _checked(name: str, number: int, record: object, text: str = "") -> Entry:
    if isinstance(record, dict):
        return Entry(name, number, record)
    return Entry(name, number, None, f"a JSON {type(record).__name__} where an object is needed", text or repr(record))


def _json(name: str, raw: bytes) -> Iterator[Entry]:
    """A list of records, an object with one list in it, or JSON lines under the wrong name (not rare)."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: {error.reason} at byte {error.start}", path=name) from error
    decoder = json.JSONDecoder()
    start = _skip(text, 0)
    try:
        if text[start : start + 1] == "[":
            yield from _list(name, text, start, decoder)
            return
        value, end = decoder.raw_decode(text, start)
    except json.JSONDecodeError as error:
        remedy = "every line must be one JSON object; name such a file .jsonl" if text[start : start + 1] == "{" else ""
        raise DataError(f"malformed JSON: {error.msg}", path=name, line=error.lineno, remedy=remedy) from error
    if _skip(text, end) < len(text):
        yield from _lines(name, io.BytesIO(raw))
        return
    lists = [v for v in value.values() if isinstance(v, list)] if isinstance(value, dict) else []
    records = [v for v in lists if v and all(isinstance(item, dict) for item in v)]
    if len(records) == 1 and not _conversation(records[0]):
        for number, record in enumerate(records[0], 1):
            yield _checked(name, number, record)
    else:
        yield _checked(name, text.count("\n", 0, start) + 1, value)


def _conversation(items: list[dict[str, Any]]) -> bool:
    """A single record's own turns, rather than a list of records."""
    return all("role" in item or "from" in item for item in items)


def _list(name: str, text: str, start: int, decoder: json.JSONDecoder) -> Iterator[Entry]:
    """The elements of a JSON list one at a time, so that each knows its line."""
    place = _skip(text, start + 1)
    line, counted = 1, 0
    if text[place : place + 1] == "]":
        return
    while True:
        line, counted = line + text.count("\n", counted, place), place
        record, place = decoder.raw_decode(text, place)
        yield _checked(name, line, record)
        place = _skip(text, place)
        if text[place : place + 1] == "]":
            return
        if text[place : place + 1] != ",":
            raise json.JSONDecodeError("expecting ',' or ']'", text, place)
        place = _skip(text, place + 1)


def _skip(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n":
        place += 1
    return place


def _csv(name: str, raw: bytes, delimiter: str) -> Iterator[Entry]:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: {error.reason} at byte {error.start}", path=name) from error
    csv.field_size_limit(2**31 - 1)  # an answer may be longer than the library's default of 128 kB
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 2
    while True:
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Entry(name, line, None, f"malformed CSV: {error}")
        else:
            if None in record or any(value is None for value in record.values()):
                fields = [*filter(None, record.values())]
                yield Entry(
                    name, line, None, f"not the {len(reader.fieldnames or [])} fields of the header", str(fields)
                )
            else:
                yield Entry(name, line, record)
        line = reader.line_num + 1


def _parquet(name: str, stream: BinaryIO) -> Iterator[Entry]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(stream)
        number = 0
        for batch in file.iter_batches(batch_size=4096):
            for record in batch.to_pylist():
                number += 1
                yield Entry(name, number, record)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"not readable as Parquet: {error}", path=name) from error
