"""Tokens a second of full fine-tuning, against a plain torch loop and TRL's SFTTrainer; and the data path alone.

    python benchmarks/trainer.py

The built-in model in float32 with AdamW on the processor, batches of 8 rows, and the same rows for all: docstrings of
the standard library behind a short prompt. Tokens are those of the rows, without padding; the first two steps are not
counted. TRL packs too, but without a block mask on this machine, so that its packed rows see each other, and its
batches are three bins. The data path is measured alone (`python benchmarks/trainer.py data`): 20,000 rows of about 300
tokens, from Parquet to tensors on the device, which is the GPU where there is one.
"""

from __future__ import annotations

import argparse
import inspect
import json
import statistics
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import RESULTS, clocks, finish, machine, run, since, table

BATCH, MICRO, LENGTH, WARM = 8, 4, 256, 2
CACHE = Path(tempfile.gettempdir()) / "cuvee-benchmark"


def model() -> Path:
    from services.models import ModelSpec, materialise

    return materialise(ModelSpec(id="builtin:smollm2-135m-instruct"), CACHE / "smollm2")


def rows(steps: int) -> list[dict[str, Any]]:
    """Token rows: a prompt of a few tokens and a docstring, cut at LENGTH."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model())
    texts = []
    for package in ("argparse", "collections", "decimal", "email.message", "http.client", "logging", "statistics"):
        for name, thing in sorted(inspect.getmembers(import_module(package))):
            for member, inner in [("", thing), *(inspect.getmembers(thing) if inspect.isclass(thing) else [])]:
                if (text := inspect.getdoc(inner)) and len(text) > 60:
                    texts.append((f"Describe {package}.{name}.{member}\n", text))
    chosen = np.random.default_rng(0).permutation(len(texts))[: BATCH * steps]
    out = []
    for number, i in enumerate(chosen.tolist()):
        prompt, answer = (tokenizer(text)["input_ids"] for text in texts[i])
        answer = answer[: LENGTH - len(prompt)]
        size = len(prompt) + len(answer)
        out.append({"id": f"{number:032x}", "target": 0, "source": "docs", "ids": prompt + answer})
        out[-1] |= {"roles": [2] * len(prompt) + [3] * len(answer), "turns": [0] * size, "scale": None}
        out[-1] |= {"weight": None, "smoothing": None}
    return out


def write(made: list[dict[str, Any]], folder: Path) -> Path:
    """Tokens and the plan that takes them in order; the plan's path."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from cuvee.tokens import TOKENS_SCHEMA

    (folder / "tokens").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(made, schema=TOKENS_SCHEMA), folder / "tokens" / "part-00000.parquet")
    targets = pa.array([0] * len(made), pa.int32())
    pq.write_table(pa.table({"id": [row["id"] for row in made], "target": targets}), folder / "plan.parquet")
    return folder / "plan.parquet"


def plain(steps: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(2)
    net = AutoModelForCausalLM.from_pretrained(model(), dtype=torch.float32).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-5)
    made = rows(steps)
    seconds, tokens = [], []
    for step in range(steps):
        batch = made[step * BATCH : (step + 1) * BATCH]
        began = time.perf_counter()
        trained = sum(sum(role == 3 for role in row["roles"]) for row in batch)
        for start in range(0, BATCH, MICRO):
            part = batch[start : start + MICRO]
            width = max(len(row["ids"]) for row in part)
            ids = torch.tensor([row["ids"] + [0] * (width - len(row["ids"])) for row in part])
            mask = torch.tensor([[1] * len(row["ids"]) + [0] * (width - len(row["ids"])) for row in part])
            roles = torch.tensor([row["roles"] + [0] * (width - len(row["ids"])) for row in part])
            logits = net(input_ids=ids, attention_mask=mask, use_cache=False).logits
            targets = ids[:, 1:].masked_fill(roles[:, 1:] != 3, -100)
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), reduction="sum")
            (loss / trained).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        seconds.append(time.perf_counter() - began)
        tokens.append(sum(len(row["ids"]) for row in batch))
    report(seconds, tokens)


def trl(steps: int, packing: bool) -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(2)
    made = rows(steps)
    data = Dataset.from_list(
        [{"input_ids": r["ids"], "completion_mask": [int(x == 3) for x in r["roles"]]} for r in made]
    )

    class Clock(TrainerCallback):
        marks: list[float] = []  # noqa: RUF012
        seen: list[float] = []  # noqa: RUF012

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.marks.append(time.perf_counter() - self.began)

        def on_log(self, arguments: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
            if "num_tokens" in logs:
                self.seen.append(float(logs["num_tokens"]))

    settings = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        max_length=LENGTH,
        packing=packing,
        per_device_train_batch_size=1 if packing else MICRO,
        gradient_accumulation_steps=3 if packing else BATCH // MICRO,
        num_train_epochs=1,
        max_steps=-1,
        learning_rate=1e-5,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        gradient_checkpointing=False,
        bf16=False,
        disable_tqdm=True,
    )
    net = AutoModelForCausalLM.from_pretrained(model(), dtype=torch.float32)
    clock = Clock()
    SFTTrainer(
        net,
        args=settings,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(model()),
        callbacks=[clock],
    ).train()
    report(clock.marks, np.diff([0, *clock.seen]).tolist())


