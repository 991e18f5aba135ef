"""The flow of requests through engines, on actors that answer, die or hang at will."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cuvee.errors import Unavailable
from cuvee.protocols import Decoding, Request
from services import actors, inference
from services.engine import EngineOptions, Pulse
from services.inference import Engine, engine

pytestmark = pytest.mark.usefixtures("ray_session")

GREEDY = Decoding(max_new_tokens=12)


class Flaky:
    """Answers in order of arrival; says, dies or hangs by the text of a request."""

    def __init__(self) -> None:
        self.steps = 0

    async def generate(self, requests: list[Request], decoding: Decoding) -> list[Any]:
        import asyncio

        from cuvee.protocols import Completion

        for request in requests:
            if request.text == "die" or (request.text == "die once" and not Path(request.id).exists()):
                Path(request.id).touch()
                os._exit(1)
            if request.text == "hang":
                await asyncio.sleep(600)
            if request.text == "slow":
                for _ in range(10):
                    await asyncio.sleep(0.5)
                    self.steps += 1
        return [Completion(r.id, r.draw, "said", "stop") for r in requests]

    async def pulse(self) -> Pulse:
        return Pulse(self.steps, 1.0)


class FlakyPool:
    size, gpus = 2, 0

    def __init__(self, engine: Engine) -> None:
        self.actors: dict[int, Any] = {}

    def actor(self, index: int) -> Any:
        import ray

        if index not in self.actors:
            self.actors[index] = ray.remote(Flaky).options(num_cpus=0.1, max_concurrency=100).remote()
            ray.get(self.actors[index].pulse.remote())
        return self.actors[index]

    def replace(self, index: int) -> None:
        import ray

        ray.kill(self.actors.pop(index))


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Engine:
    monkeypatch.setattr(inference, "Pool", FlakyPool)
    return engine(tmp_path, EngineOptions(stall=3, restarts=2, batch=16))


def flow(engine: Engine, *requests: Request) -> dict[str, str]:
    answers = list(engine.generate(requests, GREEDY))
    assert sorted(a.id for a in answers) == sorted(r.id for r in requests)
    return {a.id: a.error or a.text for a in answers}


def plain(count: int) -> list[Request]:
    return [Request(f"p{i}", text="plain") for i in range(count)]


def test_requests_survive_a_death(flaky: Engine, tmp_path: Path) -> None:
    once = str(tmp_path / "died")
    assert set(flow(flaky, *plain(50), Request(once, text="die once")).values()) == {"said"}


def test_a_request_that_kills_twice_fails_with_the_reason(flaky: Engine, tmp_path: Path) -> None:
    found = flow(flaky, *plain(200), Request(str(tmp_path / "x"), text="die"))
    assert "died twice" in found[str(tmp_path / "x")]
    assert list(found.values()).count("said") >= 201 - 2 * 2 * 16  # what was in flight with it


def test_deaths_without_end_are_an_error(flaky: Engine, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="died 3 times"):
        flow(flaky, *(Request(str(tmp_path / str(i)), text="die") for i in range(64)))


def test_an_engine_without_steps_is_replaced_and_a_slow_one_is_not(flaky: Engine) -> None:
    assert flow(flaky, Request("slow", text="slow")) == {"slow": "said"}
    found = flow(flaky, Request("hang", text="hang"), *plain(20))
    assert "no step for" in found["hang"]


def test_a_stream_is_not_read_ahead_of_its_window(flaky: Engine) -> None:
    taken = 0

    def stream() -> Iterator[Request]:
        nonlocal taken
        for request in plain(5000):
            taken += 1
            yield request

    answers = flaky.generate(stream(), GREEDY)
    next(answers)
    assert taken <= 2 * 2 * 16 + inference.CHUNK
    answers.close()


OTHER_RAY = "import ray, sys; ray.init(address='local', num_cpus=0); print('up', flush=True); sys.stdin.read()"


@pytest.mark.kill
def test_a_hanging_actor_is_found_although_another_ray_runs_on_the_machine() -> None:
    import ray

    class Hanging:
        def pid(self) -> int:
            return os.getpid()

        def ready(self) -> None:
            time.sleep(600)

    actor = ray.remote(Hanging).options(num_cpus=0.1).remote()
    pid = ray.get(actor.pid.remote())
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER_RAY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert "up" in other.stdout.readline()
        node, process = actors._whereabouts(actor)
        assert node == ray.get_runtime_context().get_node_id()
        assert process is not None
        assert process.pid == pid
    finally:
        other.communicate()
        ray.kill(actor)
