"""Scaling by Ray's own autoscaler over a provider whose machines are processes: a group that is asked for comes."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.heads import Head, free_port

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
HEAD_ID = "f" * 51 + "00000"
HEAD_GROUP = "ray.head.default"  # the provider knows no other
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"

SCRIPT = """
import json, sys, time
import ray
from services.capacity import Capacity, Need, resources

ray.init(sys.argv[1], log_to_driver=False)

def alive():
    return sorted(int(n["Resources"].get("GPU", 0)) for n in ray.nodes() if n["Alive"])

before = Capacity.of_ray()
train = resources("train", before, workers=2)
labelled = resources("embed", before, need=Need(labels={"accelerator-type": "H100"}))
said = {
    "alive": alive(),
    "gpus": before.gpus,
    "train": [train.gpus, before.place(train, 2).when, before.place(train, 2).text],
    "labelled": before.place(labelled).when,
    "data": before.place(resources("data", before)).when,
    "never": before.place(train, 3).when,
}

@ray.remote(**train.options())
class Worker:
    def where(self):
        return ray.get_runtime_context().get_node_id()

workers = [Worker.remote(), Worker.remote()]
said["nodes"] = len(set(ray.get([worker.where.remote() for worker in workers], timeout=240)))
said["up"] = alive()
now = Capacity.of_ray()
said["then"] = now.place(train, 2).when
del workers
deadline = time.monotonic() + 240
while sum(alive()) and time.monotonic() < deadline:
    time.sleep(1)
said["down"] = alive()
print(json.dumps(said))
"""


def config(port: int) -> dict[str, Any]:
    """A complete file: Ray's wheel lacks the defaults of this provider, so that it goes by `external`."""
    groups = {
        HEAD_GROUP: {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
        "gpu": {
            "resources": {"CPU": 2, "GPU": 1},
            "labels": {"accelerator-type": "H100"},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        },
        "cpu": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    }
    empty = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "fake",
        "max_workers": 4,
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "external",
            "module": PROVIDER,
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
            "gcs_address": f"127.0.0.1:{port}",
        },
        "auth": {"ssh_user": "nobody"},
        "available_node_types": groups,
        "head_node_type": HEAD_GROUP,
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "docker": {},
        **{f"{name}_commands": [] for name in empty},
    }


def test_machines_come_when_they_are_asked_for_and_go_when_idle() -> None:
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "autoscaling.json"
        head = Head(Path(folder), cpus=1, arguments=[f"--autoscaling-config={file}"], port=free_port())
        file.write_text(json.dumps(config(head.port)))
        ours = {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",  # what `ray up` sets
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
            "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
            "RAY_NODE_TYPE_NAME": HEAD_GROUP,
        }
        head.variables = ours
        head.start()
        head.variables = {}
        try:
            said = json.loads(head.script(SCRIPT, head.gcs, timeout=560).splitlines()[-1])
        except AssertionError as error:
            log = Path(folder) / "session_latest" / "logs" / "monitor.log"
            raise AssertionError(f"{error}\n{log.read_text()[-6000:]}") from None
        finally:
            head.stop()
    assert said == {
        "alive": [0],
        "gpus": 2,
        "train": [1, "later", "waits for machines of the group gpu"],
        "labelled": "later",
        "data": "now",
        "never": "never",
        "nodes": 2,
        "up": [0, 1, 1],
        "then": "now",
        "down": [0],
    }
