"""The store's promises, on a folder and on S3 (moto's server speaks the protocol)."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from cuvee.errors import UserError
from services import lease as leases
from services.objects import ABSENT, Conflict, open_objects
from services.store import Store, step_key
from tests.buckets import s3

__all__ = ["s3"]


@pytest.fixture(params=["folder", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))
    if request.param == "folder":
        return str(tmp_path / "store")
    return f"{request.getfixturevalue('s3')}/{tmp_path.name}"


def make(store: Store, key: str, text: str, inputs: dict[str, str] | None = None) -> None:
    lease = store.acquire(key)
    assert lease
    folder = store.attempt_folder(lease)
    (folder / "deep").mkdir()
    (folder / "deep" / "file.txt").write_text(text)
    store.publish(lease, folder, info={"rows": 3}, inputs=inputs or {}, seconds=1.0)
    lease.release()


def test_conditional_writes(url: str) -> None:
    objects = open_objects(url)
    assert objects.get("a/b") is None
    version = objects.put("a/b", b"1", version=ABSENT)
    with pytest.raises(Conflict):
        objects.put("a/b", b"2", version=ABSENT)
    newer = objects.put("a/b", b"2", version=version)
    with pytest.raises(Conflict):
        objects.put("a/b", b"3", version=version)
    assert objects.get("a/b") == (b"2", newer)


def test_an_artifact_is_there_after_publish_and_not_before(url: str) -> None:
    store = Store(url)
    key = step_key("load", "1", {"a": 1}, {}, "data", None)
    assert store.done(key) is None
    lease = store.acquire(key)
    assert lease
    folder = store.attempt_folder(lease)
    (folder / "file.txt").write_text("half")
    assert Store(url).done(key) is None
    store.publish(lease, folder, info={"rows": 1}, inputs={}, seconds=0.5)
    lease.release()
    fresh = Store(url)
    assert (fresh.local(key) / "file.txt").read_text() == "half"
    done = fresh.done(key)
    assert done is not None
    assert done.info == {"rows": 1}
    assert done.step == "load"


def test_a_second_attempt_never_replaces_an_artifact(url: str) -> None:
    store = Store(url)
    make(store, "load-1", "first")
    make(store, "load-1", "second")
    assert (Store(url).local("load-1") / "deep" / "file.txt").read_text() == "first"


def test_a_lease_is_exclusive_and_fences(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(url)
    first = store.acquire("train-1")
    assert first
    assert store.acquire("train-1") is None
    assert store.holder("train-1")
    # The owner seems dead: somebody else takes the key, and the first may not publish any more.
    monkeypatch.setattr(leases, "alive", lambda state: False)
    second = store.acquire("train-1")
    assert second
    assert second.fence == first.fence + 1
    folder = store.attempt_folder(first)
    (folder / "x").write_text("late")
    with pytest.raises(leases.LeaseLost):
        store.publish(first, folder, info={}, inputs={}, seconds=0)
    assert store.done("train-1") is None


def test_work_survives_attempts(url: str) -> None:
    store = Store(url)
    (store.work("train-2") / "checkpoint").write_text("step 5")
    (store.work("train-2") / "open.tmp").write_text("half")
    store.save_work("train-2")
    assert (Store(url).work("train-2") / "checkpoint").read_text() == "step 5"
    make(store, "train-2", "done")
    assert not list(Store(url).work("train-2").iterdir())


def test_prune_keeps_what_runs_reach(url: str) -> None:
    store = Store(url)
    make(store, "load-1", "a")
    make(store, "select-1", "b", {"rows": "load-1"})
    make(store, "select-2", "c", {"rows": "load-1"})
    store.save_run("r1", {"keys": ["select-1"]})
    dry = store.prune()
    assert [name for name, _ in dry] == ["artifacts/select-2"]
    assert store.done("select-2")
    store.prune(dry_run=False)
    assert [done.key for done in Store(url).artifacts()] == ["load-1", "select-1"]


def test_find_by_prefix_and_hash(url: str) -> None:
    store = Store(url)
    make(store, "load-abc1", "a")
    make(store, "load-abc2", "b")
    assert store.find("abc1") == "load-abc1"
    with pytest.raises(UserError, match="2 artifacts"):
        store.find("load-abc")


def test_accept_chains_to_the_oldest(url: str) -> None:
    store = Store(url)
    store.accept("train", "1", "2")
    store.accept("train", "2", "3")
    assert store.accepted() == {"train": {"2": "1", "3": "1"}}


def test_key_is_a_function_of_the_question_alone() -> None:
    key = step_key("select", "1", {"a": 1, "b": 2}, {"rows": "load-1"}, "", 3)
    assert key == step_key("select", "1", {"b": 2, "a": 1}, {"rows": "load-1"}, "", 3)
    others = [
        step_key("select", "2", {"a": 1, "b": 2}, {"rows": "load-1"}, "", 3),
        step_key("select", "1", {"a": 1, "b": 3}, {"rows": "load-1"}, "", 3),
        step_key("select", "1", {"a": 1, "b": 2}, {"rows": "load-2"}, "", 3),
        step_key("select", "1", {"a": 1, "b": 2}, {"rows": "load-1"}, "x", 3),
        step_key("select", "1", {"a": 1, "b": 2}, {"rows": "load-1"}, "", 4),
    ]
    assert len({key, *others}) == 6


def _hold(url: str, ready: str) -> None:
    store = Store(url)
    assert store.acquire("train-9")
    Path(ready).write_text("x")
    time.sleep(60)


def test_a_killed_owner_on_this_host_is_replaced_at_once(tmp_path: Path) -> None:
    url, ready = str(tmp_path / "store"), tmp_path / "ready"
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(url, str(ready)))
    process.start()
    while not ready.exists():
        time.sleep(0.05)
    store = Store(url)
    assert store.acquire("train-9") is None
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    lease = store.acquire("train-9")
    assert lease
    assert lease.fence == 2


def test_names_stay_inside_the_store(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a name"):
        open_objects(str(tmp_path)).get("../secret")


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Store(str(blocked / "store")).acquire("load-1")


def test_records_are_plain_json(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    make(store, "load-1", "a")
    record = json.loads((tmp_path / "artifacts" / "load-1" / "_DONE.json").read_text())
    assert record["attempt"] == "a1"
    assert record["info"] == {"rows": 3}
