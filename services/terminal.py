"""What a person sees: a bar on a terminal, plain lines elsewhere, and nothing of the libraries' chatter.

Ray, vLLM and DeepSpeed write from many processes to file descriptors 1 and 2. While a command runs, those two point
to a log file, and we keep the real ones for ourselves.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from services.broker import Outcome
    from services.graph import Node

PATIENCE = 2.0
"""Seconds after which a step that still runs is worth a line."""
PLAIN_EVERY = 15.0
"""Seconds between plain progress lines when there is no terminal."""


class Terminal:
    """`out` is for results (standard output), `err` for progress and messages."""

    def __init__(self, out: TextIO, err: TextIO, *, json: bool = False) -> None:
        self.json = json
        self.out, self.err = _console(out), _console(err)


def _console(file: TextIO) -> Console:
    """Where the output is no terminal, lines are wide and whole, so that paths and keys can be copied."""
    if file.isatty():
        return Console(file=file, highlight=False)
    return Console(file=file, highlight=False, soft_wrap=True, width=int(os.environ.get("COLUMNS", "140")))


@contextmanager
def quiet(log: Path | None, *, json: bool = False) -> Iterator[Terminal]:
    """Send the process's output (and that of its children) to `log` and give the real terminal. None: no redirect."""
    if log is None:
        yield Terminal(sys.stdout, sys.stderr, json=json)
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with (
        log.open("ab", buffering=0) as file,
        os.fdopen(os.dup(saved[0]), "w", encoding="utf-8") as out,
        os.fdopen(os.dup(saved[1]), "w", encoding="utf-8") as err,
    ):
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield Terminal(out, err, json=json)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, descriptor in enumerate(saved, start=1):
                os.dup2(descriptor, number)
                os.close(descriptor)


class StepLines:
    """The observer that shows steps: a bar while one runs, a line when it has ended. `total` 0: nobody knows it."""

    def __init__(self, terminal: Terminal, total: int) -> None:
        self._terminal, self._total, self._count = terminal, total, 0
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def started(self, node: Node) -> Reporter:
        self._close()
        if self._terminal.err.is_terminal:
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                SpinnerColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._terminal.err,
                transient=True,
            )
            self._task = self._bar.add_task(node.label, total=None, rate="")
            self._bar.start()
        return Reporter(self, node.label)

    def report(self, label: str, done: int, total: int | None, seconds: float) -> None:
        rate = pace(done, seconds)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, rate=rate)
        elif not self._terminal.err.is_terminal:
            left = f", {(total - done) * seconds / done:.0f} s left" if total and done else ""
            of = f" of {total}" if total else ""
            self._terminal.err.print(f"  {label}: {done}{of} ({rate or 'starting'}{left})", markup=False)

    def waiting(self, node: Node, holder: str) -> None:
        self._close()
        self._terminal.err.print(f"  {node.label}: {holder or 'another command'} is making it; waiting", markup=False)

    def finished(self, outcome: Outcome) -> None:
        from rich.markup import escape

        self._close()
        self._count += 1
        mark = {"computed": "[green]✓[/]", "reused": "[dim]=[/]", "failed": "[red]✗[/]", "skipped": "[yellow]-[/]"}
        mark |= {"stopped": "[yellow]■[/]"}
        seconds = f"{outcome.seconds:6.1f} s" if outcome.status == "computed" else f"{outcome.status:>8}"
        note = f"  {outcome.error}" if outcome.error else _note(outcome)
        label = escape(outcome.node.label)
        counter = f"[dim]{self._count:>3}/{self._total}[/]" if self._total else f"[dim]{self._count:>3}[/]"
        self._terminal.err.print(f"{counter} {mark[outcome.status]} {label:<44} {seconds}  [dim]{escape(note)}[/]")

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar, self._task = None, None


class Reporter:
    """The progress of one step; thins out plain lines."""

    def __init__(self, lines: StepLines, label: str) -> None:
        self._lines, self._label = lines, label
        self._start = time.monotonic()
        self._next = PATIENCE

    def __call__(self, done: int, total: int | None) -> None:
        seconds = time.monotonic() - self._start
        if self._lines._bar is not None:
            self._lines.report(self._label, done, total, seconds)
        elif seconds >= self._next:
            self._next = seconds + PLAIN_EVERY
            self._lines.report(self._label, done, total, seconds)


def _note(outcome: Outcome) -> str:
    """The one figure of a step that says most."""
    info = outcome.info
    if "final_loss" in info:
        return f"{info.get('steps')} steps, loss {info['final_loss']:.3f}"
    if "summary" in info:
        return f"{info['items']} items"
    parts = [f"{info['rows']:,} rows"] if "rows" in info else []
    parts += [f"{info['tokens']:,} tokens"] if "tokens" in info else []
    parts += [f"{info[k]} {k}" for k in ("removed", "rejected", "held") if info.get(k)]
    return ", ".join(parts)


def pace(done: int, seconds: float) -> str:
    """Work in a unit that has digits: 3.2/s, or 8.1 s each. Empty before the first piece."""
    if not done or seconds <= 0:
        return ""
    return f"{done / seconds:.1f}/s" if done >= seconds else f"{seconds / done:.1f} s each"
