"""SIGKILL of a worker, of the driver, of the Ray node, at random steps: the weights are those of an undisturbed run."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.training.conftest import CONFIG, Fit, losses_of
from tests.training.plain import Data, make_data, weights_of
from training.sft import TrainResult

pytestmark = pytest.mark.kill

STEPS = 150
KILL = CONFIG.model_copy(update={"checkpoint_every": 15})
SCRIPT = """
import sys
from pathlib import Path
import ray
from training.objective import Objective
from training.sft import Execution, TrainConfig, train
model, tokens, plan, out, work, config = sys.argv[1:]
ray.init(address="local", num_cpus=2, log_to_driver=False, object_store_memory=500_000_000)
train(model=Path(model), plan=Path(plan), tokens=[Path(tokens)], objective=Objective(),
      config=TrainConfig.model_validate_json(config), execution=Execution(micro_batch=8), seed=0,
      out=Path(out), work=Path(work), stage="only")
"""


@pytest.fixture(scope="module")
def long_data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return make_data(tmp_path_factory.mktemp("long"), rows=80, epochs=15)


@pytest.fixture(scope="module")
def undisturbed(fit: Fit, long_data: Data) -> TrainResult:
    return fit(KILL.model_copy(update={"checkpoint_every": None}), plan=long_data.plan, tokens=[long_data.folder])


@pytest.mark.parametrize("victim", ["worker", "driver", "node"])
def test_a_kill_costs_time_and_nothing_else(
    fit: Fit, undisturbed: TrainResult, long_data: Data, tiny_model: Path, tmp_path: Path, victim: str
) -> None:
    at = random.Random(victim).randrange(20, 120)
    words = [tiny_model, long_data.folder, long_data.plan, tmp_path / "out", tmp_path / "work", KILL.model_dump_json()]
    # In a group of its own, so that what a dead driver leaves behind can be ended, and nothing else.
    driver = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, words)], cwd=Path(__file__).parents[2], start_new_session=True
    )
    family = []
    try:
        wait_for_step(tmp_path / "work" / "metrics.jsonl", at, driver)
        family = psutil.Process(driver.pid).children(recursive=True)
        chosen = {
            "worker": [p for p in family if "RayTrainWorker" in " ".join(p.cmdline())],
            "driver": [psutil.Process(driver.pid)],
            "node": [p for p in family if p.name() == "raylet"],
        }[victim]
        assert len(chosen) == 1
        chosen[0].kill()
        driver.wait(timeout=300)
    finally:
        for process in family:
            if process.is_running():
                process.kill()
        if driver.poll() is None:
            driver.kill()
    assert victim != "worker" or driver.returncode == 0, "the run goes on by itself"
    assert victim != "driver" or driver.returncode != 0
    if driver.returncode == 0:
        # Also after the loss of the node, when the last steps were done before the workers noticed.
        found = weights_of(tmp_path / "out" / "model")
    else:
        again = fit(KILL, plan=long_data.plan, tokens=[long_data.folder], work=tmp_path / "work")
        assert 15 <= again.summary["resumed_at"] <= at + 45
        assert losses_of(again) == losses_of(undisturbed)
        found = weights_of(again.model)
    expected = weights_of(undisturbed.model)
    assert all((found[name] == expected[name]).all() for name in expected)


def wait_for_step(metrics: Path, step: int, driver: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if metrics.exists() and metrics.read_text().count("\n") > step:
            return
        assert driver.poll() is None, "the run ended before it was disturbed"
        time.sleep(0.02)
    raise AssertionError("the run did not get there")
