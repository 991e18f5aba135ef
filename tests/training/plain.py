"""Rows, plans, and a training loop in plain PyTorch, one row at a time, to hold the trainer against."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cuvee.tokens import TOKENS_SCHEMA

SYSTEM, USER, ASSISTANT = 1, 2, 3


@dataclass(frozen=True)
class Data:
    folder: Path
    plan: Path
    rows: list[dict[str, Any]]
    order: list[int]


def make_rows(count: int, seed: int = 0, shortest: int = 8, longest: int = 40) -> list[dict[str, Any]]:
    """A prompt, then an answer that repeats a short pattern, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        length = int(rng.integers(shortest, longest + 1))
        prompt = int(rng.integers(2, length - 3))
        pattern = rng.integers(3, 20, 3)
        answer = np.tile(pattern, length)[: length - prompt]
        rows.append(
            {
                "id": f"{i:032x}",
                "target": 0,
                "source": ("code", "math", "math")[i % 3],
                "ids": np.concatenate([rng.integers(3, 1000, prompt), answer]).astype(np.int32),
                "roles": np.array([USER] * prompt + [ASSISTANT] * (length - prompt), np.uint8),
                "turns": np.array([0] * prompt + [1] * (length - prompt), np.int16),
                "scale": None,
                "weight": None,
                "smoothing": None,
            }
        )
    return rows


def write_tokens(rows: list[dict[str, Any]], folder: Path, parts: int = 2) -> Path:
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist(rows, schema=TOKENS_SCHEMA)
    size = -(-len(rows) // parts)
    for part in range(parts):
        pq.write_table(table.slice(part * size, size), folder / f"part-{part:05d}.parquet")
    return folder


def write_reference(rows: list[dict[str, Any]], logprobs: list[np.ndarray], folder: Path, parts: int = 2) -> Path:
    """Log-probabilities beside what `write_tokens` wrote."""
    folder.mkdir(parents=True)
    names = {"id": [row["id"] for row in rows], "target": pa.array([row["target"] for row in rows], pa.int32())}
    table = pa.table({**names, "logprobs": pa.array(logprobs, pa.list_(pa.float32()))})
    size = -(-len(rows) // parts)
    for part in range(parts):
        pq.write_table(table.slice(part * size, size), folder / f"part-{part:05d}.parquet")
    return folder


def write_plan(rows: list[dict[str, Any]], order: list[int], path: Path) -> Path:
    table = pa.table(
        {
            "stage": pa.array(["only"] * len(order)),
            "epoch": pa.array([0] * len(order), pa.int32()),
            "position": pa.array(range(len(order)), pa.int64()),
            "id": pa.array([rows[i]["id"] for i in order]),
            "target": pa.array([rows[i]["target"] for i in order], pa.int32()),
            "source": pa.array([rows[i]["source"] for i in order]),
            "tokens": pa.array([len(rows[i]["ids"]) for i in order], pa.int32()),
        }
    )
    pq.write_table(table, path)
    return path


def make_data(folder: Path, *, rows: int = 60, epochs: int = 2, seed: int = 0, longest: int = 40) -> Data:
    made = make_rows(rows, seed, longest=longest)
    rng = np.random.default_rng(seed + 1)
    order = [int(i) for _ in range(epochs) for i in rng.permutation(rows)]
    return Data(write_tokens(made, folder / "tokens"), write_plan(made, order, folder / "plan.parquet"), made, order)


def plain_loop(
    model: Path, data: Data, *, lr: float, batch: int, warmup: int, clip: float = 1.0, decay: float = 0.0
) -> tuple[list[float], dict[str, Any]]:
    """Losses and final weights: AdamW, cosine, the loss over all answer tokens of the batch, nothing clever."""
    import torch
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager").train()
    matrices = [p for p in net.parameters() if p.dim() > 1]
    vectors = [p for p in net.parameters() if p.dim() <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}], lr=lr
    )
    steps = math.ceil(len(data.order) / batch)
    losses = []
    for step in range(steps):
        chosen = [data.rows[i] for i in data.order[step * batch : (step + 1) * batch]]
        trained = sum(int((row["roles"][1:] == ASSISTANT).sum()) for row in chosen)
        optimiser.zero_grad()
        total = 0.0
        for row in chosen:
            ids = torch.tensor(row["ids"], dtype=torch.long)
            logits = net(input_ids=ids[None]).logits[0, :-1]
            each = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
            loss = each[torch.tensor(row["roles"][1:] == ASSISTANT)].sum() / trained
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
        done = (step - warmup) / (steps - warmup)
        rate = lr * (step + 1) / warmup if step < warmup else lr * (1 + math.cos(math.pi * done)) / 2
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
        losses.append(total)
    return losses, {name: p.detach().clone() for name, p in net.named_parameters()}


def plain_norm(model: Path, rows: list[dict[str, Any]]) -> float:
    """The norm of the gradient of the loss over all answer tokens of these rows."""
    import torch
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager").train()
    trained = sum(int((row["roles"][1:] == ASSISTANT).sum()) for row in rows)
    for row in rows:
        ids = torch.tensor(row["ids"], dtype=torch.long)
        logits = net(input_ids=ids[None]).logits[0, :-1]
        each = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
        (each[torch.tensor(row["roles"][1:] == ASSISTANT)].sum() / trained).backward()
    return math.sqrt(sum(float((p.grad.double() ** 2).sum()) for p in net.parameters() if p.grad is not None))


def weights_of(folder: Path) -> dict[str, Any]:
    """The tensors of an exported model."""
    from safetensors.torch import load_file

    out: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        out |= load_file(path)
    return out


def plain_loss(folder: Path, rows: list[dict[str, Any]]) -> float:
    """Mean loss per answer token of an exported model, one row at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    total = count = 0.0
    for row in rows:
        ids = torch.tensor(row["ids"], dtype=torch.long)
        with torch.no_grad():
            each = torch.nn.functional.cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="none")
        answer = torch.tensor(row["roles"][1:] == ASSISTANT)
        total, count = total + float(each[answer].sum()), count + int(answer.sum())
    return total / count
