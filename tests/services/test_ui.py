"""MLflow's pages: on this machine alone, and gone when the command ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from cuvee.errors import UserError
from services.commands.looking import ui
from services.processes import tree
from services.tracking import Tracker, default_uri
from services.ui import address, is_loopback, server


def test_what_is_this_machine_alone() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "head.local")] == [False] * 4
    assert (address("127.0.0.1", 1), address("::1", 2)) == ("http://127.0.0.1:1", "http://[::1]:2")


def test_a_host_that_others_reach_must_be_allowed(tmp_path: Path) -> None:
    found = CliRunner().invoke(ui, ["--host", "0.0.0.0", "--store", str(tmp_path)])
    assert isinstance(found.exception, UserError)
    assert "--allow-remote" in str(found.exception)


def test_a_store_without_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    found = CliRunner().invoke(ui, ["--store", str(tmp_path)])
    assert "no run has been tracked" in str(found.exception)
    assert not (tmp_path / "mlflow.db").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    assert "http://tracker:5000" in CliRunner().invoke(ui, ["--store", str(tmp_path)]).output


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match="--port"), server("sqlite:///x.db", tmp_path, port=port):
            pass


@pytest.mark.slow
def test_the_pages_are_there_until_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with Tracker(default_uri(tmp_path), tmp_path, "cuvee") as tracker:
        tracker.finish(tracker.recipe_run("quick", "0" * 32))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "services.cli", "ui", "--store", str(tmp_path), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"MLflow  http://127.0.0.1:{port}  (Ctrl-C ends it)\n"
        page = httpx.get(f"http://127.0.0.1:{port}/", timeout=60)
        assert (page.status_code, "<title>MLflow</title>" in page.text) == (200, True)
        query = {"experiment_ids": ["1"], "filter": "attributes.run_name = 'quick'"}
        runs = httpx.post(f"http://127.0.0.1:{port}/api/2.0/mlflow/runs/search", json=query, timeout=60).json()["runs"]
        assert len(runs) == 1
        started = tree(process.pid)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 0
        deadline = time.monotonic() + 10
        while any(each.alive() for each in started) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(each.alive() for each in started)
    finally:
        process.kill()
        process.wait()
