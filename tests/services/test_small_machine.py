"""Two CPUs and one job: everything gets its turn, and an engine and a training never share an accelerator."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.plain import make_data

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]

TOGETHER = """
import sys, threading, traceback
from pathlib import Path
from types import SimpleNamespace
from cuvee import rows
from selection import embedding
from selection.embedding import EmbedConfig, embed
from services.capacity import resources
from services.cluster import connect
from services.runtime import Runtime
from services.store import Store
from training.objective import Objective
from training.sft import Execution, TrainConfig, train

out, model, data, plan = map(Path, sys.argv[1:])
embedding.SHARD = 4
done = []
with connect(cpus=2, log_file=out / "log.txt"):
    import ray

    with Runtime(Store(str(out / "store")), log=out / "log.txt") as runtime:
        runtime.ray()
        asked = SimpleNamespace(execution={"execution": {}}, key="train-0")

        @ray.remote(**resources("engine", runtime.capacity).options())
        class Engine:
            def ready(self):
                return True

        engine = Engine.remote()
        assert ray.get(engine.ready.remote(), timeout=120)

        def table(n):
            talk = [{"role": "user", "content": f"q {n}"}, {"role": "assistant", "content": "a"}]
            return {"messages": talk}

        def embedding_job(name):
            made = rows.make_table("t", [table(i) for i in range(24)])
            embed(made, model, EmbedConfig(encoder="x"), out=out / name, resources=runtime.embedding(asked))
            done.append(name)

        def training_job(name):
            where, env = runtime.training(asked)
            train(model=model, plan=plan, tokens=[data], objective=Objective(),
                  config=TrainConfig(global_batch=8, max_len=64, precision="fp32"),
                  execution=Execution.model_validate(where), seed=0, out=out / name, work=out / f"{name}.work",
                  stage="s", env=env)
            done.append(name)

        threads = [threading.Thread(target=job, args=(name,)) for job, name in (
            (training_job, "train"), (embedding_job, "embed.1"), (embedding_job, "embed.2"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
print(sorted(done))
"""

APART = """
import json, sys
import ray
from services.capacity import Capacity, resources

ray.init(address="local", num_cpus=2, num_gpus=1, log_to_driver=False, object_store_memory=100_000_000)
have = Capacity.of_ray()

class Holder:
    def gpu(self):
        return ray.get_gpu_ids()

engine = ray.remote(**resources("engine", have).options())(Holder).remote()
first = ray.get(engine.gpu.remote(), timeout=120)
trainer = ray.remote(**resources("train", have).options())(Holder).remote()
waiting = trainer.gpu.remote()
ready, _ = ray.wait([waiting], timeout=5)
before = len(ready)
ray.kill(engine)
print(json.dumps({"engine": first, "beside": before, "then": ray.get(waiting, timeout=120)}))
"""


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=800, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-4000:]
    return done.stdout.splitlines()[-1]


def test_ray_data_and_ray_train_in_one_job_get_on(tiny_model: Path, tmp_path: Path) -> None:
    """A training, two Ray Data pipelines and an engine at once on two CPUs."""
    data = make_data(tmp_path / "data", rows=16, epochs=1)
    out = tmp_path / "out"
    out.mkdir()
    said = run(TOGETHER, str(out), str(tiny_model), str(data.folder), str(data.plan))
    assert said == "['embed.1', 'embed.2', 'train']"


def test_an_engine_and_a_training_never_share_a_gpu() -> None:
    said = json.loads(run(APART))
    assert said["engine"] == said["then"] == [0], "there is one"
    assert said["beside"] == 0, "the training waits until the engine is gone"
