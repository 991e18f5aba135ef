"""Small named objects with conditional writes, and folders of files: on a local file system and on S3.

Everything that must be agreed between processes (who runs a step, which attempt is the artifact) is one object that
is written only if it has not changed since it was read. The store needs nothing else from its backend, so that both
backends follow the same protocol and the same tests.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from cuvee.errors import MissingError, UserError

ABSENT = ""
"""The version of an object that does not exist."""


class Conflict(Exception):
    """The object was changed by somebody else since it was read."""


class Objects(Protocol):
    """Names are relative POSIX paths."""

    root: str

    def get(self, name: str) -> tuple[bytes, str] | None:
        """Content and version, or None."""

    def put(self, name: str, data: bytes, *, version: str) -> str:
        """Write if the object still has `version` (`ABSENT`: does not exist). The new version, or Conflict."""

    def upload(self, folder: Path, prefix: str) -> None:
        """Make the files of `folder` durable under `prefix`. A local backend may move the folder."""

    def fetch(self, prefix: str, folder: Path) -> Path:
        """The folder's files as local files: in place where they are local, else copied to `folder`."""

    def names(self, prefix: str) -> list[str]:
        """Names of all objects below `prefix`."""

    def children(self, prefix: str) -> list[str]:
        """Names directly below `prefix`."""

    def size(self, prefix: str) -> int:
        """Bytes below `prefix`."""

    def delete(self, prefix: str) -> None:
        """Remove the object, or everything below the prefix."""


class LocalObjects:
    """A folder. Conditional writes hold an advisory lock of the object's name; content appears by rename."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self._root = root

    def path(self, name: str) -> Path:
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or PurePosixPath(name).is_absolute():
            raise ValueError(f"{name!r} is not a name inside the store")
        return self._root.joinpath(*parts)

    def get(self, name: str) -> tuple[bytes, str] | None:
        try:
            data = self.path(name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return data, _etag(data)

    def put(self, name: str, data: bytes, *, version: str) -> str:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked(name):
            current = self.get(name)
            if (current[1] if current else ABSENT) != version:
                raise Conflict(name)
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        return _etag(data)

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        # Lock files are few (names hash into 256) and are never removed: removing one would split its waiters.
        locks = self._root / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with (locks / hashlib.blake2b(name.encode(), digest_size=1).hexdigest()).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def upload(self, folder: Path, prefix: str) -> None:
        target = self.path(prefix)
        if target.exists():
            raise Conflict(prefix)
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(target)
        _sync_folder(target.parent)

    def fetch(self, prefix: str, folder: Path) -> Path:
        return self.path(prefix)

    def names(self, prefix: str) -> list[str]:
        base = self.path(prefix)
        return sorted(str(p.relative_to(self._root)) for p in base.rglob("*") if p.is_file())

    def children(self, prefix: str) -> list[str]:
        base = self.path(prefix)
        return sorted(p.name for p in base.iterdir() if not p.name.startswith(".")) if base.is_dir() else []

    def size(self, prefix: str) -> int:
        path = self.path(prefix)
        files = [path] if path.is_file() else path.rglob("*")
        return sum(p.lstat().st_size for p in files if p.is_file())

    def delete(self, prefix: str) -> None:
        path = self.path(prefix)
        if path.is_dir():
            # Renamed first, so that a reader never sees half an artifact.
            doomed = path.with_name(f".deleted-{os.getpid()}-{path.name}")
            path.rename(doomed)
            shutil.rmtree(doomed)
        else:
            path.unlink(missing_ok=True)


class S3Objects:
    """A bucket and prefix. Needs a store that honours If-Match and If-None-Match on writes, as S3 does."""

    def __init__(self, url: str) -> None:
        try:
            import boto3
        except ImportError as error:
            raise MissingError("an s3:// store needs boto3", remedy="pip install boto3") from error
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not bucket:
            raise UserError(f"{url!r} names no bucket", remedy="write s3://bucket/prefix")
        self.root = url.rstrip("/")
        self._bucket, self._prefix = bucket, prefix.strip("/")
        self._client: Any = boto3.client("s3")

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def get(self, name: str) -> tuple[bytes, str] | None:
        try:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._key(name))
        except self._client.exceptions.NoSuchKey:
            return None
        return answer["Body"].read(), answer["ETag"]

    def put(self, name: str, data: bytes, *, version: str) -> str:
        from botocore.exceptions import ClientError

        condition = {"IfNoneMatch": "*"} if version == ABSENT else {"IfMatch": version}
        try:
            answer = self._client.put_object(Bucket=self._bucket, Key=self._key(name), Body=data, **condition)
        except ClientError as error:
            if error.response["Error"]["Code"] in ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey"):
                raise Conflict(name) from error
            raise
        return str(answer["ETag"])

    def upload(self, folder: Path, prefix: str) -> None:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name = f"{prefix}/{path.relative_to(folder).as_posix()}"
                self._client.upload_file(str(path), self._bucket, self._key(name))

    def fetch(self, prefix: str, folder: Path) -> Path:
        if folder.is_dir():
            return folder
        partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name in self.names(prefix):
            target = partial.joinpath(*PurePosixPath(name).relative_to(prefix).parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            self._client.download_file(self._bucket, self._key(name), str(target))
        try:
            partial.rename(folder)
        except OSError:
            # Another process of this node brought the same immutable files first.
            shutil.rmtree(partial)
        return folder

    def write(self, name: str, path: Path) -> None:
        """A file as an object, whatever was there."""
        self._client.upload_file(str(path), self._bucket, self._key(name))

    def read(self, name: str, path: Path) -> bool:
        """An object as a file, which appears whole; False when there is none."""
        from botocore.exceptions import ClientError

        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            self._client.download_file(self._bucket, self._key(name), str(partial))
        except ClientError as error:
            if error.response["Error"]["Code"] in ("404", "NoSuchKey"):
                return False
            raise
        partial.replace(path)
        return True

    def _pages(self, prefix: str, **options: Any) -> Iterator[dict[str, Any]]:
        pages = self._client.get_paginator("list_objects_v2")
        yield from pages.paginate(Bucket=self._bucket, Prefix=self._key(prefix).rstrip("/") + "/", **options)

    def names(self, prefix: str) -> list[str]:
        cut = len(self._prefix) + 1 if self._prefix else 0
        return sorted(item["Key"][cut:] for page in self._pages(prefix) for item in page.get("Contents", []))

    def children(self, prefix: str) -> list[str]:
        found: set[str] = set()
        for page in self._pages(prefix, Delimiter="/"):
            found |= {PurePosixPath(item["Prefix"]).name for item in page.get("CommonPrefixes", [])}
            found |= {PurePosixPath(item["Key"]).name for item in page.get("Contents", [])}
        return sorted(found)

    def size(self, prefix: str) -> int:
        return sum(item["Size"] for page in self._pages(prefix) for item in page.get("Contents", []))

    def delete(self, prefix: str) -> None:
        doomed = [*self.names(prefix), prefix]
        for start in range(0, len(doomed), 1000):
            batch = [{"Key": self._key(name)} for name in doomed[start : start + 1000]]
            self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": batch})


def open_objects(url: str) -> LocalObjects | S3Objects:
    """The backend of a store's address: a folder or `s3://bucket/prefix`."""
    if url.startswith("s3://"):
        return S3Objects(url)
    if "://" in url:
        raise UserError(f"{url!r} is neither a folder nor s3://", remedy="write a path or s3://bucket/prefix")
    return LocalObjects(Path(url).expanduser().resolve())


def _etag(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
