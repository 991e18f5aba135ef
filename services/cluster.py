"""Connect to Ray: one that is started here and ends with the command, or a cluster.

Without an address a command starts a Ray of its own and ends it again: `ray.init()` would join whatever Ray happens to
run on the machine, and would leave its choices to that. With an address it joins.

What workers may ask for is in `services.capacity`, what they are started with in `services.environment`.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

from cuvee.errors import Unavailable
from cuvee.signals import own_handler
from services.actors import shutdown_engines
from services.capacity import Capacity
from services.environment import quiet_environment
from services.groups import free_ended_jobs
from services.processes import Ledger, Process, kill, tree, wait_gone


def local_capacity() -> Capacity:
    """What a Ray that is started here will have."""
    return Capacity.of_machine(cores(), len(list(Path("/dev").glob("nvidia[0-9]*"))))


@contextmanager
def connect(
    address: str | None = None,
    *,
    cpus: int | None = None,
    log_file: Path,
    pids: Path | None = None,
    offline: bool = False,
) -> Iterator[None]:
    """A connection to Ray for the length of the block: an embedded one, or the cluster at `address`.

    What workers print goes to `log_file`. On the way out engines are ended, then a Ray that was started here, and what
    would not go is killed. `pids` is a file beside the store in which started processes are noted: what a killed
    command has left is ended first. Raises Unavailable when Ray cannot be started or joined.
    """
    import ray

    environment = quiet_environment(offline=offline)
    if ray.is_initialized():
        # Whoever has connected this process (a notebook, a job's driver, a test) also ends it.
        try:
            yield
        finally:
            shutdown_engines()
        return
    ledger = Ledger(pids) if pids else None
    if ledger:
        ledger.sweep()
    settings: dict[str, Any] = {
        # Engines are named actors: a namespace of its own keeps two commands on one cluster apart.
        "namespace": f"cuvee-{uuid4().hex[:12]}",
        "logging_level": logging.ERROR,
        "log_to_driver": True,
    }
    if address:
        settings |= {"address": address, "runtime_env": {"env_vars": environment}}
    else:
        settings |= {
            "address": "local",
            "num_cpus": cpus or cores(),
            "object_store_memory": object_store_bytes(),
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
        }
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("a", buffering=1, encoding="utf-8") as log, _worker_output(log):
        try:
            if address and not _reachable(address):
                raise ConnectionError("nobody listens there")
            with own_handler(signal.SIGTERM, or_theirs=True):
                ray.init(**settings)
        except (ConnectionError, OSError, RuntimeError, TimeoutError) as error:
            ray.shutdown()
            place = f"joined at {address}" if address else "started"
            raise Unavailable(f"Ray cannot be {place}: {error}", remedy="`cuvee doctor` looks for the cause") from error
        started = [] if address else _ray_processes()
        if ledger:
            ledger.add(started)
        if address:
            free_ended_jobs()
        try:
            yield
        finally:
            try:
                shutdown_engines()
            finally:
                if not address:
                    started += _ray_processes()  # and the workers of the meantime
                ray.shutdown()
                kill(wait_gone(started, timeout=10))


def object_store_bytes() -> int:
    """A tenth of the memory, at most 4 GB, and not more than /dev/shm holds (beyond it Ray falls back to disk)."""
    wanted = min(4e9, psutil.virtual_memory().total / 10)
    with suppress(OSError):
        wanted = min(wanted, 0.9 * shutil.disk_usage("/dev/shm").free)  # noqa: S108 - Ray's place, not ours
    return max(int(wanted), 100_000_000)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _ray_processes() -> list[Process]:
    """The processes of the embedded Ray: children of this one that run Ray's programs, and what they have started."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if "ray" in " ".join(child.cmdline()):
                found += tree(child.pid, f"ray {child.name()}")
    return found


@contextmanager
def _worker_output(log: Any) -> Iterator[None]:
    """Send what workers and Ray's own processes say to `log` in place of the terminal.

    All of it passes through one function of Ray, which has no setting for where to.
    """
    from ray._private import worker

    lock = threading.Lock()

    def write(data: dict[str, Any], ignore_prefix: bool = False) -> None:
        who = data.get("actor_name") or data.get("task_name") or "worker"
        with lock:
            # The autoscaler reports every few seconds that nothing has changed.
            if not log.closed and data.get("pid") != "autoscaler":
                log.writelines(f"[{who} {data.get('pid')} {data.get('ip')}] {line}\n" for line in data["lines"])

    usual = worker.print_to_stdstream
    worker.print_to_stdstream = write
    try:
        yield
    finally:
        worker.print_to_stdstream = usual


def _reachable(address: str) -> bool:
    """Whether somebody listens at host:port. Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return True  # "auto" and its kind
    with suppress(OSError), socket.create_connection((host, int(port)), timeout=10):
        return True
    return False
