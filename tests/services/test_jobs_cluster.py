"""Jobs on a real Ray head with token authentication, started and ended here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.store import Store
from tests.heads import ROOT, Head, free_port, running

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
RECIPE = """
version: 1
data:
  pool: {from: pool.jsonl, do: [dedup, {embed: {encoder: "builtin:all-minilm-l6-v2"}}]}
evaluate: {at: []}
"""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with running() as found:
        yield found


def test_a_recipe_runs_there_and_a_second_submission_continues(head: Head, tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"What is {i} + {i}?"}, {"role": "assistant", "content": str(2 * i)}]}
        for i in range(8)
    ]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "small.yaml").write_text(RECIPE)
    store = tmp_path / "store"
    first = head.cuvee("submit", "small.yaml", "--store", str(store), where=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "sends 2 files" in first.stderr
    assert "pool · embed" in first.stdout
    (name,) = Store(str(store)).runs()
    assert Store(str(store)).runs()[name]["status"] == "finished"

    second = head.cuvee("submit", "small.yaml", "--store", str(store), "--json", where=tmp_path)
    assert second.returncode == 0, second.stdout + second.stderr
    said = json.loads(second.stdout)
    assert (said["status"], said["exit_code"]) == ("SUCCEEDED", 0)
    base = f"cuvee-{name.rpartition('-')[2]}"
    assert said["job"] == f"{base}-2"
    listed = json.loads(head.cuvee("jobs", "--json", where=tmp_path).stdout)["jobs"]
    assert [job["job"] for job in listed] == [f"{base}-1", f"{base}-2"]
    assert json.loads(head.cuvee("status", base, "--json", where=tmp_path).stdout)["job"] == f"{base}-2"
    assert "pool · embed" in head.cuvee("logs", f"{base}-1", where=tmp_path).stdout


def test_the_status_of_the_command_comes_back(head: Head, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(RECIPE.replace("pool.jsonl", "/nowhere/pool.jsonl"))
    found = head.cuvee("submit", "bad.yaml", "--store", str(tmp_path / "store"), "--no-check", where=tmp_path)
    assert found.returncode == 2
    assert "needs /nowhere/pool.jsonl on the cluster" in found.stderr
    assert "no such file" in found.stdout


def test_the_cluster_is_looked_at_from_inside_first(head: Head, tmp_path: Path) -> None:
    """All that is wrong is said at once, and nothing was started."""
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "pool.jsonl").write_text(json.dumps(row) + "\n")
    recipe = RECIPE + "models: {m: {id: /nowhere/model}}\nstages: {sft: {mix: {pool: all}}}\ntrain: {model: m}\n"
    recipe += f"tracking: http://127.0.0.1:{free_port()}\nexecution: {{resources: {{train: {{gpus: 1}}}}}}\n"
    (tmp_path / "bad.yaml").write_text(recipe)
    before = head.cuvee("jobs", where=tmp_path).stdout
    found = head.cuvee("submit", "bad.yaml", "--store", "/proc/store", where=tmp_path)
    assert found.returncode == 2, found.stdout + found.stderr
    assert "cannot use the store /proc/store" in found.stderr
    assert "the tracking server does not answer" in found.stderr
    found = head.cuvee("submit", "bad.yaml", "--store", str(tmp_path / "store"), where=tmp_path)
    assert found.returncode == 2, found.stdout + found.stderr
    for text in ("/nowhere/model", "1 GPU fit no machine of this cluster", "tracking server"):
        assert text in found.stderr
    assert head.cuvee("jobs", where=tmp_path).stdout == before


def test_a_cluster_with_other_versions_is_refused(head: Head, tmp_path: Path) -> None:
    """Here in place of there: what this side has is told to be older than it is."""
    script = """
import sys
from pathlib import Path
from services import probe
from services.jobs import Cluster, Order
order = Order("fedcba9876543210", "other", sys.argv[2], "true", Path(sys.argv[3]), [])
Path(sys.argv[3], "r.yaml").write_text("version: 1\\nevaluate: {at: []}\\n")
ours = {**probe.versions(), "ray": "2.59.0", "python": "3.9"}
asked = {"recipe": "r.yaml", "profiles": [], "overrides": [], "store": sys.argv[2], "versions": ours}
print("\\n".join(Cluster(sys.argv[1]).probe(order, asked)))
"""
    (tmp_path / "work").mkdir()
    found = head.script(script, head.address, str(tmp_path / "store"), str(tmp_path / "work"))
    assert "has other versions: python 3." in found
    assert "there and 2.59.0 here" in found


def test_without_the_token_nothing_is_said(head: Head, tmp_path: Path) -> None:
    found = head.cuvee("jobs", where=tmp_path, RAY_AUTH_MODE="disabled")
    assert found.returncode == 2
    assert "token" in found.stderr


def test_a_live_attempt_is_not_started_twice_and_can_be_ended(head: Head, tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from services.jobs import Cluster, Order
cluster = Cluster(sys.argv[1], same_version=True)
order = Order("0123456789abcdef", "sleeper", "/store", "sleep 300", Path(sys.argv[2]), [])
assert cluster.submit(order) == ("cuvee-0123456789ab-1", True)
assert cluster.submit(order) == ("cuvee-0123456789ab-1", False)
stopped = cluster.stop("cuvee-0123456789ab-1")
assert (stopped["status"], stopped["exit_code"]) == ("STOPPED", 130), stopped
assert cluster.submit(order) == ("cuvee-0123456789ab-2", True)
"""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "note.txt").write_text("a job has a folder")
    made = subprocess.run(
        [sys.executable, "-c", script, head.address, str(folder)],
        env={**head.environment, "PYTHONPATH": str(ROOT)},
        timeout=300,
        check=False,
    )
    assert made.returncode == 0
    stopped = head.cuvee("stop", "cuvee-0123456789ab", where=tmp_path)
    assert (stopped.returncode, stopped.stdout) == (0, "cuvee-0123456789ab-2: STOPPED\n")
