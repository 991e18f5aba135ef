"""Reward models on the cluster: the classifier of `evaluation.judges.reward` in a Ray actor of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Reward = Callable[[Sequence[tuple[str, str]]], Sequence[float]]
BATCH = 64
"""Pairs in one call of the actor."""


def reward(find: Callable[[], Path], options: Mapping[str, Any]) -> Reward:
    """A function from (prompt, answer) pairs to scores, higher is better. The actor ends with the function.

    `find` brings the model to the actor's machine; `options` are those of the actor.
    """
    import ray

    device = "cuda" if options.get("num_gpus") else "cpu"
    actor: Any = ray.remote(**options)(Classifier).remote(find, device)

    def score(pairs: Sequence[tuple[str, str]]) -> list[float]:
        calls = [actor.score.remote(list(pairs[start : start + BATCH])) for start in range(0, len(pairs), BATCH)]
        return [value for call in calls for value in ray.get(call)]

    return score


class Classifier:
    """Holds the model in its process."""

    def __init__(self, find: Callable[[], Path], device: str) -> None:
        from evaluation.judges.reward import sequence_classifier

        self._reward = sequence_classifier(str(find()), device=device)

    def score(self, pairs: list[tuple[str, str]]) -> list[float]:
        """One score a pair, in order."""
        return list(self._reward(pairs))
