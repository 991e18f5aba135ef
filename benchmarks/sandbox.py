"""Sandbox: programs a second by level, and a plain child process for comparison.

    python benchmarks/sandbox.py [--programs N]

Each program defines a function and has three asserts (the shape of MBPP). The plain child is what a runner without any
protection costs: a new light interpreter that runs program and tests together.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from side_by_side import RESULTS, machine, table

from cuvee.errors import MissingError
from evaluation.sandbox import Job, SandboxConfig, confine, protection, run_many

PROGRAM = """
def f(v):
    out = []
    for x in v:
        if x not in out:
            out.append(x)
    return sorted(out)
"""
TESTS = ("assert f([3, 1, 1]) == [1, 3]", "assert f([]) == []", "assert f('cab') == ['a', 'b', 'c']")


def plain(_: int) -> None:
    source = PROGRAM + "\n".join(TESTS)
    subprocess.run([confine.interpreter(), "-s", "-S", "-P", "-B", "-c", source], env={}, check=True)


def measured(name: str, work: Callable[[], int], count: int) -> dict[str, object]:
    """Programs a second on the clock, and processor time of one, which tells more when the machine is busy."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    passed = work()
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"level": name, "programs/s": count / seconds, "processor ms": 1000 * used / count, "passed": passed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=300)
    count = parser.parse_args().programs
    workers = len(os.sched_getaffinity(0))

    def bare() -> int:
        with ThreadPoolExecutor(workers) as pool:
            return len(list(pool.map(plain, range(count))))

    rows = [measured("plain child, no protection", bare, count)]
    for level in ("bubblewrap", "landlock", "seccomp", "rlimits"):
        limits = SandboxConfig(level=level)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                protection(level)
        except MissingError as error:
            print(f"{level}: {error}")
            continue

        def held(limits: SandboxConfig = limits) -> int:
            outcomes = run_many([Job(PROGRAM, TESTS)] * count, limits=limits, workers=workers)
            return sum(outcome.status == "ok" for outcome in outcomes)

        rows.append(measured(level, held, count))
    text = f"{machine()}\n{count} programs with three asserts, {workers} at a time.\n\n{table(rows)}\n"
    print(text)
    (RESULTS / "sandbox.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
