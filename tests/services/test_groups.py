"""Placement groups that nobody waits for any more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from services.groups import free_ended_jobs, free_trainings

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def groups() -> Any:
    """A trial's group and a training's."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    made = [placement_group([{"CPU": cpus}]) for cpus in (0.01, 0.5)]
    ray.get([group.ready() for group in made])
    yield made
    for group in made:
        remove_placement_group(group)


def states(groups: Any) -> list[str]:
    from ray.util.placement_group import placement_group_table

    return [placement_group_table(group)["state"] for group in groups]


def job() -> str:
    import ray

    return str(ray.get_runtime_context().get_job_id())


def test_only_groups_of_this_job_and_of_trainings_are_freed(groups: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    context = SimpleNamespace(get_job_id=lambda: "ff000000")
    with monkeypatch.context() as patch:
        patch.setattr("ray.get_runtime_context", lambda: context)
        free_trainings()
    assert states(groups) == ["CREATED", "CREATED"]
    free_trainings()
    assert states(groups) == ["CREATED", "REMOVED"]


@pytest.mark.parametrize(
    ("name", "status", "left"),
    [
        ("cuvee-0123456789ab-1", "RUNNING", "CREATED"),
        ("cuvee-0123456789ab-1", "FAILED", "REMOVED"),
        ("raysubmit_x", "FAILED", "CREATED"),
        (None, "SUCCEEDED", "CREATED"),
    ],
)
def test_groups_of_our_ended_jobs_are_freed(
    groups: Any, monkeypatch: pytest.MonkeyPatch, name: str | None, status: str, left: str
) -> None:
    found = [SimpleNamespace(submission_id=name, job_id=job(), status=status)]
    found.append(SimpleNamespace(submission_id="cuvee-0123456789ab-2", job_id=None, status="FAILED"))
    monkeypatch.setattr("ray.util.state.list_jobs", lambda **words: found)
    free_ended_jobs()
    assert states(groups) == [left, left]
