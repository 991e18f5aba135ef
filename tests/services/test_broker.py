"""The broker runs each missing step once and keeps what is finished."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from cuvee.errors import CuveeError, UserError
from services.broker import Broker, Outcome
from services.graph import Node, make_node, ordered
from services.runtime import Runtime
from services.steps import base
from services.store import Store


def _add(context: base.Context) -> dict[str, Any]:
    numbers = [int((folder / "n").read_text()) for folder in context.inputs.values()]
    total = int(context.config["n"]) + sum(numbers)
    counter = Path(context.execution["log"])
    with counter.open("a") as file:
        file.write(f"{context.config['n']}\n")
    time.sleep(float(context.execution.get("sleep", 0)))
    (context.out / "n").write_text(str(total))
    return {"rows": total}


def _fail(context: base.Context) -> dict[str, Any]:
    raise UserError("it does not fit")


def _fill(context: base.Context) -> dict[str, Any]:
    raise OSError(28, "No space left on device")


@pytest.fixture(autouse=True)
def steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "STEPS", _steps(base.STEPS))


def _steps(known: dict[str, base.Step]) -> dict[str, base.Step]:
    return known | {
        "add": base.Step("add", "1", _add, ("tests",)),
        "adds": base.Step("adds", "1", _add, ("tests",), draws=True),
        "fail": base.Step("fail", "1", _fail, ("tests",)),
        "fill": base.Step("fill", "1", _fill, ("tests",)),
    }


def chain(log: Path, **execution: Any) -> tuple[Node, Node, Node]:
    run = {"log": str(log), **execution}
    a = make_node("add", "a", {"n": 1}, execution=run)
    b = make_node("add", "b", {"n": 10}, {"x": a}, execution=run)
    c = make_node("add", "c", {"n": 100}, {"x": a, "y": b}, execution=run)
    return a, b, c


def run(store: Store, *targets: Node, keep_going: bool = False) -> list[Outcome]:
    with Runtime(store, log=Path(store.url) / "log") as runtime:
        return Broker(store, runtime, keep_going=keep_going).run(targets)


def test_shared_steps_run_once_and_a_second_run_computes_nothing(tmp_path: Path) -> None:
    store, log = Store(str(tmp_path / "s")), tmp_path / "log"
    _, b, c = chain(log)
    first = run(store, b, c)
    assert [o.status for o in first] == ["computed"] * 3
    assert (store.local(c.key) / "n").read_text() == "112"
    assert log.read_text().split() == ["1", "10", "100"]
    second = run(Store(store.url), b, c)
    assert [o.status for o in second] == ["reused"] * 3
    assert log.read_text().split() == ["1", "10", "100"]


def test_execution_and_labels_are_not_in_the_key_but_seeds_of_drawing_steps_are() -> None:
    one = make_node("add", "a", {"n": 1}, seed=1, execution={"workers": 1})
    two = make_node("add", "b", {"n": 1}, seed=2, execution={"workers": 8})
    assert one.key == two.key
    assert make_node("adds", "a", {"n": 1}, seed=1).key != make_node("adds", "a", {"n": 1}, seed=2).key


def test_an_accepted_version_keeps_the_old_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = make_node("add", "a", {"n": 1})
    monkeypatch.setitem(base.STEPS, "add", base.Step("add", "2", _add, ("tests",)))
    assert make_node("add", "a", {"n": 1}).key != before.key
    assert make_node("add", "a", {"n": 1}, accepted={"add": {"2": "1"}}).key == before.key


def test_a_failure_ends_the_run_and_keeps_what_is_done(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "s"))
    a, _, _ = chain(tmp_path / "log")
    bad = make_node("fail", "bad", {}, {"x": a})
    with pytest.raises(UserError, match="does not fit"):
        run(store, bad)
    assert store.done(a.key)
    assert not store.holder(bad.key)


def test_keep_going_takes_only_what_needs_the_failed_step(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "s"))
    a, b, _ = chain(tmp_path / "log")
    bad = make_node("fail", "bad", {}, {"x": a})
    after = make_node("add", "after", {"n": 5}, {"x": bad}, execution={"log": str(tmp_path / "log")})
    outcomes = {o.node.label: o.status for o in run(store, after, b, keep_going=True)}
    assert outcomes == {"a": "computed", "bad": "failed", "after": "skipped", "b": "computed"}


def test_a_full_disk_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot take more"):
        run(Store(str(tmp_path / "s")), make_node("fill", "fill", {}))


def test_inputs_come_before_their_users(tmp_path: Path) -> None:
    a, b, c = chain(tmp_path / "log")
    assert [n.label for n in ordered([c, b, a])] == ["a", "b", "c"]


def _command(url: str, log: str, sleep: float) -> None:
    base.STEPS.update(_steps(base.STEPS))
    run(Store(url), chain(Path(log), sleep=sleep)[2])


def test_two_commands_compute_each_step_once(tmp_path: Path) -> None:
    url, log = str(tmp_path / "s"), tmp_path / "log"
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=_command, args=(url, str(log), 0.3)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    assert sorted(log.read_text().split()) == ["1", "10", "100"]


def test_a_killed_command_is_continued(tmp_path: Path) -> None:
    url, log = str(tmp_path / "s"), tmp_path / "log"
    process = multiprocessing.get_context("spawn").Process(target=_command, args=(url, str(log), 1.5))
    process.start()
    deadline = time.monotonic() + 30
    while (not log.exists() or len(log.read_text().split()) < 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    a, b, c = chain(log)
    outcomes = {o.node.label: o.status for o in run(Store(url), c)}
    assert outcomes == {"a": "reused", "b": "computed", "c": "computed"}
    assert (Store(url).local(c.key) / "n").read_text() == "112"
    assert a.key != b.key


def test_errors_survive_pickling() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(UserError("bad", remedy="do this")))
    assert isinstance(error, CuveeError)
    assert (error.message, error.remedy, error.exit_code) == ("bad", "do this", 2)
