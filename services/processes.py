"""Processes that must not outlive the command that started them.

Ray ends its own processes when the driver dies, but what an actor has forked (vLLM's EngineCore and its workers) lives
on when that actor is killed. Two nets, because each has a hole:

- `lead_group` makes an actor the leader of a process group and leaves a shell behind that waits on a pipe which only
  the actor holds open. However the actor ends, the pipe closes and the shell kills the group. It needs no bookkeeping
  and works on every node.
- `Ledger` is a file of (pid, start time, command). The next command kills what is still there. The start time tells a
  survivor from a stranger who was given its pid.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import psutil
from pydantic import Field

from cuvee.config import Config

_REAPER = 'exec 3<&0 </dev/null >/dev/null 2>&1; (read -r _ <&3; kill -s KILL -- "-$1") &'


class Process(Config):
    """One process of this machine, told apart from a later one with the same pid by its start time."""

    pid: int
    started: float = Field(description="seconds since the epoch, as the kernel has it; 0: whichever has the pid")
    what: str = ""

    @classmethod
    def of(cls, pid: int, what: str = "") -> Process:
        """Raises psutil.NoSuchProcess when there is none."""
        return cls(pid=pid, started=psutil.Process(pid).create_time(), what=what)

    def alive(self) -> bool:
        """Whether this very process is still there; a zombie is not."""
        try:
            found = psutil.Process(self.pid)
            # The kernel counts in ticks of 10 ms and psutil adds the boot time, which clock corrections may move.
            same = not self.started or abs(found.create_time() - self.started) < 2
            return same and found.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def tree(pid: int, what: str = "") -> list[Process]:
    """The process and all that descend from it."""
    try:
        top = psutil.Process(pid)
        pids = [top.pid, *(child.pid for child in top.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []
    found = []
    for each in pids:
        try:
            found.append(Process.of(each, what))
        except psutil.NoSuchProcess:
            continue
    return found


def kill(processes: Iterable[Process], timeout: float = 10.0) -> list[Process]:
    """Kill what is alive, with its process group where it leads one, and wait. Returns those that would not die."""
    left = [process for process in processes if process.alive()]
    for process in left:
        try:
            if os.getpgid(process.pid) == process.pid:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return wait_gone(left, timeout)


def wait_gone(processes: Iterable[Process], timeout: float) -> list[Process]:
    """Wait until none is alive, at most `timeout` seconds. Returns those that still are."""
    deadline = time.monotonic() + timeout
    left = [process for process in processes if process.alive()]
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = [process for process in left if process.alive()]
    return left


def lead_group() -> int:
    """Make this process the leader of its own group, which dies as a whole when this process ends in whatever way.

    Returns the write end of the pipe that the reaper watches. It closes with this process.
    """
    os.setpgid(0, 0)
    read, write = os.pipe()
    # The shell that waits is a grandchild in a session of its own: neither the group's end nor Ray's clean-up of an
    # actor's children takes it away before it has done its work.
    subprocess.run(
        ["/bin/sh", "-c", _REAPER, "reaper", str(os.getpid())], stdin=read, start_new_session=True, check=True
    )
    os.close(read)
    return write


class Ledger:
    """The processes that commands on one store have started, a JSON object a line: each is the work of `owner`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, processes: Iterable[Process]) -> None:
        """Record processes as started by this one."""
        owner = Process.of(os.getpid(), Path(sys.argv[0]).name)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            for process in processes:
                file.write(json.dumps({"owner": owner.model_dump(), "process": process.model_dump()}) + "\n")

    def sweep(self) -> list[Process]:
        """Kill what owners that are gone have left behind, and forget them. Returns what was killed."""
        if not self.path.exists():
            return []
        entries = [json.loads(line) for line in self.path.read_text().splitlines() if line.endswith("}")]
        orphans, kept = [], []
        for entry in entries:
            owner, process = Process(**entry["owner"]), Process(**entry["process"])
            if not process.alive():
                continue
            if owner.alive() and owner.pid != os.getpid():
                kept.append(entry)
            else:
                orphans.append(process)
        kill(orphans)
        scratch = self.path.with_suffix(f".{os.getpid()}")
        scratch.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
        scratch.replace(self.path)
        return orphans
