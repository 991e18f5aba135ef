"""Real Ray heads for tests, started by the command line as on a cluster, and ended with all that they have started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from services.processes import kill, tree, wait_gone

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[1]
TOKEN = "a" * 32


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class Head:
    """A head on ports of its own under `folder`, which survives it: `start` again continues its state if it has any.

    Ray's sockets have long names, and a path of a socket at most 107 characters: `folder` must be short.
    """

    folder: Path
    cpus: int = 2
    variables: Mapping[str, str] = field(default_factory=dict)
    arguments: Sequence[str] = ()
    port: int = field(default_factory=free_port)
    dashboard: int = field(default_factory=free_port)
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    started: int = 0
    """Nodes that were ever added."""

    @property
    def address(self) -> str:
        """Of the dashboard."""
        return f"http://127.0.0.1:{self.dashboard}"

    @property
    def gcs(self) -> str:
        """Of the cluster itself."""
        return f"127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """For everyone who talks to the cluster: token authentication is on."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        return kept | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_API_SERVER_ADDRESS": self.address,
            "PYTHONPATH": str(ROOT),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            **self.variables,
        }

    def start(self, timeout: float = 180.0) -> None:
        """Start, and wait until the dashboard answers and knows the head as a node, which takes a moment more."""
        (self.folder / "token").write_text(TOKEN)
        # Ray takes another node's process on this machine for a head that still runs, if the last address is noted.
        (self.folder / "ray_current_cluster").unlink(missing_ok=True)
        command = [str(BIN / "ray"), "start", "--head", "--block", "--temp-dir", str(self.folder)]
        command += ["--num-cpus", str(self.cpus), "--port", str(self.port), "--object-store-memory", "200000000"]
        command += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(self.dashboard)]
        command += ["--ray-client-server-port", str(free_port()), "--dashboard-agent-listen-port", str(free_port())]
        command += ["--min-worker-port", "0", "--max-worker-port", "0", *self.arguments]
        with (self.folder / "head.log").open("a") as log:
            self.process = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                httpx.get(f"{self.address}/api/version", timeout=5)
                if self.alive():
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        self.stop()
        raise AssertionError(f"the head did not come up: {(self.folder / 'head.log').read_text()[-2000:]}")

    def add_node(self, cpus: int = 2, variables: Mapping[str, str] | None = None) -> None:
        """Another node of this cluster on this machine.

        It has a folder of its own, as on a machine of its own: in one folder the second node that unpacks a job's
        working directory takes away that of the first, where the driver may be.
        """
        before = self.alive()
        self.started += 1
        command = [str(BIN / "ray"), "start", "--block", "--address", self.gcs, "--num-cpus", str(cpus)]
        command += ["--temp-dir", str(self.folder / f"n{self.started}")]
        command += ["--object-store-memory", "100000000", "--dashboard-agent-listen-port", str(free_port())]
        command += ["--min-worker-port", "0", "--max-worker-port", "0"]
        with (self.folder / "nodes.log").open("a") as log:
            child = subprocess.Popen(
                command, env={**self.environment, **(variables or {})}, stdout=log, stderr=log, start_new_session=True
            )
        self.nodes.append(child)
        self.wait_nodes(before + 1)

    def alive(self) -> int:
        """Nodes that are alive."""
        answer = httpx.get(
            f"{self.address}/api/v0/nodes", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30
        ).json()
        return sum(node["state"] == "ALIVE" for node in answer["data"]["result"]["result"])

    def wait_nodes(self, count: int, timeout: float = 240.0) -> None:
        """Wait until that many nodes are alive, the head among them."""
        deadline = time.monotonic() + timeout
        while (found := self.alive()) != count:
            assert time.monotonic() < deadline, f"{found} nodes: {(self.folder / 'nodes.log').read_text()[-2000:]}"
            time.sleep(0.5)

    def stop(self) -> None:
        """End the head with what it has started, then the other nodes."""
        if self.process is not None:
            family = tree(self.process.pid)
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
            kill(wait_gone(family, timeout=20))
            self.process.wait()
            self.process = None
        self.stop_nodes()

    def kill_head(self) -> None:
        """End the head at once and nothing else. What it keeps in `folder` stays."""
        if self.process is not None:
            kill(tree(self.process.pid))
            self.process.wait()
            self.process = None

    def stop_nodes(self) -> None:
        """End the other nodes at once, as when their machines fail."""
        for node in self.nodes:
            kill(tree(node.pid))
            node.wait()
        self.nodes.clear()

    def cuvee(
        self, *arguments: str, where: Path, timeout: float = 400, **change: str
    ) -> subprocess.CompletedProcess[str]:
        """A `cuvee` command on the jobs of this cluster."""
        return self.run(*arguments, "--address", self.address, where=where, timeout=timeout, **change)

    def run(
        self, *arguments: str, where: Path = ROOT, timeout: float = 400, **change: str
    ) -> subprocess.CompletedProcess[str]:
        """A `cuvee` command in the cluster's environment."""
        return subprocess.run(
            [sys.executable, "-m", "services.cli", *arguments],
            cwd=where,
            env={**self.environment, **change},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def script(self, text: str, *arguments: str, timeout: float = 300) -> str:
        """What a Python script prints that talks to this cluster, in a process of its own."""
        done = subprocess.run(
            [sys.executable, "-c", text, *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout


@contextmanager
def running(cpus: int = 2, variables: Mapping[str, str] | None = None, arguments: Sequence[str] = ()) -> Iterator[Head]:
    """A head for the length of the block."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        head = Head(Path(folder), cpus, variables or {}, arguments)
        head.start()
        try:
            yield head
        finally:
            head.stop()
