"""Judges that take processors, over the machines of a cluster.

Tests in sandboxes and symbolic mathematics take seconds of a processor for each answer, and the driver's machine is the
smallest of a cluster. Their cases go out as Ray tasks, which a growing cluster sees as demand. Verdicts are the same as
those of one process, in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cuvee.protocols import Case, Judge, Verdict

BATCH = 32
"""Cases of a task: a few seconds of work, and few enough that tests of one row cannot hold up many others."""


class Spread:
    """`judge`, whose cases run as Ray tasks with these options. A batch or less is judged here."""

    def __init__(self, judge: Judge, options: Mapping[str, Any]) -> None:
        self.name, self.version = judge.name, judge.version
        self._judge, self._options = judge, options

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        if len(cases) <= BATCH:
            return self._judge(cases)
        import ray

        task: Any = ray.remote(judged)
        task = task.options(scheduling_strategy="SPREAD", **self._options)
        batches = [list(cases[start : start + BATCH]) for start in range(0, len(cases), BATCH)]
        found: list[list[Verdict]] = ray.get([task.remote(self._judge, batch) for batch in batches])
        return [verdict for verdicts in found for verdict in verdicts]


def judged(judge: Judge, cases: Sequence[Case]) -> list[Verdict]:
    """The verdicts, on one processor: a judge that would use all of the machine gets one case at a time."""
    if getattr(judge, "parallel", False):
        return [verdict for case in cases for verdict in judge([case])]
    return judge(cases)
