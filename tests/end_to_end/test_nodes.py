"""Several Ray nodes on this machine: each piece runs across them, and its result is that of one node."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cuvee import rows
from selection.vectors import Vectors
from tests.end_to_end.miniature import command, final_losses, write_recipe
from tests.heads import Head, running

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3000)]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head and two machines, with two CPUs each."""
    with running(cpus=2) as found:
        for _ in range(2):
            found.add_node(cpus=2)
        yield found


SPREAD = """
import json, sys
from pathlib import Path
import numpy as np, pyarrow as pa, ray
from cuvee.rng import stream
from selection import assign, embedding
from selection.clustering import ClusterConfig, cluster
from selection.embedding import EmbedConfig, embed
from selection.vectors import CHUNK, Vectors, write_vectors
from cuvee import rows

out, model = Path(sys.argv[2]), Path(sys.argv[3])
ray.init(sys.argv[1], log_to_driver=False)
n = 3 * assign.GROUP + CHUNK + 17
array = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
write_vectors(out / "v", iter([([f"{i:08d}" for i in range(n)], array)]), dim=4)
vectors = Vectors.open(out / "v")
config = ClusterConfig(iterations=3, tolerance=0)
here = cluster(vectors, 16, rng=stream(0, "c"), config=config)
there = cluster(vectors, 16, rng=stream(0, "c"), config=config, workers=assign.Workers(4, {"num_cpus": 1}))
same = all(np.array_equal(getattr(here, f), getattr(there, f)) for f in ("assignment", "distance", "centres"))

embedding.SHARD = 8
table = rows.make_table("t", [
    {"messages": [
        {"role": "user", "content": f"How many are {i} and {i + 1}?"}, {"role": "assistant", "content": str(i)}
    ]}
    for i in range(48)
])
options = EmbedConfig(encoder="x")
for name, actors in (("one", 1), ("three", 3)):
    embed(table, model, options, out=out / name, resources={"actors": actors, "options": {"num_cpus": 1}})
from cuvee.protocols import Case
from evaluation import judges
from services.judging import Spread
cases = [Case(str(i), "", f"It is {i + i % 2}.", (f"#### {i}",)) for i in range(200)]
cases += [Case(f"p{i}", "", f"def f(): return {i}", tests=(f"assert f() == {i - i % 2}",)) for i in range(200)]
tiers = judges.JudgeConfig.parse({"tiers": ["numeric", "code"]})
judge = judges.build(tiers, spread=lambda judge: Spread(judge, {"num_cpus": 1}))
same_verdicts = judge(cases) == judges.build(tiers)(cases)
from ray.util.state import list_actors, list_tasks
judging = {t.node_id for t in list_tasks(detail=True, limit=10000) if t.name == "judged"}
tasks = {t.node_id for t in list_tasks(detail=True, limit=10000) if t.name == "assign_group"}
actors = {a.node_id for a in list_actors(detail=True, limit=10000) if "MapWorker" in a.class_name}
print(json.dumps({"same": same, "tasks": len(tasks), "actors": len(actors), "judging": len(judging),
    "same_verdicts": same_verdicts}))
"""


def test_kmeans_and_embedding_are_spread_and_the_same(head: Head, tiny_model: Path, tmp_path: Path) -> None:
    said = json.loads(head.script(SPREAD, head.gcs, str(tmp_path), str(tiny_model), timeout=900).splitlines()[-1])
    assert said["same"], "k-means has the same bits on any number of machines"
    assert said["tasks"] > 1
    assert said["actors"] > 1
    assert said["same_verdicts"]
    assert said["judging"] > 1
    one, three = Vectors.open(tmp_path / "one"), Vectors.open(tmp_path / "three")
    assert one.ids.to_pylist() == three.ids.to_pylist()
    np.testing.assert_allclose(one.load(), three.load(), atol=1e-6)


def artifacts(found: dict[str, Any]) -> dict[str, Path]:
    return {step["name"]: Path(step["path"]) for step in found["steps"]}


def test_a_whole_run_across_nodes_is_that_of_one(head: Head, tiny_model: Path, tmp_path: Path) -> None:
    """Two training workers that cannot be on one machine, an engine a machine: same keys, rows, plan and losses."""
    recipe = write_recipe(tmp_path, tiny_model)
    settings = ["--set", "execution.workers=2"]
    wide = ["--set", "execution.cpus_per_worker=1.5", "--json", "--address", head.gcs]
    narrow = ["--set", "execution.cpus_per_worker=0.5", "--json"]
    stores = {name: tmp_path / name for name in ("one", "many")}
    alone = command("run", str(recipe), "--store", str(stores["one"]), *settings, *narrow, timeout=1400)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    there = head.run("run", str(recipe), "--store", str(stores["many"]), *settings, *wide, timeout=1400)
    assert there.returncode == 0, there.stdout + there.stderr
    one, many = json.loads(alone.stdout), json.loads(there.stdout)
    assert [step["key"] for step in one["steps"]] == [step["key"] for step in many["steps"]]
    for (name, left), right in zip(artifacts(one).items(), artifacts(many).values(), strict=True):
        if (left / "rows").exists():
            assert rows.read(left / "rows").equals(rows.read(right / "rows")), name
        for plan in left.glob("*.parquet"):
            if name.endswith("list"):
                assert pq.read_table(plan).equals(pq.read_table(right / plan.name)), name
    losses = {name: final_losses(store) for name, store in stores.items()}
    assert losses["one"].keys() == losses["many"].keys()
    for key, found in losses["many"].items():
        assert found == pytest.approx(losses["one"][key], abs=1e-6)
    script = (
        "import sys, json, ray\nfrom ray.util.state import list_actors\nray.init(sys.argv[1], log_to_driver=False)\n"
        "print(json.dumps([[a.class_name, a.node_id, a.state] for a in list_actors(detail=True, limit=10000)]))"
    )
    actors = json.loads(head.script(script, head.gcs).splitlines()[-1])
    for kind, nodes in (("RayTrainWorker", 2), ("EngineActor", 3)):
        assert len({node for name, node, _ in actors if kind in name}) >= nodes, kind
    assert not [a for a in actors if a[2] == "ALIVE" and a[0] in ("RayTrainWorker", "EngineActor")]
