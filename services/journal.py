"""An append-only journal of what a run has to say, and how much of it has been delivered.

Everything goes here first: a line of JSON an event. A tracking server that is away, slow or full then costs nothing but
a file, and a killed command leaves what it knew to the next one. Lines are written whole under a lock, so that several
commands may share a journal; a line that a kill has torn is skipped and the next one starts afresh.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class Journal:
    """`<folder>/<name>.jsonl`, with `<name>.sent` (bytes delivered), `<name>.refused.jsonl` and `files/` beside it."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.path = folder / f"{name}.jsonl"
        self._sent = folder / f"{name}.sent"
        self._refused = folder / f"{name}.refused.jsonl"
        self._files = folder / "files"

    def append(self, event: Mapping[str, Any]) -> None:
        """Add an event. What has been written survives a kill of this process."""
        _append(self.path, event)

    def refuse(self, event: Mapping[str, Any], reason: str) -> None:
        """Keep an event that the server will never take, with its reason, so that the others can go on."""
        _append(self._refused, {**event, "refused": reason})

    def events(self, start: int = 0) -> Iterator[tuple[int, Event | None]]:
        """(byte after the event, event) for every whole line from byte `start`; None for a torn line."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            place = file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                place += len(line)
                if line.strip():
                    yield place, _parse(line)

    @property
    def sent(self) -> int:
        """Bytes delivered."""
        try:
            return int(self._sent.read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def mark(self, place: int) -> None:
        """Everything before byte `place` has been delivered."""
        temporary = self._sent.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(str(place))
        temporary.replace(self._sent)

    @property
    def behind(self) -> bool:
        """Whether there is something to deliver."""
        return self.path.exists() and self.path.stat().st_size > self.sent

    def keep(self, content: bytes) -> str:
        """A copy of an artifact until it is delivered: the original may change before the server is back."""
        name = hashlib.blake2b(content, digest_size=16).hexdigest()
        self._files.mkdir(exist_ok=True)
        path = self._files / name
        if path.exists():
            path.touch()
        else:
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_bytes(content)
            temporary.replace(path)
        return name

    def kept(self, name: str) -> Path:
        """The copy that `keep` made."""
        return self._files / name


def forget_files(folder: Path, age: float = 3600.0) -> None:
    """Remove the copies of artifacts that are older than `age` seconds; for when every journal is delivered.

    Younger ones stay: another command may have made its copy and not yet its event.
    """
    for path in (folder / "files").glob("*"):
        if time.time() - path.stat().st_mtime > age:
            path.unlink(missing_ok=True)


def journals(folder: Path) -> list[Journal]:
    """All journals of a folder, oldest first."""
    if not folder.is_dir():
        return []
    paths = [p for p in folder.glob("*.jsonl") if not p.name.endswith(".refused.jsonl")]
    return [Journal(folder, p.stem) for p in sorted(paths, key=lambda p: (p.stat().st_mtime_ns, p.name))]


def _append(path: Path, event: Mapping[str, Any]) -> None:
    line = json.dumps(event, ensure_ascii=False, separators=(",", ":"), default=str).encode() + b"\n"
    with path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line)


def _parse(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None
