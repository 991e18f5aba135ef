"""Everything that a recipe may write after `from`, through one door.

| written | read |
|---|---|
| `builtin:squad` | a pool of an installed package, or a generated one (`services.pools`) |
| `pool.jsonl`, `data/*.parquet`, `folder/` | files: .jsonl .json .csv .tsv .parquet, also .gz |
| `s3://bucket/prefix/*.jsonl` | the same on an object store |
| `hub:org/name[/config][:split]` | a data set of the Hugging Face hub |
| `gsm8k`, `gsm8k/test`, `im/lima` | a name of the catalogue (`catalogue.yaml`): what papers call it, and where it is |

A row that cannot be used is handed back with file, line and reason; a source without any usable row is an error.
The digest of a source decides whether a step has to be computed again, and reads no more than it must.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from glob import has_magic
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import Field, model_validator

from cuvee.amounts import Amount
from cuvee.config import Config
from cuvee.errors import DataError, MissingError, UserError, nearest
from cuvee.rng import row_keys
from cuvee.rows import canonical, make_table, row_id, sort
from selection.pool import recognise, shapes
from services import places, pools, readers
from services.readers import Entry

_TEXT = 500
"""Characters of a rejected record that are kept."""


class Source(Config):
    """A place to read rows from; a recipe may write its `path` alone."""

    path: str = Field(description="file, glob, folder, s3://, hub:, builtin: or a name of the catalogue")
    shape: str | None = Field(None, description="shape of the records; recognised by their columns if absent")
    split: str | None = Field(None, description="split of a hub data set; train if absent")
    revision: str | None = Field(None, description="commit, branch or tag of a hub data set")
    limit: Amount | None = Field(None, description='rows kept, drawn with the seed, e.g. "500 rows" or "1/10"')
    size: int | None = Field(None, gt=0, description="rows that a generated pool makes")
    columns: dict[str, str] = Field({}, description="our name of a column to the name in the data")
    strip_calc: bool = Field(False, description="remove GSM8K's calculator marks <<48/2=24>> from answers")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _known(self) -> Source:
        if self.shape is not None and self.shape not in shapes():
            raise ValueError(f"unknown shape {self.shape!r} ({nearest(self.shape, shapes())})")
        if self.limit is not None and self.limit.kind not in ("rows", "fraction"):
            raise ValueError(f'limit {self.limit} is neither rows nor a fraction; write "500 rows" or "1/10"')
        return self

    @property
    def draws(self) -> bool:
        """Whether the seed changes what is read."""
        return self.limit is not None


@dataclass(frozen=True)
class Loaded:
    """`rejected`: dicts of file, line, reason and text (the beginning of the record)."""

    table: pa.Table
    rejected: list[dict[str, Any]]
    digest: str


class Known(Config):
    """An entry of the catalogue. `get` says how to obtain data that the hub door cannot load."""

    hub: str = ""
    config: str = ""
    files: str = ""
    shape: str | None = None
    columns: dict[str, str] = Field({})
    get: str = ""
    licence: str
    note: str = ""


@dataclass(frozen=True)
class _Hub:
    """A data set of the hub, as addressed by `hub:` or found in the catalogue."""

    repository: str
    config: str = ""
    split: str = "train"
    revision: str | None = None
    files: str = ""
    shape: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


@functools.cache
def catalogue() -> Mapping[str, Known]:
    """The data sets that papers name by a bare word."""
    import yaml

    text = Path(__file__).with_name("catalogue.yaml").read_text(encoding="utf-8")
    return {name: Known.model_validate(entry) for name, entry in yaml.safe_load(text).items()}


def list_builtin() -> list[dict[str, Any]]:
    """The builtin pools: name, about, licence, size, package, installed, install."""
    return pools.available()


def open_source(name: str, source: Source, *, seed: int = 0, cache: Path | None = None) -> Loaded:
    """All usable rows of a source, as a table whose `source` is `name`.

    `seed` draws the rows of `limit` and does nothing else. Raises DataError when a file is missing or unreadable as a
    whole, or when no row is usable; MissingError when a package or a hub data set is not there.
    """
    mark = digest(source, cache)
    rows: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    for row, entry in _rows(source):
        if row is not None:
            rows.append(row)
        else:
            rejected.append({"file": entry.file, "line": entry.line, "reason": entry.reason, "text": entry.text})
    if not rows:
        if not rejected:
            raise DataError("there is no row in it", path=source.path, remedy="check the path, and that it was written")
        first = rejected[0]
        raise DataError(
            f"none of its {len(rejected)} rows can be used; the first: {first['reason']}",
            path=first["file"],
            line=first["line"],
            remedy="name `shape` or `columns` in `from` if the data is good",
        )
    return Loaded(_limited(make_table(name, rows), source, seed), rejected, mark)


def originals(name: str, source: Source) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(id, record as it stands in the data) for every usable row, with the ids that `open_source` gives.

    For builtin pools the record is the conversation as `messages` with `references` and `tests`.
    """
    seen: dict[str, int] = {}
    for row, entry in _rows(source):
        if row is None:
            continue
        content = canonical(row["messages"])
        n = seen.get(content, 0)
        seen[content] = n + 1
        yield row_id(name, row["messages"], n), entry.record if entry.record is not None else row


