"""Reward models: sequence classifiers that score a conversation, in a Ray actor of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cuvee.protocols import Message

Reward = Callable[[Sequence[Sequence[Message]]], list[float]]
BATCH = 8
WINDOW = 4
"""Batches in flight."""


def reward(model: Path, chat: Mapping[str, Any], *, cpus: float, gpus: float, env: Mapping[str, str]) -> Reward:
    """A function from conversations to scores (higher is better), on an actor that lives as long as the function."""
    import ray

    options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "runtime_env": {"env_vars": dict(env)}}
    actor: Any = ray.remote(**options)(Classifier).remote(str(model), dict(chat), gpus > 0)

    def score(conversations: Sequence[Sequence[Message]]) -> list[float]:
        found: list[float] = []
        open_calls: list[Any] = []
        for batch in _batches(conversations):
            open_calls.append(actor.score.remote(batch))
            if len(open_calls) >= WINDOW:
                found += ray.get(open_calls.pop(0))
        for call in open_calls:
            found += ray.get(call)
        return found

    return score


def _batches(items: Sequence[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(items), BATCH):
        yield list(items[start : start + BATCH])


class Classifier:
    """One model. The score is the first logit at the last token, as reward heads of the hub have it."""

    def __init__(self, model: str, chat: dict[str, Any], gpu: bool) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification

        from cuvee.chat import Chat

        self._device = "cuda" if gpu else "cpu"
        dtype = torch.bfloat16 if gpu else torch.float32
        loaded = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=dtype)
        self._model = loaded.eval().to(self._device)
        self._chat = Chat.load(model, **chat)
        # Heads find the last token by the padding id, which may be the end token itself; one row needs no padding.
        self._model.config.pad_token_id = None

    def score(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        """One score a conversation, each on its own, so that padding cannot move it."""
        import torch

        found = []
        with torch.inference_mode():
            for conversation in conversations:
                ids = torch.as_tensor(self._chat.render(conversation).ids, dtype=torch.long)[None].to(self._device)
                mask = torch.ones_like(ids)
                found.append(float(self._model(input_ids=ids, attention_mask=mask).logits[0, 0]))
        return found
