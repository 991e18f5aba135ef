"""Parts of a cluster killed at random moments: submitted again, the result is that of an undisturbed run.

Victims are a worker process, an actor, a worker machine, the driver, the head (started again on what it keeps on disk)
and the MLflow server. `CUVEE_KILLS` says how many runs are disturbed (20), `CUVEE_VICTIMS` what is killed in turn,
`CUVEE_SEED` which moments are drawn.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from services.processes import tree
from services.store import Store
from tests.end_to_end.miniature import command, final_losses, write_recipe
from tests.heads import Head, free_port
from tests.mlflow_server import Server

RUNS = int(os.environ.get("CUVEE_KILLS", "20"))
SEED = int(os.environ.get("CUVEE_SEED", "0"))
VICTIMS = os.environ.get("CUVEE_VICTIMS", "worker,actor,node,driver,head,mlflow").split(",")
pytestmark = [pytest.mark.kill, pytest.mark.timeout(900 * (RUNS + 2))]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Head]:
    """A head that keeps its state on disk, without CPUs of its own for work, and two machines."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        kept = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(Path(folder) / "gcs")}
        head = Head(Path(folder), cpus=1, variables=kept)
        head.start()
        try:
            complete(head)
            yield head
        finally:
            head.stop()


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("mlflow")
    server = Server(folder, f"sqlite:///{folder / 'server.db'}", free_port())
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, mlflow: Server) -> Path:
    """`recipe.yaml`: the miniature with a checkpoint at every step, one engine, and the server."""
    made = tmp_path_factory.mktemp("recipe")
    path = write_recipe(made, tiny_model)
    recipe = yaml.safe_load(path.read_text())
    recipe["models"]["tiny"]["replicas"] = 1
    recipe["train"]["checkpoint_every"] = 1
    recipe["tracking"] = mlflow.address
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return made


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> dict[str, Any]:
    """What a run on one machine makes, and how long it takes."""
    start = time.monotonic()
    done = command("run", str(folder / "recipe.yaml"), "--store", str(folder / "one"), "--json", timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    return {**json.loads(done.stdout), "took": time.monotonic() - start}


def complete(head: Head) -> None:
    """Have a head and two machines."""
    head.nodes = [node for node in head.nodes if node.poll() is None]
    head.wait_nodes(1 + len(head.nodes))
    while len(head.nodes) < 2:
        head.add_node(cpus=2)


def family(head: Head) -> list[psutil.Process]:
    """All processes of the cluster."""
    roots = [child.pid for child in (head.process, *head.nodes) if child is not None]
    found = []
    for each in (process for root in roots for process in tree(root)):
        try:
            found.append(psutil.Process(each.pid))
        except psutil.NoSuchProcess:
            continue
    return found


def named(head: Head, *words: str) -> list[psutil.Process]:
    """Processes of the cluster whose command line has one of the words."""
    found = []
    for process in family(head):
        try:
            line = shlex.join(process.cmdline())
        except psutil.Error:
            continue
        if any(word in line for word in words):
            found.append(process)
    return found


def kill_one(head: Head, victim: str, server: Server, rng: random.Random) -> str:
    """Kill, and bring back what a real cluster would bring back. Says what was killed; empty: nothing was there."""
    if victim == "mlflow":
        server.kill()
        time.sleep(rng.uniform(0, 10))
        server.start()
        return "mlflow server"
    if victim == "head":
        head.kill_head()
        head.start()
        complete(head)
        return "head"
    if victim == "node":
        node = rng.choice(head.nodes)
        for process in tree(node.pid):
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        node.wait()
        complete(head)
        return "machine"
    words = {
        "worker": ("ray::",),
        "actor": ("ray::EngineActor", "ray::RayTrainWorker", "ray::MapWorker", "ray::TrainController"),
        "driver": ("services.cli run",),
    }[victim]
    found = named(head, *words)
    if not found:
        return ""
    chosen = rng.choice(found)
    try:
        line = " ".join(chosen.cmdline())[:60]
        chosen.kill()
    except psutil.NoSuchProcess:
        return ""
    return line


def test_every_part_may_die(
    cluster: Head, mlflow: Server, folder: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    rng = random.Random(SEED)
    sys.stdout.write(f"seed {SEED}, {RUNS} runs, an undisturbed one takes {undisturbed['took']:.0f} s\n")
    took = float(undisturbed["took"])
    for number in range(RUNS):
        victim = VICTIMS[number % len(VICTIMS)]
        store = tmp_path / f"store-{number}"
        moment = rng.uniform(0.05, 0.9) * took
        submit = ["submit", "recipe.yaml", "--store", str(store), "--no-check", "--json", "--address", cluster.address]
        first = subprocess.Popen(
            [sys.executable, "-m", "services.cli", *submit],
            cwd=folder, env=cluster.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        began, killed = time.monotonic(), ""
        while first.poll() is None and not killed:
            if time.monotonic() >= began + moment:
                killed = kill_one(cluster, victim, mlflow, rng)
            time.sleep(0.2)
        _, said = first.communicate(timeout=900)
        if not killed:  # the machine has become faster since
            took = min(took, time.monotonic() - began)
        sys.stdout.write(f"run {number}: {victim} after {moment:.1f} s: {killed or 'had ended'}, {first.returncode}\n")
        sys.stdout.flush()
        if victim in ("worker", "actor", "node", "mlflow"):
            # Ray, the watchdog or the journal makes good for it, or the command says what was lost.
            assert first.returncode in (0, 1), said
        done = cluster.run(*submit, where=folder, timeout=1500)
        assert done.returncode == 0, done.stdout + done.stderr
        same(store, folder / "one", undisturbed)
        nothing_left(cluster, store)
    closed(mlflow)


def same(store: Path, reference: Path, undisturbed: dict[str, Any]) -> None:
    """Keys, rows, lists and losses of a store are those of the reference."""
    there, here = Store(str(store)), Store(str(reference))
    for step in undisturbed["steps"]:
        key = step["key"]
        assert there.done(key) is not None, step["name"]
        mine, theirs = there.local(key), here.local(key)
        for path in theirs.rglob("*.parquet"):
            name = path.relative_to(theirs)
            if step["name"].endswith("list") or name.parts[0] in ("rows", "held", "tokens"):
                assert pq.read_table(mine / name).equals(pq.read_table(path)), (step["name"], name)
    assert final_losses(store) == final_losses(reference)


def nothing_left(head: Head, store: Path) -> None:
    """No engine, worker or driver of an ended run, and no second training."""
    words = ("ray::EngineActor", "EngineCore", "ray::RayTrainWorker", "services.cli run", str(store))
    deadline = time.monotonic() + 60
    while (left := named(head, *words)) and time.monotonic() < deadline:
        time.sleep(1)
    assert not left, [" ".join(process.cmdline()) for process in left]


def closed(server: Server) -> None:
    """Every run of MLflow has ended, each step has one."""
    import mlflow

    client = mlflow.MlflowClient(server.address)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()], max_results=5000)
    assert runs
    assert {run.info.status for run in runs} == {"FINISHED"}
