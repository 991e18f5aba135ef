"""Nothing that was started outlives its command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.processes import Ledger, Process, kill, tree, wait_gone

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def sleeper() -> subprocess.Popen:
    child = subprocess.Popen(SLEEP)
    yield child
    child.kill()
    child.wait()


def test_a_process_is_told_from_a_later_one_with_its_pid(sleeper: subprocess.Popen) -> None:
    process = Process.of(sleeper.pid)
    assert process.alive()
    assert not process.model_copy(update={"started": process.started - 60}).alive()
    assert Process(pid=sleeper.pid, started=0).alive()
    sleeper.kill()
    assert wait_gone([process], 5) == []  # a zombie until it is waited for, and yet gone


def test_kill_ends_a_whole_group_and_waits() -> None:
    script = f"import subprocess, time; subprocess.Popen({SLEEP!r}); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    deadline = time.monotonic() + 20
    while len(tree(child.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    processes = tree(child.pid)
    assert len(processes) == 2
    assert kill(processes[:1]) == []
    child.wait()
    assert wait_gone(processes, 5) == []


def test_sweep_ends_what_a_dead_owner_left_and_nothing_else(tmp_path: Path, sleeper: subprocess.Popen) -> None:
    ledger = Ledger(tmp_path / "work" / "processes.json")
    assert ledger.sweep() == []
    mine = Process.of(sleeper.pid)
    other = subprocess.Popen(SLEEP)
    gone = {"owner": {"pid": os.getpid(), "started": 1.0}}  # same pid as ours, another start: its owner is dead
    alive = {"owner": Process.of(os.getppid()).model_dump()}
    stranger = {**gone, "process": {"pid": os.getpid(), "started": 1.0}}
    ledger.path.parent.mkdir()
    ledger.path.write_text(
        "\n".join(
            [
                json.dumps({**gone, "process": mine.model_dump()}),
                json.dumps({**alive, "process": Process.of(other.pid).model_dump()}),
                json.dumps(stranger),
                '{"owner": {"pi',  # its writer was killed
            ]
        )
    )
    try:
        assert [process.pid for process in ledger.sweep()] == [sleeper.pid]
        assert not mine.alive()
        assert other.poll() is None
        assert [json.loads(line)["process"]["pid"] for line in ledger.path.read_text().splitlines()] == [other.pid]
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), 9)", "raise SystemExit(3)"])
def test_a_group_dies_with_its_leader_however_it_ends(tmp_path: Path, end: str) -> None:
    script = f"""
import os, subprocess, sys
from services.processes import lead_group
pipe = lead_group()
child = subprocess.Popen({SLEEP!r})
open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
{end}
"""
    subprocess.run([sys.executable, "-c", script], timeout=60, check=False)
    pid = int((tmp_path / "pid").read_text())
    assert wait_gone([Process(pid=pid, started=0)], 10) == []


def test_kill_of_a_stopped_process(sleeper: subprocess.Popen) -> None:
    os.kill(sleeper.pid, signal.SIGSTOP)
    assert kill([Process.of(sleeper.pid)]) == []
