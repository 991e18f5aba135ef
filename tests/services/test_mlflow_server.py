"""The set-up for several users: `mlflow server` over PostgreSQL, started as the documentation says.

PostgreSQL is Debian's package, run as an unprivileged user on a port of its own.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.tracker import Tracker
from tests.heads import free_port
from tests.mlflow_server import Server

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
HASH = "0123abcd"


def programs() -> Path | None:
    """The folder of the newest PostgreSQL."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    which = shutil.which("initdb")
    return found[-1].parent if found else Path(which).parent if which else None


def unprivileged() -> dict[str, Any]:
    """PostgreSQL refuses to run as root: keywords for subprocess that make it somebody else."""
    if os.getuid():
        return {}
    for name in ("postgres", "nobody"):
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}
    pytest.skip("running as root, and there is no unprivileged user")


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The address of an empty database `mlflow` with a user and password of that name."""
    where = programs()
    if where is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="no driver for PostgreSQL (pip install psycopg[binary])")
    import tempfile

    other = unprivileged()
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp", ignore_cleanup_errors=True) as folder:
        base, port = Path(folder), free_port()
        (base / "password").write_text("mlflow")
        if other:
            for path in (base, base / "password"):
                os.chown(path, other["user"], other["group"])
        data = base / "data"
        made = subprocess.run(
            [where / "initdb", "-D", data, "-U", "mlflow", "-A", "scram-sha-256", "--pwfile", base / "password", "-N"],
            capture_output=True, text=True, cwd=base, check=False, timeout=300, **other,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        with (base / "log").open("w") as log:
            command = [where / "postgres", "-D", data, "-p", str(port), "-k", folder, "-c", "fsync=off"]
            server = subprocess.Popen(
                [*command, "-c", "listen_addresses=127.0.0.1"], stdout=log, stderr=log, cwd=base, **other
            )
        try:
            wait_for_database(port, base / "log", server)
            yield f"postgresql://mlflow:mlflow@127.0.0.1:{port}/mlflow"
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(60)


def wait_for_database(port: int, log: Path, server: subprocess.Popen[bytes]) -> None:
    import psycopg

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        try:
            connection = psycopg.connect(
                host="127.0.0.1", port=port, user="mlflow", password="mlflow", dbname="postgres"
            )
        except psycopg.OperationalError:
            time.sleep(0.2)
            continue
        connection.autocommit = True
        connection.cursor().execute("create database mlflow")
        connection.close()
        return
    raise AssertionError(log.read_text())


@pytest.fixture
def server(database: str, tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path, database, free_port())
    made.start()
    try:
        yield made
    finally:
        made.kill()


def test_runs_of_two_commands_are_one_tree(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stores, one server: each recipe has one run; a server that is killed in between loses nothing."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    for user in ("ana", "emil"):
        with Tracker(server.address, tmp_path / user) as tracker:
            run = tracker.recipe_run(f"r-{user}", f"{HASH}{user}", params={"seed": 1}, artifacts={"recipe.yaml": "x"})
            arm = tracker.arm_run(run, "main")
            tracker.metric(arm, "loss", 0.5, step=1)
            tracker.finish(arm)
            if user == "ana":
                server.kill()
            tracker.metric(run, "score", 0.25)
            tracker.finish(run)
        assert bool(tracker.problem) == (user == "ana")
        if user == "ana":
            server.start()
    # What the killed server missed goes with the next command on that store.
    with Tracker(server.address, tmp_path / "ana") as tracker:
        tracker.close_orphans()
        tracker.recipe_run("r-ana", f"{HASH}ana")
        tracker.finish(f"{HASH}ana")
    import mlflow

    client = mlflow.MlflowClient(server.address)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert {run.info.status for run in runs} == {"FINISHED"}
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert sorted(run.info.run_name for run in parents) == ["r-ana", "r-emil"]
    assert len(runs) == 4
    for parent in parents:
        assert parent.data.metrics == {"score": 0.25}
        assert [item.path for item in client.list_artifacts(parent.info.run_id)] == ["recipe.yaml"]
        (arm,) = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        assert arm.data.metrics == {"loss": 0.5}
    code = "import sys, mlflow; print(len(mlflow.MlflowClient(sys.argv[1]).search_experiments()))"
    seen = subprocess.run([sys.executable, "-c", code, server.database], capture_output=True, text=True, check=True)
    assert int(seen.stdout.split()[-1]) >= 1, "the runs are in PostgreSQL itself"
