"""A full disk and a read-only store: a clear error, and nothing that was finished is damaged."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cuvee import rows
from services.store import Store
from tests.end_to_end.miniature import command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROWS = 4000


def mount(folder: Path, options: str, *more: str) -> subprocess.CompletedProcess[str]:
    command = ["mount", *more, "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        done = mount(folder, "size=3m")
    except FileNotFoundError:
        pytest.skip("no `mount` here")
    if done.returncode:
        pytest.skip(f"no right to mount a file system: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Several tables of text that does not compress."""
    rng = random.Random(0)
    with (tmp_path / "pool.jsonl").open("w") as file:
        for i in range(ROWS):
            answer = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz ", k=400))
            talk = [{"role": "user", "content": f"q {i}"}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": talk}) + "\n")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "version: 1\n"
        "data:\n"
        f"  small: {{from: {{path: {tmp_path}/pool.jsonl, limit: 100 rows, name: few}}}}\n"
        f"  pool: {{from: {tmp_path}/pool.jsonl, do: [{{holdout: {{amount: 1000 rows, near: null}}}}, dedup]}}\n"
        "evaluate: {at: []}\n"
    )
    return path


def test_a_full_disk_is_said_and_room_continues(disk: Path, recipe: Path) -> None:
    store = disk / "store"
    full = command("run", str(recipe), "--store", str(store))
    assert full.returncode == 2, full.stdout + full.stderr
    assert "No space left" in full.stderr
    assert "Traceback" not in full.stderr
    kept = {done.key for done in Store(str(store)).artifacts()}
    assert kept, "what was finished before is kept"
    for key in kept:
        assert rows.read(Store(str(store)).local(key) / "rows").num_rows
    assert mount(disk, "remount,size=200m").returncode == 0
    done = command("run", str(recipe), "--store", str(store), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    steps = json.loads(done.stdout)["steps"]
    assert {step["key"] for step in steps if step["status"] == "reused"} == kept
    pruned = command("store", "prune", "--store", str(store))
    assert pruned.returncode == 0


def test_a_read_only_store_is_said_and_can_be_read(disk: Path, recipe: Path) -> None:
    assert mount(disk, "remount,size=200m").returncode == 0
    store = str(disk / "store")
    first = command("run", str(recipe), "--store", store)
    assert first.returncode == 0, first.stdout + first.stderr
    assert mount(disk, "remount,ro").returncode == 0
    again = command("run", str(recipe), "--store", store)
    assert again.returncode == 2
    assert f"the store {store} cannot be written: Read-only file system" in again.stderr
    listed = command("store", "list", "--store", store)
    assert listed.returncode == 0, listed.stderr
    assert "holdout" in listed.stdout
