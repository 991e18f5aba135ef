"""Files between the machine of a command and the machines of its workers."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class Carrier(Protocol):
    """Can be sent to any worker. All paths are absolute."""

    @property
    def shared(self) -> bool:
        """Whether all machines see the same files, so that nothing has to be carried."""

    def here(self, path: Path) -> Path:
        """A file or folder of the command's machine on the machine that asks: itself, or a copy."""

    def send(self, made: Path, to: Path) -> None:
        """Carry a file or folder of this machine to where the command finds it as `to`, with `fetch`."""

    def fetch(self, to: Path, place: Path | None = None) -> None:
        """Bring what was sent as `to` last: to `place` of this machine, or as `to` where this is the command's."""


class SharedDisk:
    """All machines see the same files."""

    shared = True

    def here(self, path: Path) -> Path:
        return path

    def send(self, made: Path, to: Path) -> None:
        """Nothing to do: it was made there."""

    def fetch(self, to: Path, place: Path | None = None) -> None:
        """Nothing to do: it is there."""
