"""MLflow's pages of a store: a server of our own for as long as the command runs.

It reads the database that runs are written to, so it may be started and ended at any time, also while a run is on.
MLflow's server has no accounts: whoever reaches its port can read and delete everything. So it listens on this machine
alone unless told otherwise.
"""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cuvee.errors import Unavailable, UserError
from services.processes import kill, tree, wait_gone

PATIENCE = 120.0
"""Seconds in which the server must answer."""
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Background jobs (evaluations by schedule) are no part of looking, and would be processes of their own.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on that host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def server(uri: str, folder: Path, *, host: str = "127.0.0.1", port: int = 5000) -> Iterator[subprocess.Popen[bytes]]:
    """A server of the database at `uri` for the length of the block; `folder` gets its log.

    Raises UserError when the port is taken, Unavailable when the server does not come up.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"{host}:{port} cannot be used: {error.strerror}", remedy="give another --port") from error
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "mlflow-ui.log"
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "mlflow-artifacts")]
    # By the environment, since everybody can read command lines and the address of a database may hold a password.
    environment = {**os.environ, **_QUIET, "MLFLOW_BACKEND_STORE_URI": uri}
    with log.open("wb") as file:
        # A session of its own: Ctrl-C comes to us, and we end it as a whole.
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
    try:
        _wait(process, address(host, port), log)
        yield process
    finally:
        started = tree(process.pid, "mlflow server")
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
        kill(wait_gone(started, timeout=5))


def address(host: str, port: int) -> str:
    """Where a browser finds it."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    import httpx

    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.3)
    raise Unavailable(f"MLflow's server did not come up at {url}", remedy=f"its log is {log}")
