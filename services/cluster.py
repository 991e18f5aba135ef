"""Connect to Ray, and say what a step may ask for here.

Without an address a command starts a Ray of its own and ends it again: `ray.init()` would join whatever Ray happens to
run on the machine, and would leave its choices to that. With an address it joins.

Logical CPUs are Ray's admission tickets, not cores. On a machine with two of them a trial, an engine, a Ray Data task
and an embedding actor that each ask for one wait for each other for ever. So without accelerators every kind asks for
at most a quarter of what is there (training for a half in all), and the cores are shared out as `threads` instead.
Threads that wait must not spin: with two jobs on two cores busy-waiting costs a factor of ten.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import psutil
from pydantic import Field

from cuvee.config import Config
from cuvee.errors import Unavailable, UserError
from services.processes import Ledger, Process, kill, tree, wait_gone

Kind = Literal["driver", "data", "embed", "engine", "train", "judge"]


def has_accelerator() -> bool:
    """Whether a GPU driver is there. Looks at device files, so that torch need not be loaded."""
    return any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/kfd", "/dev/dxg"))


THREAD_ENV: dict[str, str] = {
    # libgomp reads these once, when torch is loaded.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    **({} if has_accelerator() else {"DS_ACCELERATOR": "cpu"}),
}
"""What every process of ours is started with, unless the user has set it otherwise."""


def quiet_environment(*, offline: bool = False) -> dict[str, str]:
    """Put `THREAD_ENV` into this process and return what workers must be given. Call it before torch is loaded.

    `offline` is for runs with built-in and local models only: nothing then waits for a network.
    """
    wanted = THREAD_ENV | ({"HF_HUB_OFFLINE": "1"} if offline else {})
    for key, value in wanted.items():
        os.environ.setdefault(key, value)
    return {key: os.environ[key] for key in wanted}


class Resources(Config):
    """What one worker of a step asks Ray for."""

    cpus: float = Field(default=1.0, ge=0, description="logical CPUs: tickets for admission")
    gpus: float = Field(default=0.0, ge=0, description="accelerators")
    memory: int = Field(default=0, ge=0, description="bytes of main memory; 0 asks for none")
    labels: dict[str, str] = Field(default_factory=dict, description="node labels, such as accelerator-type: H100")
    threads: int = Field(default=1, ge=1, description="compute threads of the worker; goes to OMP_NUM_THREADS")

    def options(self) -> dict[str, Any]:
        """Keywords for `.options()` of a Ray task or actor."""
        options: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        if self.memory:
            options["memory"] = self.memory
        if self.labels:
            options["label_selector"] = dict(self.labels)
        return options


def resources(
    kind: Kind,
    *,
    workers: int = 1,
    gpus: float = 1.0,
    memory: int = 0,
    labels: Mapping[str, str] | None = None,
    have: Mapping[str, float] | None = None,
) -> Resources:
    """What each of `workers` workers of a step may ask for on the connected cluster.

    `gpus` is what a worker needs where accelerators exist; without any, the step runs on CPUs. `have` are the totals of
    the cluster (default: asked of Ray). Raises UserError when the accelerators or the memory can never suffice.
    """
    if have is None:
        import ray

        have = ray.cluster_resources()
    total, accelerators = float(have.get("CPU", 0)), float(have.get("GPU", 0))
    if total <= 0:
        raise Unavailable("the cluster has no CPUs", remedy="look at `ray status` of that cluster")
    if memory and memory > have.get("memory", memory):
        raise UserError(
            f"a {kind} worker needs {memory / 2**30:.1f} GiB, the whole cluster has {have['memory'] / 2**30:.1f} GiB",
            remedy="use a smaller model, LoRA, offload, or a machine with more memory",
        )
    common: dict[str, Any] = {"memory": memory, "labels": dict(labels or {})}
    if kind == "driver":
        # Ray Tune refuses a bundle of nothing.
        return Resources(cpus=0.01, **common)
    if accelerators and kind in ("embed", "engine", "train"):
        if gpus * workers > accelerators:
            raise UserError(
                f"{workers} {kind} workers with {gpus:g} GPUs each need more than the cluster's {accelerators:g}",
                remedy="lower the workers or the tensor parallel size",
            )
        threads = max(1, int(total / accelerators * gpus))
        return Resources(cpus=min(1.0, total / 4), gpus=gpus, threads=threads, **common)
    share = total / (2 * workers) if kind == "train" else total / 4
    threads = max(1, int(total) // workers) if kind in ("embed", "engine", "train") else 1
    return Resources(cpus=min(1.0, share), threads=threads, **common)


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

    from services.inference import shutdown_engines

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
            "num_cpus": cpus or _cores(),
            "object_store_memory": object_store_bytes(),
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
        }
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("a", buffering=1, encoding="utf-8") as log, _worker_output(log):
        try:
            if address and not _reachable(address):
                raise ConnectionError("nobody listens there")
            ray.init(**settings)
        except (ConnectionError, OSError, RuntimeError, TimeoutError) as error:
            ray.shutdown()
            place = f"joined at {address}" if address else "started"
            raise Unavailable(f"Ray cannot be {place}: {error}", remedy="`cuvee doctor` looks for the cause") from error
        started = [] if address else _ray_processes()
        if ledger:
            ledger.add(started)
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


def _cores() -> int:
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
