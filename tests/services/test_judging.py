"""Judges over Ray: what they say is what one process says, in the same order."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

from cuvee.protocols import Case, Judge, Label, Verdict
from evaluation import judges
from services.judging import BATCH, Spread, judged

pytestmark = pytest.mark.usefixtures("ray_session")


def programs(count: int) -> list[Case]:
    """Every third program is wrong."""
    return [
        Case(
            id=str(i),
            prompt="Add.",
            prediction=f"def f(x):\n    return x + {i + (i % 3 == 0)}",
            tests=(f"assert f(1) == {i + 1}",),
        )
        for i in range(count)
    ]


class Counts:
    """Says of each case where and with how many others it was judged."""

    name, version, parallel = "counts", "1", False

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        return [Verdict(Label.UNSURE, case.id, f"{os.getpid()} {len(cases)}") for case in cases]


class Alone(Counts):
    parallel = True


def test_programs_are_judged_elsewhere_as_they_are_here() -> None:
    cases = programs(BATCH + 8)
    config = judges.JudgeConfig.parse("code")
    there = judges.build(config, spread=lambda judge: Spread(judge, {"num_cpus": 0.5}))
    found = there(cases)
    assert found == judges.build(config)(cases)
    assert [v.label is Label.DIFFERENT for v in found] == [i % 3 == 0 for i in range(len(cases))]
    assert (there.name, there.version) == ("code", judges.build(config).version)


def test_order_is_kept_and_batches_are_bounded() -> None:
    cases = programs(2 * BATCH + 5)
    found = Spread(Counts(), {"num_cpus": 0.5})(cases)
    assert [v.reason for v in found] == [case.id for case in cases]
    assert sorted({int(v.evidence.split()[1]) for v in found}) == [5, BATCH]
    assert str(os.getpid()) not in {v.evidence.split()[0] for v in found}
    few = Spread(Counts(), {"num_cpus": 0.5})(cases[:BATCH])
    assert {v.evidence for v in few} == {f"{os.getpid()} {BATCH}"}


def test_a_judge_that_would_use_the_whole_machine_gets_one_case_at_a_time() -> None:
    assert {v.evidence.split()[1] for v in judged(Alone(), programs(3))} == {"1"}
    assert {v.evidence.split()[1] for v in judged(Counts(), programs(3))} == {"3"}


def test_tiers_without_a_model_are_spread_tier_by_tier() -> None:
    wrapped: list[str] = []

    def spread(judge: Judge) -> Judge:
        wrapped.append(judge.name)
        return Spread(judge, {"num_cpus": 0.5})

    judges.build(judges.JudgeConfig.parse({"tiers": ["numeric", "text", "code"]}), spread=spread)
    assert wrapped == ["numeric", "code"]
