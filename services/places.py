"""Where the bytes of a source are: files, globs and folders of this machine, and objects on S3.

A place has a name that people know it by and a stamp that changes when its content does. Files are hashed, and the hash
is remembered by path, size and time of change, so that a plan over gigabytes costs a few stat calls; an object store
keeps an ETag already.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO, cast

from cuvee.errors import DataError, MissingError, Unavailable, nearest

FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_RACY_NS = 2_000_000_000
"""A file that changed in the last two seconds may change again within one tick of the clock: not remembered."""

_IN_MEMORY = 64 * 2**20


@dataclass(frozen=True)
class Place:
    """`stamp(cache)` identifies the content; `open()` gives its bytes."""

    name: str
    stamp: Callable[[Path | None], str]
    open: Callable[[], BinaryIO]


def format_of(name: str) -> str:
    """The suffix that decides how a file is read, without `.gz`; empty if it is none of `FORMATS`."""
    suffix = Path(name.removesuffix(".gz")).suffix.lower()
    return suffix if suffix in FORMATS else ""


def find(path: str) -> list[Place]:
    """The places behind a path, a glob, a folder or an `s3://` address, by name. Raises DataError if there is none."""
    return _objects(path) if path.startswith("s3://") else _files(path)


def _files(path: str) -> list[Place]:
    base = Path(path).expanduser()
    if glob.has_magic(path) and not base.exists():
        names = sorted(n for n in glob.glob(str(base), recursive=True) if Path(n).is_file())
        if not names:
            raise DataError("no file fits the pattern", path=path)
    elif base.is_dir():
        inside = (p for p in sorted(base.rglob("*")) if p.is_file() and not p.name.startswith((".", "_")))
        names = [str(p) for p in inside if format_of(p.name)]
        if not names:
            raise DataError(f"no {', '.join(FORMATS)} file in the folder", path=path)
    elif base.is_file():
        names = [str(base)]
    else:
        siblings = [p.name for p in base.parent.iterdir()] if base.parent.is_dir() else []
        hint = nearest(base.name, siblings) if siblings and len(siblings) <= 40 else ""
        raise DataError("no such file", path=path, remedy=hint or "check the path; it is relative to where you are")
    return [_file(Path(name)) for name in names]


def _file(path: Path) -> Place:
    def opened() -> BinaryIO:
        try:
            return path.open("rb")
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", path=str(path)) from error

    return Place(str(path), lambda cache: file_digest(path, cache), opened)


def file_digest(path: Path, cache: Path | None = None) -> str:
    """A hash of the file's content; `cache` is a folder that remembers it by path, size and time of change."""
    stat = path.stat()
    whole = str(path.resolve())
    seen = {"path": whole, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    entry = None
    if cache is not None:
        entry = cache / f"{hashlib.blake2b(whole.encode(), digest_size=16).hexdigest()}.json"
        known = _read_json(entry)
        if {k: known.get(k) for k in seen} == seen:
            return str(known["digest"])
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    if entry is not None and time.time_ns() - stat.st_mtime_ns > _RACY_NS:
        entry.parent.mkdir(parents=True, exist_ok=True)
        temporary = entry.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps({**seen, "digest": digest}))
        temporary.replace(entry)
    return digest


def _read_json(path: Path) -> dict[str, Any]:
    """What a cache remembers; nothing when it is absent or damaged, since it can be computed again."""
    try:
        known = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _objects(url: str) -> list[Place]:
    try:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as error:
        raise MissingError("an s3:// source needs boto3", remedy="pip install boto3") from error
    bucket, _, key = url.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    try:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=_literal(key))
        listed = [item for page in pages for item in page.get("Contents", [])]
    except (BotoCoreError, ClientError) as error:
        raise Unavailable(
            f"cannot list {url}: {error}", remedy="check the credentials, the region and the name"
        ) from error
    chosen = sorted((item for item in listed if _wanted(item["Key"], key)), key=lambda item: item["Key"])
    if not chosen:
        raise DataError("no object of that name", path=url)
    return [_object(client, bucket, item["Key"], item["ETag"].strip('"'), item["Size"]) for item in chosen]


def _object(client: Any, bucket: str, key: str, etag: str, size: int) -> Place:
    def opened() -> BinaryIO:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            # If it changed since it was listed, the digest would name other content than the rows.
            body = client.get_object(Bucket=bucket, Key=key, IfMatch=f'"{etag}"')["Body"]
            # Parquet is read from its end and lines need a buffer: a local copy, on disk when it is large.
            copy = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 (the reader closes it)
            shutil.copyfileobj(body, copy, 2**20)
        except (BotoCoreError, ClientError) as error:
            raise Unavailable(f"cannot read s3://{bucket}/{key}: {error}") from error
        copy.seek(0)
        return cast(BinaryIO, copy)

    return Place(f"s3://{bucket}/{key}", lambda _: f"{etag}:{size}", opened)


def _literal(key: str) -> str:
    """The part of a key before its first wildcard: what a listing can be restricted to."""
    return key[: min((i for i, c in enumerate(key) if c in "*?["), default=len(key))]


def _wanted(key: str, pattern: str) -> bool:
    if glob.has_magic(pattern):
        return fnmatchcase(key, pattern)
    inside = key.startswith(f"{pattern.rstrip('/')}/") if pattern else True
    return key == pattern or (inside and bool(format_of(key)) and not Path(key).name.startswith((".", "_")))
