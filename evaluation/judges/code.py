"""Programs against tests, in the sandbox.

A program is right when all of its row's tests pass. Tests are asserts (MBPP), or code with a function `check` that is
called with the entry point (HumanEval). That a program only knows the tests' answers by heart is not noticed.

A failed test, an exception, a program that does not compile or runs into a limit of its own making is `different`;
tests that do not compile, wall time (the machine may be busy) and a sandbox that fails are `unsure`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

import pyarrow as pa

from cuvee.config import Config
from cuvee.protocols import Case, Judge, Verdict
from evaluation.judges.base import JUDGES, Kind, Parts, different, equivalent, unsure
from evaluation.judges.programs import called, extract
from evaluation.sandbox import Job, Outcome, SandboxConfig, run_many

VERSION = "1"


class CodeConfig(Config):
    """`limits`: of the sandbox."""

    limits: SandboxConfig = SandboxConfig()


class CodeJudge:
    """Runs programs in parallel on the processors that this process may use."""

    name = "code"
    version = VERSION
    parallel = True

    def __init__(self, config: CodeConfig) -> None:
        self.config = config

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        prepared = [prepare(case) for case in cases]
        jobs = [job for job in prepared if isinstance(job, Job)]
        outcomes = iter(run_many(jobs, limits=self.config.limits))
        return [verdict(job, next(outcomes)) if isinstance(job, Job) else job for job in prepared]


def prepare(case: Case) -> Job | Verdict:
    """What to run, or the verdict where there is nothing to run."""
    entry = str(case.meta.get("entry_point") or "")
    setup = str(case.meta.get("test_setup_code") or "")
    tests = tuple(_whole(test, setup, entry) for test in case.tests if test.strip())
    if not tests:
        return unsure("the row has no tests")
    names = {entry} if entry else called(tests)
    found = extract(case.prediction, prompt=case.prompt, names=names)
    if found.problem:
        return different(found.problem, case.prediction[:200])
    return Job(found.text, tests, entry=entry)


def _whole(test: str, setup: str, entry: str) -> str:
    """With its imports before it, and with the call of `check` that HumanEval leaves to the runner."""
    if entry and re.search(r"^def check\(", test, re.MULTILINE) and not re.search(r"^check\(", test, re.MULTILINE):
        test = f"{test}\ncheck({entry})"
    return f"{setup}\n{test}" if setup else test


def verdict(job: Job, outcome: Outcome) -> Verdict:
    evidence = job.tests[outcome.test].strip()[:300] if outcome.test >= 0 else ""
    if outcome.status == "ok":
        return equivalent(outcome.reason)
    if outcome.status == "error" or (outcome.status, outcome.reason) == ("timeout", "wall time"):
        return unsure(outcome.reason, evidence)
    return different(outcome.reason, evidence)


def _fits(config: Any, source: pa.Table | Collection[str]) -> str | None:
    if not isinstance(source, pa.Table):
        return None
    rows = source["tests"].slice(0, 1000).to_pylist()
    broken = sum(any(_broken(test) for test in tests or ()) for tests in rows)
    return (
        f"the judge 'code' finds tests that do not compile in {broken} of {len(rows)} rows"
        if broken * 2 > len(rows)
        else None
    )


def _broken(test: str) -> bool:
    try:
        compile(test, "test", "exec")
    except (SyntaxError, ValueError):
        return True
    return False


def _build(config: Any, parts: Parts) -> Judge:
    return parts.spread(CodeJudge(config))


JUDGES.register("code")(Kind(CodeConfig, _build, needs=("tests",), fits=_fits))
