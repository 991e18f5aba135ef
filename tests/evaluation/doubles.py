"""Models for tests: a plain transformers scorer, and generators that are functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from cuvee.protocols import Completion, Decoding, Request, Scored, ScoreRequest


class HFScore:
    """`Score` with transformers, one text at a time. Texts longer than the context lose their start."""

    name = "hf"

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder)

    def _ids(self, request: ScoreRequest) -> tuple[list[int], int]:
        if request.context is not None:
            before = self.tokenizer(request.context)["input_ids"]
            whole = self.tokenizer(request.context + (request.continuation or ""))["input_ids"]
            return whole, len(before)
        *prompt, last = request.messages
        text = self.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        before = self.tokenizer(text)["input_ids"]
        return before + self.tokenizer(last["content"])["input_ids"], len(before)

    def __call__(self, requests: Iterable[ScoreRequest]) -> Iterator[Scored]:
        import torch

        room = self.model.config.max_position_embeddings
        for request in requests:
            ids, start = self._ids(request)
            cut = max(0, len(ids) - room)
            ids, start = ids[cut:], start - cut
            with torch.no_grad():
                logits = self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
            targets = torch.tensor(ids[start:])
            rows = logits[start - 1 : -1]
            yield Scored(
                request.id,
                request.draw,
                float(rows.gather(1, targets[:, None]).sum()),
                len(targets),
                greedy=bool((rows.argmax(-1) == targets).all()),
                truncated=cut > 0,
            )


class Says:
    """`Generate` that answers with a function of the request's last text; None is a failure."""

    def __init__(self, answer: Callable[[str], str | None], name: str = "double") -> None:
        self.answer = answer
        self.name = name
        self.requests: list[Request] = []
        self.decodings: list[Decoding] = []

    def __call__(self, requests: Iterable[Request], decoding: Decoding) -> Iterator[Completion]:
        asked = list(requests)
        self.requests += asked
        self.decodings.append(decoding)
        for request in reversed(asked):  # any order is allowed
            text = self.answer(request.text if request.text is not None else request.messages[-1]["content"])
            if text is None:
                yield Completion(request.id, request.draw, "", "failed", error="out of luck")
            else:
                yield Completion(request.id, request.draw, text, "stop", tokens=len(text.split()), logprob=-1.0)
