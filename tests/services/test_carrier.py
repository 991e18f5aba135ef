"""Files between machines that share a bucket and no disk; a machine is a process with a cache of its own here."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.carrier import StoreCarrier, carrier, forget
from services.store import Store
from tests.buckets import s3

__all__ = ["s3"]


def publish(store: Store, key: str) -> Path:
    lease = store.acquire(key)
    assert lease
    folder = store.attempt_folder(lease)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    store.publish(lease, folder, info={}, inputs={}, seconds=0)
    lease.release()
    return store.local(key)


def test_artifacts_go_out_and_results_come_back(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "head"))
    store = Store(f"{s3}/{tmp_path.name}")
    model = publish(store, "model-1") / "model"
    out, metrics = store.scratch / "attempts" / "train-1.1", store.work("train-1") / "metrics.jsonl"
    out.mkdir(parents=True)
    sent = carrier(store)
    assert isinstance(sent, StoreCarrier)
    assert not sent.shared

    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "worker"))
    there = sent.here(model)
    assert there.is_relative_to(tmp_path / "worker")
    assert (there / "config.json").read_text() == "{}"
    assert sent.here(Path("/models/large")) == Path("/models/large")
    made = tmp_path / "worker" / "made"
    (made / "model").mkdir(parents=True)
    (made / "model" / "weights").write_text("w")
    (made / "lines").write_text("1\n")
    sent.send(made / "lines", metrics)
    sent.send(made, out)

    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "head"))
    sent.fetch(metrics)
    assert metrics.read_text() == "1\n"
    sent.fetch(out)
    assert (out / "model" / "weights").read_text() == "w"
    (made / "lines").write_text("1\n2\n")
    sent.send(made / "lines", metrics)
    sent.fetch(metrics, tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere").read_text() == "1\n2\n", "what was sent last"
    for folder in (out, metrics.parent):
        forget(store, folder)
    assert store.objects.names("carried") == []


def test_a_folder_is_shared(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    found = carrier(store)
    assert found.shared
    assert found.here(tmp_path / "x") == tmp_path / "x"
    found.fetch(tmp_path / "x")
    forget(store, tmp_path / "x")


def test_what_was_never_sent_is_not_there(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path))
    store = Store(f"{s3}/{tmp_path.name}")
    target = store.work("train-2") / "metrics.jsonl"
    carrier(store).fetch(target)
    assert not target.exists()
    with pytest.raises(ValueError, match="is not below"):
        carrier(store).send(tmp_path, Path("/elsewhere"))
