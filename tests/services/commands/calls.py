"""Calling a command as the shell does, in this process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from services.cli import main


@dataclass(frozen=True)
class Call:
    """What a command left: exit code, standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.out))


def call(capfd: pytest.CaptureFixture[str], *arguments: object) -> Call:
    """Run `cuvee` with these arguments."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    captured = capfd.readouterr()
    return Call(int(end.value.code or 0), captured.out, captured.err)


def call_apart(*arguments: object) -> Call:
    """The same in a process of its own: for commands that start Ray, whose processes write to a shared output."""
    words = [sys.executable, "-m", "services.cli", *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=400)
    return Call(done.returncode, done.stdout, done.stderr)


def write_jsonl(path: Path, records: Sequence[Mapping[str, Any] | str]) -> Path:
    """Records as lines; a text is written as it is, to stand for a broken line."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
