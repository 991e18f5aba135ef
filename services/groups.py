"""Placement groups that hold machines for nobody.

Ray frees those of a job that ends. It does not where the head was killed with the job and came back on its state: then
the groups come back too, and wait for a driver that does not. And a training that Ray Tune has stopped leaves its group
to a watcher of Ray Train, which finds nothing where several Rays run on one machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
"""Ray's words for a job that will not go on."""
SMALL = 0.05
"""CPUs and GPUs below which a group is a trial's own, which stays."""


def free_trainings() -> None:
    """Remove what trainings of this job still hold; for when nothing trains."""
    import ray

    _remove(ray.get_runtime_context().get_job_id(), least=SMALL)


def free_ended_jobs() -> None:
    """Remove what jobs of ours hold that have ended. Without a dashboard nobody has submitted any."""
    import ray
    from ray.util.state import list_jobs
    from ray.util.state.exception import RayStateApiException

    # Without an address Ray looks for any instance on the machine, and fails where it finds two.
    address = ray.get_runtime_context().gcs_address
    with suppress(RayStateApiException, OSError):
        for job in list_jobs(address=address, limit=10_000):
            ours = str(job.submission_id or "").startswith("cuvee-")
            if ours and job.job_id and _word(job.status) in ENDED:
                _remove(job.job_id)


def _word(status: Any) -> str:
    return str(getattr(status, "value", status))


def _remove(job: str, *, least: float = 0.0) -> None:
    from ray.util.placement_group import remove_placement_group

    for group in _of(job, least):
        remove_placement_group(group)


def _of(job: str, least: float) -> Iterator[Any]:
    """The groups of a job, whose id ends with the job's, with a bundle of so many CPUs and GPUs."""
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, placement_group_table

    for key, group in placement_group_table().items():
        largest = max((b.get("CPU", 0.0) + b.get("GPU", 0.0) for b in group["bundles"].values()), default=0.0)
        if key.endswith(job) and group["state"] != "REMOVED" and largest > least:
            yield PlacementGroup(PlacementGroupID.from_hex(key))
