"""Carries artifacts between machines that share an object store and no disk.

What a step reads are finished artifacts, so a worker's machine can ask the store for its own copy; it is made once a
machine. What a worker makes goes to the store under `carried/` with the name that it has in the command's scratch
folder, and from there to the command, which publishes it as it does everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cuvee.errors import Unavailable
from cuvee.files import Carrier, SharedDisk
from services.objects import LocalObjects, S3Objects
from services.store import Store

_CARRIED = "carried"


def carrier(store: Store) -> Carrier:
    """For a store in a folder nothing is carried: all machines of a cluster must see that folder."""
    return SharedDisk() if isinstance(store.objects, LocalObjects) else StoreCarrier(store.url, str(store.scratch))


def forget(store: Store, path: Path) -> None:
    """Remove from the store what was carried to `path` of this machine or below it."""
    if not isinstance(store.objects, LocalObjects):
        store.objects.delete(f"{_CARRIED}/{path.relative_to(store.scratch).as_posix()}")


@dataclass(frozen=True)
class StoreCarrier:
    """`scratch` is the store's folder on the command's machine, of which workers are told paths."""

    url: str
    scratch: str
    shared: bool = False

    def here(self, path: Path) -> Path:
        """A copy of an artifact's file or folder; other paths are taken to be the same everywhere."""
        inside = self._inside(path)
        if inside is None or inside.parts[0] != "artifacts":
            return path
        _, key, attempt, *rest = inside.parts
        store = Store(self.url)
        folder = store.local(key)
        if folder.name != attempt:
            raise Unavailable(f"{key} was published anew while it was read", remedy="run again")
        return folder.joinpath(*rest)

    def send(self, made: Path, to: Path) -> None:
        name = self._name(to)
        if made.is_file():
            self._objects.write(name, made)
        else:
            self._objects.delete(name)
            self._objects.upload(made, name)

    def fetch(self, to: Path, place: Path | None = None) -> None:
        objects, name, place = self._objects, self._name(to), place or to
        for each in objects.names(name):
            target = place / each.removeprefix(f"{name}/")
            target.parent.mkdir(parents=True, exist_ok=True)
            objects.read(each, target)
        if not place.is_dir():
            objects.read(name, place)

    def _name(self, path: Path) -> str:
        inside = self._inside(path)
        if inside is None:
            raise ValueError(f"{path} is not below {self.scratch}")
        return f"{_CARRIED}/{inside.as_posix()}"

    def _inside(self, path: Path) -> Path | None:
        return path.relative_to(self.scratch) if path.is_relative_to(self.scratch) else None

    @property
    def _objects(self) -> S3Objects:
        return S3Objects(self.url)
