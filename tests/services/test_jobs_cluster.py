"""Jobs on a real Ray head with token authentication, started and ended here."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from services.processes import kill, tree, wait_gone
from services.store import Store

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
BIN = Path(sys.executable).parent
RECIPE = """
version: 1
data:
  pool: {from: pool.jsonl, do: [dedup, {embed: {encoder: "builtin:all-minilm-l6-v2"}}]}
evaluate: {at: []}
"""


@dataclass(frozen=True)
class Head:
    address: str
    environment: dict[str, str]

    def cuvee(self, *arguments: str, where: Path, **change: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "services.cli", *arguments, "--address", self.address],
            cwd=where,
            env={**self.environment, **change},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # Ray's sockets have long names, and a path of a socket at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        token = Path(folder) / "token"
        token.write_text("a" * 32)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }
        dashboard = free_port()
        command = [str(BIN / "ray"), "start", "--head", "--block", "--temp-dir", folder, "--num-cpus", "2"]
        command += ["--port", str(free_port()), "--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)]
        command += ["--ray-client-server-port", str(free_port()), "--dashboard-agent-listen-port", str(free_port())]
        command += ["--object-store-memory", "200000000", "--min-worker-port", "0", "--max-worker-port", "0"]
        with (Path(folder) / "head.log").open("w") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        address = f"http://127.0.0.1:{dashboard}"
        try:
            wait_for(f"{address}/api/version", process)
            yield Head(address, environment)
        finally:
            started = tree(process.pid)
            process.send_signal(signal.SIGTERM)
            kill(wait_gone(started, timeout=20))
            process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(url, timeout=5)
        except httpx.TransportError:
            time.sleep(1)
        else:
            return
    raise AssertionError("the head did not come up")


def test_a_recipe_runs_there_and_a_second_submission_continues(head: Head, tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"What is {i} + {i}?"}, {"role": "assistant", "content": str(2 * i)}]}
        for i in range(8)
    ]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "small.yaml").write_text(RECIPE)
    store = tmp_path / "store"
    first = head.cuvee("submit", "small.yaml", "--store", str(store), where=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "sends 2 files" in first.stderr
    assert "pool · embed" in first.stdout
    (name,) = Store(str(store)).runs()
    assert Store(str(store)).runs()[name]["status"] == "finished"

    second = head.cuvee("submit", "small.yaml", "--store", str(store), "--json", where=tmp_path)
    assert second.returncode == 0, second.stdout + second.stderr
    said = json.loads(second.stdout)
    assert (said["status"], said["exit_code"]) == ("SUCCEEDED", 0)
    base = f"cuvee-{name.rpartition('-')[2]}"
    assert said["job"] == f"{base}-2"
    listed = json.loads(head.cuvee("jobs", "--json", where=tmp_path).stdout)["jobs"]
    assert [job["job"] for job in listed] == [f"{base}-1", f"{base}-2"]
    assert json.loads(head.cuvee("status", base, "--json", where=tmp_path).stdout)["job"] == f"{base}-2"
    assert "pool · embed" in head.cuvee("logs", f"{base}-1", where=tmp_path).stdout


def test_the_status_of_the_command_comes_back(head: Head, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(RECIPE.replace("pool.jsonl", "/nowhere/pool.jsonl"))
    found = head.cuvee("submit", "bad.yaml", "--store", str(tmp_path / "store"), where=tmp_path)
    assert found.returncode == 2
    assert "needs /nowhere/pool.jsonl on the cluster" in found.stderr
    assert "no such file" in found.stdout


def test_without_the_token_nothing_is_said(head: Head, tmp_path: Path) -> None:
    found = head.cuvee("jobs", where=tmp_path, RAY_AUTH_MODE="disabled")
    assert found.returncode == 2
    assert "token" in found.stderr


def test_a_live_attempt_is_not_started_twice_and_can_be_ended(head: Head, tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from services.jobs import Cluster, Order
cluster = Cluster(sys.argv[1], same_version=True)
order = Order("0123456789abcdef", "sleeper", "/store", "sleep 300", Path(sys.argv[2]), [])
assert cluster.submit(order) == ("cuvee-0123456789ab-1", True)
assert cluster.submit(order) == ("cuvee-0123456789ab-1", False)
stopped = cluster.stop("cuvee-0123456789ab-1")
assert (stopped["status"], stopped["exit_code"]) == ("STOPPED", 130), stopped
assert cluster.submit(order) == ("cuvee-0123456789ab-2", True)
"""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "note.txt").write_text("a job has a folder")
    made = subprocess.run(
        [sys.executable, "-c", script, head.address, str(folder)], env=head.environment, timeout=300, check=False
    )
    assert made.returncode == 0
    stopped = head.cuvee("stop", "cuvee-0123456789ab", where=tmp_path)
    assert (stopped.returncode, stopped.stdout) == (0, "cuvee-0123456789ab-2: STOPPED\n")
