"""Questions over the Parquet files of artifacts, asked in SQL.

DuckDB reads the files where they are, so that nothing has to run and nothing has to be kept up to date beside the
artifacts. It reads local files alone (its httpfs extension is a download): artifacts of an object store come through
`Store.local`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import duckdb

_MACROS = """
CREATE MACRO answer(messages) AS list_filter(messages, lambda m: m.role = 'assistant')[-1].content;
CREATE MACRO verdict(chosen, own, paraphrase) AS CASE chosen WHEN 'paraphrase' THEN paraphrase ELSE own END;
"""
"""`answer`: the text of the last assistant turn. `verdict`: what the judge said of the text that was chosen; for a gold
target, of the model's own answer, which was not."""


@contextmanager
def connect() -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in memory for the length of the block."""
    import duckdb

    connection = duckdb.connect(":memory:", config={"autoload_known_extensions": "false"})
    try:
        connection.execute(_MACROS)
        yield connection
    finally:
        connection.close()


def view(connection: duckdb.DuckDBPyConnection, name: str, *places: Path) -> None:
    """Name the rows of Parquet files, and of folders of Parquet parts; columns that a file lacks are null there."""
    files = [str(file) for place in places for file in parts(place)]
    connection.read_parquet(files, union_by_name=True).create_view(name, replace=True)


def parts(place: Path) -> Iterable[Path]:
    """A Parquet file, or the parts of a folder in order."""
    return sorted(place.glob("*.parquet")) if place.is_dir() else [place]


def ask(connection: duckdb.DuckDBPyConnection, query: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """The answer as dicts."""
    found = connection.execute(query, list(values))
    names = [column[0] for column in found.description]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]
