"""`mlflow server` for tests, which can be killed and started again on the same address."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from services.processes import kill, tree
from tests.heads import BIN


@dataclass
class Server:
    """`database` is the address of its backend; artifacts are below `folder`."""

    folder: Path
    database: str
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [BIN / "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", self.database, "--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.txt").open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if httpx.get(f"{self.address}/health", timeout=5).is_success:
                    return
            except httpx.TransportError:
                time.sleep(0.5)
        raise AssertionError((self.folder / "server.txt").read_text()[-3000:])

    def kill(self) -> None:
        if self.process is not None:
            family = tree(self.process.pid)
            kill(family)
            self.process.wait()
            self.process = None