def digest(source: Source, cache: Path | None = None) -> str:
    """A digest (32 hex digits) of the data and of how it is read. The name of the table and the seed are not in it.

    `cache` is a folder that remembers the hashes of files by path, size and time of change.
    """
    kind, target = resolve(source)
    if kind == "builtin":
        stamps = [pools.stamp(target, source.size, cache)]
    elif kind == "hub":
        stamps = [json.dumps([target.repository, target.config, target.split, target.files, _commit(target)])]
    else:
        # Not the names: a file that is moved is the same data. The format decides how it is read.
        stamps = sorted(f"{places.format_of(place.name)}:{place.stamp(cache)}" for place in places.find(target))
    reading = source.model_dump(mode="json", exclude={"path", "split", "revision", "size"})
    if kind == "hub":
        reading |= _how(source, target)
    text = json.dumps([kind, stamps, reading], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def resolve(source: Source) -> tuple[str, Any]:
    """("builtin", pool name), ("hub", data set) or ("files", path): which door a source goes through.

    Raises MissingError with what to do for a data set that the catalogue knows and cannot load.
    """
    path = source.path
    if path.startswith("builtin:"):
        return "builtin", path.removeprefix("builtin:")
    if source.size is not None:
        raise UserError(f"{path} is not generated and has no size to set", remedy="use limit")
    if path.startswith("hub:"):
        return "hub", _hub_address(source)
    if path.startswith("s3://") or places.format_of(path) or Path(path).expanduser().exists() or has_magic(path):
        return "files", path
    known, split = _lookup(path)
    if known is None:
        names = [*catalogue(), *(f"builtin:{name}" for name in pools.POOLS)]
        raise DataError("neither a file nor a known data set", path=path, remedy=nearest(path, names))
    if not known.hub:
        raise MissingError(f"{path} cannot be loaded by its name alone", remedy=known.get)
    return "hub", _Hub(
        known.hub,
        known.config,
        source.split or split or "train",
        source.revision,
        known.files,
        known.shape,
        known.columns,
    )


def _lookup(path: str) -> tuple[Known | None, str]:
    if path in catalogue():
        return catalogue()[path], ""
    name, _, split = path.rpartition("/")
    return catalogue().get(name), split


def _hub_address(source: Source) -> _Hub:
    address, _, split = source.path.removeprefix("hub:").partition(":")
    parts = address.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise UserError(f"{source.path!r} is no hub address", remedy="write hub:org/name, hub:org/name/config:split")
    return _Hub(
        "/".join(parts[:2]), parts[2] if len(parts) == 3 else "", source.split or split or "train", source.revision
    )


def _rows(source: Source) -> Iterator[tuple[dict[str, Any] | None, Entry]]:
    """Every record with its row, or None and the reason in the entry."""
    kind, target = resolve(source)
    if kind == "builtin":
        for number, made in enumerate(pools.load(target, source.size), 1):
            yield made, Entry(source.path, number, None)
        return
    how: dict[str, Any] = {"shape": source.shape, "columns": source.columns}
    if kind == "hub":
        how = _how(source, target)
    files = (
        _hub_entries(target) if kind == "hub" else itertools.chain.from_iterable(map(readers.read, places.find(target)))
    )
    for entry in files:
        row: dict[str, Any] | None = None
        reason = entry.reason
        if entry.record is not None:
            try:
                row = recognise(_renamed(entry.record, how["columns"]), how["shape"], strip_calc=source.strip_calc)
            except DataError as error:
                reason = str(error)
        text = entry.text or json.dumps(entry.record, ensure_ascii=False, default=str)
        yield row, entry if row is not None else Entry(entry.file, entry.line, entry.record, reason, text[:_TEXT])


def _how(source: Source, target: _Hub) -> dict[str, Any]:
    """Shape and columns as the catalogue knows them, where the recipe does not say."""
    return {"shape": source.shape or target.shape, "columns": dict(source.columns or target.columns)}


def _renamed(record: Mapping[str, Any], columns: Mapping[str, str]) -> Mapping[str, Any]:
    if not columns:
        return record
    for theirs in columns.values():
        if theirs not in record:
            raise DataError("there is no such column", field=theirs, remedy=nearest(theirs, map(str, record)))
    taken = {*columns, *columns.values()}
    return {k: v for k, v in record.items() if k not in taken} | {ours: record[c] for ours, c in columns.items()}


def _limited(table: pa.Table, source: Source, seed: int) -> pa.Table:
    """The rows with the smallest draws: any two limits of one seed are nested."""
    if source.limit is None:
        return table
    wanted = source.limit.rows_of(table.num_rows)
    if wanted > table.num_rows:
        raise DataError(f"limit {source.limit} of {table.num_rows} rows", path=source.path)
    if not wanted:
        raise DataError(f"limit {source.limit} of {table.num_rows} rows leaves none", path=source.path)
    draws = row_keys(seed, "limit", ids=table.column("id"))
    return sort(table.take(pa.array(draws.argsort(kind="stable")[:wanted])))


def _commit(target: _Hub) -> str:
    """The commit that a revision names now: from the hub, or from its local cache when the hub is out of reach."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    from services.models import hub_errors

    try:
        info = HfApi().dataset_info(target.repository, revision=target.revision, timeout=10)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise MissingError(
            f"the hub has no data set {target.repository} at {target.revision or 'main'} that you may read",
            remedy="check the name; for a gated data set accept its terms and set HF_TOKEN",
        ) from error
    except hub_errors() as error:
        folder = Path(constants.HF_HUB_CACHE) / f"datasets--{target.repository.replace('/', '--')}"
        ref = folder / "refs" / (target.revision or "main")
        if ref.is_file():
            return ref.read_text().strip()
        raise _unreachable(target) from error
    return str(info.sha)


def _hub_entries(target: _Hub) -> Iterator[Entry]:
    # Code of a data set is never run: this version of the library cannot.
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    name = f"hub:{target.repository}" + (f"/{target.config}" if target.config else "") + f":{target.split}"
    try:
        data = load_dataset(
            target.repository,
            target.config or None,
            data_files=target.files or None,
            split=target.split,
            revision=_commit(target),
        )
    except ConnectionError as error:
        raise _unreachable(target) from error
    except (DatasetsError, ValueError) as error:
        raise DataError(f"cannot be loaded: {error}", path=name, remedy="check config and split") from error
    for number, record in enumerate(data, 1):
        yield Entry(name, number, record)


def _unreachable(target: _Hub) -> MissingError:
    return MissingError(
        f"the hub is out of reach and {target.repository} is not in its cache",
        remedy=f"with a network: unset HF_HUB_OFFLINE; or bring it with `hf download --repo-type dataset "
        f"{target.repository}` and name its files",
    )
