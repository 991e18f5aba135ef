"""Tokens/s through the pipeline, against vLLM's offline `LLM.generate` and `transformers.generate`.

    python benchmarks/generation.py --prompts 64 --tokens 64

The same prompts, the same limit on new tokens, the same type, greedy; what counts is tokens that were really made, so
that an early end helps nobody. Each side runs in a process of its own; its start is given apart. Run it by hand on an
idle machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIDES = ("pipeline", "vllm", "transformers")
MARK = "measured "


def questions(count: int) -> list[str]:
    return [f"Tell me a story of {i + 3} sailors and {2 * i + 5} islands." for i in range(count)]


def pipeline(model: Path, count: int, tokens: int, dtype: str) -> tuple[float, float]:
    """Seconds to start, and tokens a second, through `services.inference`. The start includes Ray's."""
    from cuvee.protocols import Decoding, Request
    from services.cluster import connect
    from services.inference import EngineOptions, engine

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, connect(log_file=Path(folder) / "log"):
        ours = engine(model, EngineOptions(max_len=1024, dtype=dtype, batch=64))  # type: ignore[arg-type]
        ours.start()
        requests = [Request(str(i), ({"role": "user", "content": text},)) for i, text in enumerate(questions(count))]
        list(ours.generate(requests[:2], Decoding(max_new_tokens=4)))
        started = time.perf_counter()
        made = sum(answer.tokens for answer in ours.generate(requests, Decoding(max_new_tokens=tokens)))
        spent = time.perf_counter() - started
    return started - began, made / spent


def vllm(model: Path, count: int, tokens: int, dtype: str) -> tuple[float, float]:
    """The same with vLLM's own offline class, as its documentation has it."""
    from vllm import LLM, SamplingParams

    began = time.perf_counter()
    settings: dict[str, Any] = {"enforce_eager": True, "max_model_len": 1024, "max_num_seqs": 64}
    llm = LLM(str(model), dtype=dtype, kv_cache_memory_bytes=2**30, **settings)
    prompts = prompt_ids(model, count)
    given = [{"prompt_token_ids": ids} for ids in prompts]
    llm.generate(given[:2], SamplingParams(max_tokens=4), use_tqdm=False)
    started = time.perf_counter()
    outputs = llm.generate(given, SamplingParams(max_tokens=tokens, temperature=0), use_tqdm=False)
    made = sum(len(output.outputs[0].token_ids) for output in outputs)
    return started - began, made / (time.perf_counter() - started)


def transformers(model: Path, count: int, tokens: int, dtype: str) -> tuple[float, float]:
    """The same with transformers, all prompts in one batch, padded on the left."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    began = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
    batch = tokenizer.pad({"input_ids": prompt_ids(model, count)}, return_tensors="pt")
    started = time.perf_counter()
    with torch.inference_mode():
        out = loaded.generate(**batch, max_new_tokens=tokens, do_sample=False)
    new = out[:, batch["input_ids"].shape[1] :]
    ended = (new == tokenizer.eos_token_id).int()
    made = int((ended.cumsum(1) - ended == 0).sum())
    return started - began, made / (time.perf_counter() - started)


def prompt_ids(model: Path, count: int) -> list[list[int]]:
    from cuvee.chat import Chat

    chat = Chat.load(model)
    return [chat.prompt_ids([{"role": "user", "content": text}]).tolist() for text in questions(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    given = parser.parse_args()

    from services.cluster import quiet_environment
    from services.models import ModelSpec, materialise

    quiet_environment(offline=True)
    if given.side:
        run: Callable[..., tuple[float, float]] = globals()[given.side]
        print(MARK + json.dumps(run(Path(given.model), given.prompts, given.tokens, given.dtype)), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = materialise(ModelSpec(id=given.model), Path(folder) / "model")
        print(f"{given.prompts} prompts, {given.tokens} new tokens each, {given.dtype}")
        print(f"{'side':14} {'start s':>8} {'tokens/s':>9}")
        for side in SIDES:
            command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--model", str(model)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{side} failed:\n{done.stderr[-2000:]}")
            found = next(line for line in done.stdout.splitlines() if line.startswith(MARK))  # vLLM talks too
            start, rate = json.loads(found.removeprefix(MARK))
            print(f"{side:14} {start:8.1f} {rate:9.1f}", flush=True)


if __name__ == "__main__":
    main()
