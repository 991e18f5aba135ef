"""Resources that never deadlock, and a Ray that ends with its command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from services.cluster import object_store_bytes
from services.environment import ENVIRONMENT, quiet_environment
from services.processes import Process, wait_gone

ROOT = Path(__file__).parents[2]


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ENVIRONMENT:
        monkeypatch.setenv(key, ENVIRONMENT[key])
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert quiet_environment() == ENVIRONMENT | {"TOKENIZERS_PARALLELISM": "true"}
    assert "HF_HUB_OFFLINE" not in os.environ
    assert quiet_environment(offline=True)["HF_HUB_OFFLINE"] == "1"
    monkeypatch.delenv("HF_HUB_OFFLINE")


def test_the_object_store_is_small() -> None:
    assert 100_000_000 <= object_store_bytes() <= 4_000_000_000


SCRIPT = """
import json, sys, time
from pathlib import Path
from services.cluster import connect
from services.processes import tree

folder = Path(sys.argv[1])
with connect(cpus=2, log_file=folder / "log.txt", pids=folder / "pids.json"):
    import os, ray

    @ray.remote(num_cpus=0.1)
    def speak():
        print("chatter of a worker")
        return {name: os.environ.get(name) for name in ("OMP_WAIT_POLICY", "TQDM_DISABLE")}

    seen = ray.get(speak.remote())
    time.sleep(1.5)  # output comes in its own time
    found = [process.model_dump() for process in tree(os.getpid()) if process.pid != os.getpid()]
    print(json.dumps({"cpus": ray.cluster_resources()["CPU"], "environment": seen, "processes": found}), flush=True)
    if sys.argv[2] == "wait":
        time.sleep(600)
    if sys.argv[2] == "fail":
        raise ValueError("as asked")
"""


def command(folder: Path, how: str) -> subprocess.Popen:
    arguments = [sys.executable, "-c", SCRIPT, str(folder), how]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def report(child: subprocess.Popen) -> tuple[dict[str, Any], list[Process]]:
    assert child.stdout is not None
    found = json.loads(child.stdout.readline())
    return found, [Process(**process) for process in found["processes"]]


def test_an_embedded_ray_is_quiet_and_ends(tmp_path: Path) -> None:
    child = command(tmp_path, "fail")
    found, processes = report(child)
    out, err = child.communicate(timeout=120)
    assert found["cpus"] == 2
    assert found["environment"] == {"OMP_WAIT_POLICY": "PASSIVE", "TQDM_DISABLE": "1"}
    assert len(processes) > 2
    assert wait_gone(processes, 5) == []
    assert out == ""
    assert "ValueError: as asked" in err
    assert "chatter" not in err
    assert "chatter of a worker" in (tmp_path / "log.txt").read_text()


SLOW = """
import signal, sys, time
from pathlib import Path
from services.cluster import connect

signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    with connect(cpus=2, log_file=Path(sys.argv[1]) / "log.txt"):
        print("ready", flush=True)
        time.sleep(600)
except KeyboardInterrupt:
    time.sleep(5)
    print("put away", flush=True)
"""


def test_what_is_ended_keeps_its_own_handler_and_has_time(tmp_path: Path) -> None:
    """Ray's handler would exit in its place, and the one below that aborts what is not gone after three seconds."""
    child = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGTERM)
    out, _ = child.communicate(timeout=120)
    assert (out, child.returncode) == ("put away\n", 0)


@pytest.mark.kill
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_a_command_that_is_killed(tmp_path: Path, how: signal.Signals) -> None:
    child = command(tmp_path, "wait")
    _, processes = report(child)
    child.send_signal(how)
    child.wait(timeout=60)
    if how == signal.SIGKILL:
        time.sleep(5)  # Ray's processes notice by themselves; the next command sweeps the rest
        after = command(tmp_path, "end")
        report(after)
        after.communicate(timeout=120)
    assert wait_gone(processes, 10) == []


def test_a_cluster_that_is_not_there_is_named(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from services.cluster import connect\n"
        f"with connect('127.0.0.1:1', log_file=Path({str(tmp_path)!r}) / 'log'): pass"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert "Unavailable: Ray cannot be joined at 127.0.0.1:1" in done.stderr
