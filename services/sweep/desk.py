"""Where trials wait for the driver.

A trial runs anywhere in the cluster and asks for one thing at a time; the driver takes what was asked, does it and
answers. The desk between them is an actor that needs no CPU, on the driver's node, since it must live as long as it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Word = Literal["begin", "trained"]


@dataclass(frozen=True)
class Ask:
    """An arm has begun, or has trained; `content` says how that went."""

    number: int
    word: Word
    content: Mapping[str, Any]


class Desk:
    """The driver's side. It can be sent to trials, which only ask."""

    def __init__(self) -> None:
        import asyncio

        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        class Actor:
            def __init__(self) -> None:
                self.asked: asyncio.Queue[Ask] = asyncio.Queue()
                self.open: dict[int, asyncio.Future[Any]] = {}

            async def ask(self, ask: Ask) -> Any:
                # A trial whose process died asks again; nobody waits for its earlier question.
                self.open[ask.number] = asyncio.get_running_loop().create_future()
                await self.asked.put(ask)
                return await self.open[ask.number]

            async def take(self, timeout: float) -> list[Ask]:
                found: list[Ask] = []
                try:
                    found.append(await asyncio.wait_for(self.asked.get(), timeout))
                    while True:
                        found.append(self.asked.get_nowait())
                except (TimeoutError, asyncio.QueueEmpty):
                    return found

            async def answer(self, number: int, reply: Any) -> None:
                waiting = self.open.pop(number, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(reply)

        remote: Any = ray.remote
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        kind = remote(num_cpus=0, max_concurrency=10_000, scheduling_strategy=here)(Actor)
        self._actor: Any = kind.remote()

    def ask(self, number: int, word: Word, **content: Any) -> Any:
        """Ask and wait for the answer."""
        import ray

        return ray.get(self._actor.ask.remote(Ask(number, word, content)))

    def take(self, timeout: float) -> list[Ask]:
        """What was asked meanwhile; waits so many seconds for the first."""
        import ray

        found: list[Ask] = ray.get(self._actor.take.remote(timeout))
        return found

    def answer(self, number: int, reply: Mapping[str, Any]) -> None:
        """Let the arm go on."""
        self._actor.answer.remote(number, dict(reply))

    def close(self) -> None:
        """End the actor."""
        import ray

        ray.kill(self._actor)
