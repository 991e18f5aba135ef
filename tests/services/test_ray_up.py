"""`ray up` with the local provider, over a real sshd: the start command of `cluster.yaml` brings up its head.

sshd listens on loopback with keys of its own. `ray down` is not called: it runs `ray stop`, which would end every Ray
of this machine. Workers are left out: a head reaches them on port 22 alone, which belongs to the machine's own sshd.
"""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from ray.util import get_node_ip_address

from services.processes import Process, kill
from tests.heads import BIN, ROOT, TOKEN, free_port

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
HOME = Path.home()
HEAD, WORKER = get_node_ip_address(), "127.0.0.2"
INSTALLED = "/home/ubuntu/cuvee/.venv/bin"


@dataclass(frozen=True)
class Ssh:
    """A running sshd and the key that it takes."""

    port: int
    key: Path


@pytest.fixture
def base() -> Iterator[Path]:
    """A short folder, since sockets are made in it; at the end every process that names it is killed."""
    with tempfile.TemporaryDirectory(prefix="u", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
        left = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and folder in " ".join(process.cmdline()):
                    left.append(Process.of(process.pid))
            except psutil.Error:
                continue
        kill(left)


@pytest.fixture
def sshd(base: Path) -> Iterator[Ssh]:
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None or shutil.which("ssh") is None or shutil.which("rsync") is None:
        pytest.skip("no sshd, ssh and rsync (Debian: apt-get install openssh-server rsync)")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where it goes to have no rights
    for name in ("host", "user"):
        made = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(base / name)]
        subprocess.run(made, check=True)
    port = free_port()
    (base / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {base}/host\nAuthorizedKeysFile {base}/user.pub\n"
        f"PidFile {base}/sshd.pid\nUsePAM no\nStrictModes no\nPasswordAuthentication no\n"
        "PermitRootLogin prohibit-password\nPrintMotd no\n"
    )
    process = subprocess.Popen(
        [program, "-D", "-e", "-f", str(base / "sshd_config")], stderr=(base / "sshd.log").open("w")
    )
    try:
        time.sleep(1)
        assert process.poll() is None, (base / "sshd.log").read_text()
        yield Ssh(port, base / "user")
    finally:
        process.terminate()
        process.wait(30)


def configuration(base: Path, ssh: Ssh, port: int, dashboard: int) -> dict[str, Any]:
    """`cluster.yaml` on this machine: its own start commands, on free ports and with this Python's packages."""
    theirs = yaml.safe_load((ROOT / "cluster.yaml").read_text())

    def here(command: str) -> str:
        words = command.replace(INSTALLED, str(BIN)).replace("/home/ubuntu/ray-gcs", str(base / "gcs"))
        words = words.replace("6379", str(port)).replace("RAY_AUTH_MODE=token", f"RAY_AUTH_MODE=token {token}")
        if "--head" in words:
            words += f" --dashboard-port={dashboard} --temp-dir={base} --node-ip-address={HEAD}"
            words += f" --ray-client-server-port={free_port()}"
        return f"{words} --dashboard-agent-listen-port={free_port()} --num-cpus=1 --object-store-memory=100000000"

    token = f"RAY_AUTH_TOKEN_PATH={base}/token RAY_TMPDIR={base}"
    starts = {
        name: [here(c) for c in theirs[name] if "ray start" in c]
        for name in ("head_start_ray_commands", "worker_start_ray_commands")
    }
    assert all(starts.values())
    return {
        "cluster_name": f"cuvee-test-{port}",
        "provider": {"type": "local", "head_ip": HEAD, "worker_ips": [WORKER]},
        "auth": {
            "ssh_user": getpass.getuser(),
            "ssh_private_key": str(ssh.key),
            # Ray takes no port of sshd: every address is reached through the one that listens.
            "ssh_proxy_command": f"{sys.executable} {base}/proxy.py {ssh.port}",
        },
        "min_workers": 0,
        "max_workers": 1,
        "upscaling_speed": theirs["upscaling_speed"],
        "idle_timeout_minutes": theirs["idle_timeout_minutes"],
        **starts,
    }


PROXY = """
import os, socket, sys, threading
there = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
def up():
    while data := os.read(0, 65536):
        there.sendall(data)
    there.shutdown(socket.SHUT_WR)
threading.Thread(target=up, daemon=True).start()
while data := there.recv(65536):
    os.write(1, data)
"""


def test_cluster_yaml_brings_up_a_head(base: Path, sshd: Ssh) -> None:
    port, dashboard = free_port(), free_port()
    (base / "proxy.py").write_text(PROXY)
    (base / "token").write_text(TOKEN)
    config = configuration(base, sshd, port, dashboard)
    (base / "cluster.yaml").write_text(yaml.safe_dump(config))
    # `ray up` copies its file and the key to the head's home, which is this one.
    kept = [HOME / "ray_bootstrap_config.yaml", HOME / "ray_bootstrap_key.pem"]
    if any(path.exists() for path in kept):
        pytest.skip(f"{kept[0]} is there: this machine is the head of a cluster")
    try:
        up = subprocess.run(
            [str(BIN / "ray"), "up", "-y", "--no-config-cache", str(base / "cluster.yaml")],
            capture_output=True, text=True, timeout=600, check=False,
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": str(base)},
        )  # fmt: skip
        assert up.returncode == 0, up.stdout[-6000:] + up.stderr[-3000:]
        assert nodes(dashboard, "") == [], "nobody is told anything without the token"
        assert nodes(dashboard, TOKEN) == [HEAD]
    finally:
        for path in [*kept, *Path("/tmp/ray").glob(f"cluster-cuvee-test-{port}*")]:
            path.unlink(missing_ok=True)


def nodes(dashboard: int, token: str) -> list[str]:
    """Addresses of the nodes that are alive, as the dashboard says to who has the token."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer = httpx.get(f"http://127.0.0.1:{dashboard}/api/v0/nodes", headers=headers, timeout=30)
    if answer.status_code in (401, 403):
        return []
    return [n["node_ip"] for n in answer.json()["data"]["result"]["result"] if n["state"] == "ALIVE"]
