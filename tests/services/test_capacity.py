"""What workers may ask for: never a deadlock, never more than the machines, and what can still come is waited for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cuvee.errors import Unavailable, UserError
from services.capacity import Capacity, Group, Kind, Need, Resources, Where, node_types, resources
from services.runtime import Runtime
from services.store import Store
from training.settings import Execution

GB = 1e9
GPU_NODE = Group("gpu", 44, 4, 180 * GB, {"accelerator-type": "A10G"}, up=0, most=4)
HEAD = Group("head", 6, 0, 30 * GB)
CLOUD = Capacity((HEAD, GPU_NODE, Group("cpu", 14, 0, 30 * GB, up=0, most=8)))


def machine(cpus: float, gpus: float = 0) -> Capacity:
    return Capacity((Group("m", cpus, gpus, 8 * GB),))


@pytest.mark.parametrize("cpus", [1, 2, 4, 64])
def test_one_of_each_kind_fits_at_once(cpus: int) -> None:
    """A trial, its engine, and a Ray Data stage of two actors: the pipeline that waits for ever with one CPU each."""
    have = machine(cpus)
    kinds: tuple[Kind, ...] = ("driver", "engine", "data", "embed")
    assert sum(resources(kind, have).cpus for kind in kinds) <= cpus
    for workers in (1, 2, 8):
        train = resources("train", have, workers=workers)
        assert train.cpus * workers + resources("driver", have).cpus + resources("embed", have).cpus <= cpus
    assert resources("train", have).threads == cpus
    assert resources("train", have, workers=2).threads == max(1, cpus // 2)
    # Two trainings at once would only need the memory twice.
    assert 2 * resources("train", have).cpus > cpus


@given(st.integers(1, 200), st.integers(0, 16), st.integers(1, 5), st.integers(1, 20))
def test_what_is_asked_for_is_there(cpus: int, gpus: int, nodes: int, workers: int) -> None:
    have = Capacity((Group("n", cpus, gpus, 64 * GB, up=nodes, most=nodes),))
    if gpus and workers > gpus * nodes:
        with pytest.raises(UserError, match="fit no machine"):
            resources("train", have, workers=workers)
        return
    found = resources("train", have, workers=workers)
    assert have.place(found, workers).when == "now"
    assert found.gpus == (1 if gpus else 0)
    assert 1 <= found.threads <= cpus


def test_gpus_go_to_those_who_compute() -> None:
    have = Capacity((Group("m", 64, 8, 1e12, {"accelerator-type": "H100"}),))
    labels = {"accelerator-type": "H100"}
    engine = resources("engine", have, gpus=4, need=Need(labels=labels))
    assert engine.options() == {"num_cpus": 1.0, "num_gpus": 4.0, "label_selector": labels}
    assert resources("data", have).gpus == 0
    assert resources("train", have, workers=8).gpus == 1
    with pytest.raises(UserError, match=r"9 x .* fit no machine of this cluster, which has 1 x"):
        resources("train", have, workers=9)
    with pytest.raises(UserError, match=r"2000\.0 GB"):
        resources("train", have, need=Need(memory_gb=2000))
    with pytest.raises(UserError, match="accelerator-type=A100"):
        resources("embed", have, need=Need(labels={"accelerator-type": "A100"}))
    assert resources("train", have, need=Need(memory_gb=1)).options()["memory"] == 10**9
    assert resources("embed", have, need=Need(gpus=0)).gpus == 0
    with pytest.raises(Unavailable, match="no CPUs"):
        resources("data", Capacity(()))


def test_an_engine_of_several_gpus_stays_on_one_machine() -> None:
    have = Capacity((Group("m", 16, 2, 64 * GB, up=4, most=4),))
    assert resources("engine", have, gpus=2).gpus == 2
    with pytest.raises(UserError, match="fit no machine"):
        resources("engine", have, gpus=4)


def test_machines_that_can_still_come_are_waited_for() -> None:
    train = resources("train", CLOUD, workers=4)
    assert (train.gpus, train.threads) == (1, 11)
    assert CLOUD.place(train, 4).when == "later"
    assert CLOUD.place(train, 4).text == "waits for machines of the group gpu"
    assert CLOUD.place(train, 16).when == "later"
    assert CLOUD.place(train, 17).when == "never"
    assert CLOUD.place(resources("data", CLOUD), 1).when == "now"
    assert CLOUD.members(train) == 1, "no reason to start every machine there is"


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        ("A10G", True),
        ("H100", False),
        ("!H100", True),
        ("!A10G", False),
        ("in(H100, A10G)", True),
        ("!in(A10G)", False),
    ],
)
def test_labels_are_selected_as_ray_does(wanted: str, fits: bool) -> None:
    assert bool(GPU_NODE.holds(Resources(labels={"accelerator-type": wanted}))) == fits


def test_the_groups_of_cluster_yaml() -> None:
    config: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "cluster.yaml").read_text())
    groups = {group.name: group for group in node_types(config)}
    assert groups["head"].gpus == 0
    assert groups["head"].most == 1
    assert groups["gpu"].gpus * groups["gpu"].most > 0
    assert groups["gpu"].up == groups["cpu"].up == 0


def test_needs_of_a_recipe() -> None:
    where = Where.model_validate(
        {
            "workers": 2,
            "resources": {
                "train": {"gpus": 1, "labels": {"zone": "a"}, "runtime_env": {"pip": ["deepspeed==0.19.8"]}},
                "engine": {"memory_gb": 4, "runtime_env": {"env_vars": {"X": "1"}}},
            },
        }
    )
    assert where.training() == {
        "workers": 2, "use_gpu": True, "labels": {"zone": "a"}, "runtime_env": {"pip": ["deepspeed==0.19.8"]},
    }  # fmt: skip
    assert where.asked("embed") == {}
    need = Need.model_validate(where.asked("engine"))
    assert need.environment({"X": "0", "Y": "2"}) == {"env_vars": {"X": "1", "Y": "2"}}
    with pytest.raises(ValidationError, match="and not 'working_dir'"):
        Need(runtime_env={"working_dir": "/"})
    with pytest.raises(ValidationError, match="engine"):
        Where.model_validate({"resources": {"engin": {}}})


@pytest.mark.parametrize("gpus", [0, 4])
def test_where_a_training_runs(gpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the recipe says stays, the rest follows from the machines; a store in a bucket takes the checkpoints too."""
    monkeypatch.setattr(Runtime, "ray", lambda self: None)
    monkeypatch.setattr(Runtime, "capacity", Capacity((Group("m", 8, gpus, 64 * GB),)))
    said = {"workers": 2, "zero": 2, "labels": {}, "memory_gb": 8.0, "runtime_env": {"env_vars": {"A": "1"}}}
    context: Any = SimpleNamespace(execution={"execution": said}, key="train-1")
    runtime = Runtime(Store(str(tmp_path)), log=tmp_path / "log")
    where, env = runtime.training(context)
    execution = Execution.model_validate(where)
    assert (execution.workers, execution.zero, execution.use_gpu) == (2, 2, gpus > 0)
    assert execution.cpus_per_worker == (1 if gpus else 2.4)
    assert env["OMP_NUM_THREADS"] == ("2" if gpus else "4")
    assert "DS_ACCELERATOR" not in env, "a head without accelerators has workers with some"
    assert execution.storage is None
    runtime.carrier = SimpleNamespace(shared=False)  # type: ignore[assignment]
    assert runtime.training(context)[0]["storage"] == f"{tmp_path}/work/train-1"