def cuvee(steps: int, packing: bool) -> None:
    import ray

    from training.objective import Objective
    from training.sft import Execution, TrainConfig, train

    folder = Path(tempfile.mkdtemp())
    plan = write(rows(steps), folder)
    ray.init(address="local", num_cpus=2, log_to_driver=False, object_store_memory=500_000_000)
    result = train(
        model=model(),
        plan=plan,
        tokens=[folder / "tokens"],
        objective=Objective(),
        config=TrainConfig(lr=1e-5, global_batch=BATCH, max_len=LENGTH, packing=packing, precision="fp32"),
        execution=Execution(micro_batch=1 if packing else MICRO),
        seed=0,
        out=folder / "out",
        work=folder / "work",
        stage="benchmark",
    )
    ray.shutdown()
    lines = [json.loads(line) for line in result.metrics.read_text().splitlines()]
    spent = [sum(line["spent"][name] for name in ("forward", "backward", "step")) for line in lines]
    seconds = [line["seconds"] for line in lines]
    outside = 100 * (1 - sum(spent[WARM:]) / sum(seconds[WARM:]))
    report(seconds, [line["tokens"] for line in lines], outside=outside)


def data_path(rows: int) -> None:
    """Rows to tensors on the device, with weights and shares, as one rank of one does it."""
    from functools import partial

    import torch

    from training.batches import Batches
    from training.corpus import build, open_corpus
    from training.objective import Objective, token_weights
    from training.settings import TrainConfig

    rng = np.random.default_rng(0)
    made = []
    for i in range(rows):
        size = int(rng.integers(100, 500))
        made.append({"id": f"{i:032x}", "target": 0, "source": "a", "ids": rng.integers(0, 49_000, size)})
        made[-1] |= {"roles": np.repeat([2, 3], [size // 2, size - size // 2]), "turns": np.zeros(size, np.int16)}
        made[-1] |= {"scale": None, "weight": None, "smoothing": None}
    folder = Path(tempfile.mkdtemp())
    plan = write(made, folder)
    begin = clocks()
    build(plan, [folder / "tokens"], folder / "flat")
    corpus = open_corpus(folder / "flat")
    copied = since(begin)["seconds"]
    tokens = int(corpus.lengths.sum())
    rates = {}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for packing in (False, True):
        batches = Batches(
            corpus,
            partial(token_weights, Objective()),
            TrainConfig(global_batch=128, packing=packing),
            normalise="token",
            seed=0,
            micro_batch=8,
        )
        begin = clocks()
        for step in range(batches.steps):
            for micro in batches.micros(step):
                for array in (micro.ids, micro.positions, micro.share, micro.weight, micro.source):
                    torch.from_numpy(array).to(device)
        rates["packed" if packing else "padded"] = tokens / since(begin)["seconds"]
    finish(copied=tokens / copied, **rates)


def report(seconds: list[float], tokens: list[float], **more: float) -> None:
    rates = [n / s for n, s in zip(tokens[WARM:], seconds[WARM:], strict=True)]
    finish(rate=statistics.median(rates), steps=len(rates), tokens=sum(tokens[WARM:]), **more)


CONTENDERS = {
    "plain torch loop": ["plain"],
    "TRL, padded": ["trl"],
    "TRL, packed": ["trl", "--packing"],
    "cuvee, padded": ["cuvee"],
    "cuvee, packed": ["cuvee", "--packing"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("contender", nargs="?", choices=["plain", "trl", "cuvee", "data"])
    parser.add_argument("--packing", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rows", type=int, default=20_000, help="of the data path")
    args = parser.parse_args()
    if args.contender == "plain":
        return plain(args.steps)
    if args.contender == "data":
        return data_path(args.rows)
    if args.contender:
        return (trl if args.contender == "trl" else cuvee)(args.steps, args.packing)
    steps = ["--steps", str(args.steps)]
    records = run(__file__, {name: [*words, *steps] for name, words in CONTENDERS.items()}, args.rounds)
    alone = run(__file__, {"data": ["data", "--rows", str(args.rows)]}, args.rounds)["data"]
    lines = []
    for name, made in records.items():
        rates = sorted(r["rate"] for r in made)
        outside = statistics.median(r["outside"] for r in made) if "outside" in made[0] else None
        lines.append({"contender": name, "tokens/s": statistics.median(rates), "least": rates[0], "most": rates[-1]})
        lines[-1]["outside forward, backward and step"] = "" if outside is None else f"{outside:.1f}%"
    best = {name: max(r[name] for r in alone) for name in ("copied", "padded", "packed")}
    text = [
        machine("torch", "transformers", "trl", "deepspeed", "ray"),
        f"Median of {args.rounds} rounds of {args.steps - WARM} counted steps.",
        "",
        table(lines),
        "",
        "The data path alone, tokens/s: "
        + f"Parquet to flat arrays {best['copied']:,.0f}, then batches {best['padded']:,.0f} padded, "
        + f"{best['packed']:,.0f} packed.",
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "trainer.txt").write_text("\n".join(text) + "\n")
    print("\n".join(text))
    return None


if __name__ == "__main__":
    main()
