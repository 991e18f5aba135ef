"""Commands killed at random moments: run again, the result is that of an undisturbed run, and nothing stays behind."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.miniature import ROOT, begun, command, final_losses, write_recipe

pytestmark = pytest.mark.kill
KILLS = int(os.environ.get("CUVEE_KILLS", "4"))


def processes(word: str) -> list[psutil.Process]:
    """Ray, engine and training processes whose command line names `word`."""
    found = []
    for process in psutil.process_iter():
        try:
            if word in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, Path]:
    """(recipe, store) of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    recipe = write_recipe(folder, tiny_model)
    done = command("run", str(recipe), "--store", str(folder / "store"), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return recipe, folder / "store"


def finished(store: Path) -> bool:
    """Whether the command was faster than its end."""
    return [json.loads(path.read_text())["status"] for path in (store / "runs").glob("*.json")] == ["finished"]


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_runs_end_in_the_same_result(
    undisturbed: tuple[Path, Path], tmp_path: Path, how: signal.Signals
) -> None:
    recipe, reference = undisturbed
    rng = random.Random(int(how))
    store = tmp_path / "store"
    for _ in range(KILLS):
        process = begun(recipe, store)
        time.sleep(rng.uniform(3, 60))
        process.send_signal(how)
        code = process.wait(120)
        assert code == (-9 if how == signal.SIGKILL else 130) or (code == 0 and finished(store))
    done = command("run", str(recipe), "--store", str(store), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert final_losses(store) == final_losses(reference)
    again = json.loads(command("run", str(recipe), "--store", str(store), "--json").stdout)
    assert {step["status"] for step in again["steps"]} == {"reused"}
    assert again["scores"] == found["scores"]
    assert not processes(str(store))


@pytest.mark.timeout(3000)
def test_a_killed_training_worker_costs_only_the_steps_since_the_last_checkpoint(
    undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe, reference = undisturbed
    store = tmp_path / "store"
    settings = ["--set", "train.checkpoint_every=1", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "services.cli", "run", str(recipe), "--store", str(store), *settings],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    killed = False
    while process.poll() is None and not killed:
        for worker in processes("ray::RayTrainWorker"):
            parents = {parent.pid for parent in worker.parents()}
            lines = list((store / "work").glob("train-*/metrics.jsonl"))
            if process.pid in parents and lines and len(lines[0].read_text().splitlines()) >= 2:
                worker.kill()
                killed = True
        time.sleep(0.1)
    out, _ = process.communicate(timeout=600)
    assert killed
    assert process.returncode == 0, out
    # Checkpoints are not in a key: the trainings are the same artifacts.
    assert final_losses(store) == final_losses(reference)
