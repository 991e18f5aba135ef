"""Tokens/s through the pipeline, against vLLM's offline `LLM.generate` and `transformers.generate`.

    python benchmarks/generation.py

64 prompts, at most 64 new tokens each, the same type, greedy; what counts is tokens that were really made, so that an
early end helps nobody. Each side runs in a process of its own, and its start is given apart, Ray's included. By default
vLLM keeps a core for the engine's own process; `vllm, our threads` gives it the threads and the single process of our
actors and is the line that shows what the pipeline itself costs. Run it by hand on an idle machine.
"""

from __future__ import annotations

import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from side_by_side import clocks, compare, finish, machine, since

PROMPTS, TOKENS, DTYPE, LENGTH = 64, 64, "float32", 1024


def questions() -> list[str]:
    return [f"Tell me a story of {i + 3} sailors and {2 * i + 5} islands." for i in range(PROMPTS)]


def model(folder: str) -> Path:
    from services.models import ModelSpec, materialise

    return materialise(ModelSpec(id="smollm2-135m-instruct"), Path(folder) / "model")


def prompt_ids(model: Path) -> list[list[int]]:
    from cuvee.chat import Chat

    chat = Chat.load(model)
    return [chat.prompt_ids([{"role": "user", "content": text}]).tolist() for text in questions()]


def pipeline() -> None:
    """Through `services.inference`, as a step has it: a named actor of vLLM's engine."""
    from cuvee.protocols import Decoding, Request
    from services.cluster import connect
    from services.inference import EngineOptions, engine

    with tempfile.TemporaryDirectory() as folder:
        path = model(folder)
        began = time.perf_counter()
        with connect(log_file=Path(folder) / "log"):
            ours = engine(path, EngineOptions(max_len=LENGTH, dtype=DTYPE, batch=PROMPTS))
            ours.start()
            requests = [Request(str(i), ({"role": "user", "content": text},)) for i, text in enumerate(questions())]
            list(ours.generate(requests[:2], Decoding(max_new_tokens=4)))
            begin, start = clocks(), time.perf_counter() - began
            made = sum(answer.tokens for answer in ours.generate(requests, Decoding(max_new_tokens=TOKENS)))
            took = since(begin)
    finish(**took, start=start, tokens=made)


def vllm(threads: bool) -> None:
    """With vLLM's own offline class, as its documentation has it."""
    from services.environment import quiet_environment

    quiet_environment(offline=True)
    if threads:
        os.environ |= {"OMP_NUM_THREADS": "2", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    from vllm import LLM, SamplingParams

    with tempfile.TemporaryDirectory() as folder:
        path = model(folder)
        began = time.perf_counter()
        settings: dict[str, Any] = {"enforce_eager": True, "max_model_len": LENGTH, "max_num_seqs": PROMPTS}
        llm = LLM(str(path), dtype=DTYPE, kv_cache_memory_bytes=2**30, **settings)
        given = [{"prompt_token_ids": ids} for ids in prompt_ids(path)]
        llm.generate(given[:2], SamplingParams(max_tokens=4), use_tqdm=False)
        begin, start = clocks(), time.perf_counter() - began
        outputs = llm.generate(given, SamplingParams(max_tokens=TOKENS, temperature=0), use_tqdm=False)
        took = since(begin)
    finish(**took, start=start, tokens=sum(len(output.outputs[0].token_ids) for output in outputs))


def transformers() -> None:
    """With transformers, all prompts in one batch, padded on the left."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        path = model(folder)
        began = time.perf_counter()
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
        loaded = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, DTYPE)).eval()
        batch = tokenizer.pad({"input_ids": prompt_ids(path)}, return_tensors="pt")
        begin, start = clocks(), time.perf_counter() - began
        with torch.inference_mode():
            out = loaded.generate(**batch, max_new_tokens=TOKENS, do_sample=False)
        took = since(begin)
        new = out[:, batch["input_ids"].shape[1] :]
        ended = (new == tokenizer.eos_token_id).int()
    finish(**took, start=start, tokens=int((ended.cumsum(1) - ended == 0).sum()))


if __name__ == "__main__":
    compare(
        __file__,
        {
            "pipeline": pipeline,
            "vllm, our threads": partial(vllm, True),
            "vllm, its defaults": partial(vllm, False),
            "transformers": transformers,
        },
        lambda rounds: [
            machine("vllm", "ray", "transformers", "torch"),
            f"{PROMPTS} prompts, at most {TOKENS} new tokens each, {DTYPE}, greedy; best of {rounds} rounds.",
        ],
        lambda r: {"start s": r["start"], "tokens": r["tokens"], "tokens/s": r["tokens"] / r["seconds"]},
        rounds=2,
    )
