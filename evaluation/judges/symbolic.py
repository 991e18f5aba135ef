"""math-verify in a child process, with a time limit for each pair.

math-verify parses LaTeX and asks SymPy, which may not end. It stops itself by SIGALRM, which works in a main thread
only and not in Ray workers; so it lives in a child, pairs go there one a line, and a child that is late is killed and
started again for the rest. Starting costs about two seconds, once for a whole table.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from cuvee.errors import CuveeError

START_S = 120.0
"""Seconds for the child to import SymPy, generous because the machine may be loaded."""
MEMORY = 4 << 30

_CHILD = Path(__file__).with_name("symbolic_child.py")

Outcome = tuple[bool | None, str]
"""Alike or not, None if it could not be decided; and why."""


class Symbolic:
    """A context manager; call it with (gold, prediction) pairs."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Symbolic:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop()

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[Outcome]:
        return [self._compare(gold, prediction) for gold, prediction in pairs]

    def _compare(self, gold: str, prediction: str) -> Outcome:
        if max(len(gold), len(prediction)) > 2000:
            return None, "expression longer than 2000 characters"
        child = self._child or self._start()
        assert child.stdin is not None
        try:
            child.stdin.write(json.dumps([gold, prediction]).encode() + b"\n")
            child.stdin.flush()
            line = self._line(child, self.limit_s)
        except (TimeoutError, BrokenPipeError, EOFError) as error:
            self._stop()
            return None, f"math-verify did not finish in {self.limit_s:g} s" if isinstance(
                error, TimeoutError
            ) else "math-verify died"
        alike, why = json.loads(line)
        return alike, str(why)

    def _start(self) -> subprocess.Popen[bytes]:
        self._child = subprocess.Popen(
            [sys.executable, "-P", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.defpath, "PYTHONHASHSEED": "0"},
            start_new_session=True,
        )
        resource.prlimit(self._child.pid, resource.RLIMIT_AS, (MEMORY, MEMORY))
        try:
            self._line(self._child, START_S)
        except (TimeoutError, EOFError) as error:
            self._stop()
            raise CuveeError(
                "the child process of math-verify does not start", remedy="pip install math-verify"
            ) from error
        return self._child

    def _line(self, child: subprocess.Popen[bytes], limit_s: float) -> bytes:
        assert child.stdout is not None
        deadline = time.monotonic() + limit_s
        data = b""
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while not data.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                piece = os.read(child.stdout.fileno(), 65536)
                if not piece:
                    raise EOFError
                data += piece
        return data

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()
