"""Contenders in processes of their own, one after the other in rounds, and a table of what they took.

Each round runs every contender once, so that a machine that slows down slows all; the best round counts. Beside the
seconds on the wall there are those of the processor, which other processes disturb less. A contender prints one JSON
object at its end (what a library says after it is passed over); its peak memory is that of its process, with
everything that it imported and loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")
QUIET = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def run(script: str, contenders: Mapping[str, Sequence[str]], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """`contenders`: name to arguments of `script`. The records of each, one a round."""
    records: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, arguments in contenders.items():
            command = [sys.executable, script, *arguments]
            done = subprocess.run(command, env={**os.environ, **QUIET}, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
            last = next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{"))
            records[name].append(json.loads(last))
            print(name, records[name][-1], flush=True)
    return records


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(begin: tuple[float, float]) -> dict[str, float]:
    """Seconds on the wall and of the processor, of all threads of this process."""
    wall, processor = clocks()
    return {"seconds": wall - begin[0], "cpu_seconds": processor - begin[1]}


def finish(**figures: Any) -> None:
    """A contender's last line: its figures and its peak memory in MB."""
    # Not ru_maxrss: a process inherits the largest size of the one that started it.
    (peak,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    print(json.dumps({**figures, "peak_mb": round(int(peak.split()[1]) / 1024)}))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal keys as aligned text."""
    keys = list(rows[0])
    cells = [
        keys,
        *[[f"{row[key]:,.2f}" if isinstance(row[key], float) else str(row[key]) for key in keys] for row in rows],
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(keys))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def machine(*packages: str) -> str:
    """When, on what, with which versions. A module that more than one package builds (vllm) is named by its package."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = models[0].split(":")[1].strip() if models else platform.processor()
    builders = packages_distributions()
    names = [builder for name in packages for builder in builders.get(name, [name])]
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    return f"{datetime.now(UTC):%Y-%m-%d}, {cores} cores of {cpu}, load {load:.1f} at the end; {versions}"


def compare(
    file: str,
    contenders: Mapping[str, Callable[[], None]],
    head: Callable[[int], Sequence[str]],
    figures: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
    *,
    rounds: int = 3,
) -> None:
    """The command line of a benchmark: the contenders' turns, and the best of each as a table under `head(rounds)`.

    `--only NAME` is one turn of one contender, in a process of its own. `figures` makes a line of a best record. The
    text is printed and kept in the results under the name of `file`.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--only")
    options = parser.parse_args()
    if options.only:
        contenders[options.only]()
        return
    records = run(file, {name: ["--only", name] for name in contenders}, options.rounds)
    best = {name: min(found, key=lambda r: r["seconds"]) for name, found in records.items()}
    rows = [{"contender": name, **figures(record)} for name, record in best.items()]
    text = [*head(options.rounds), "", table(rows)]
    (RESULTS / f"{Path(file).stem}.txt").write_text("\n".join(text) + "\n")
    print("\n".join(text))
