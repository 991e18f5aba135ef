"""A whole experiment in small: a tiny random model, three sources, both stages, all methods."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent


def write_recipe(folder: Path, model: Path) -> Path:
    """`recipe.yaml` with its data, in `folder`."""
    math = [
        {"question": f"Ana has {i} coins and finds {i + 2} more. How many?", "answer": f"#### {2 * i + 2}"}
        for i in range(40)
    ]
    code = [
        {"instruction": f"Write f{i} that adds {i}.", "input": "", "output": f"def f{i}(x):\n    return x + {i}"}
        for i in range(30)
    ]
    chat = [
        {
            "messages": [
                {"role": "user", "content": f"Who counts {i} stones?"},
                {"role": "assistant", "content": f"Emil counts {i}."},
            ]
        }
        for i in range(40)
    ]
    for name, records in (("math", math), ("code", code), ("chat", chat)):
        lines = [json.dumps(record) for record in records]
        if name == "chat":
            lines += ['{"messages": [', json.dumps({"messages": [{"role": "user", "content": "no answer"}]})]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    recipe: dict[str, Any] = {
        "version": 1,
        "name": "miniature",
        "seed": 3,
        "models": {"tiny": {"id": str(model), "max_len": 192, "micro_batch": 4}},
        "data": {
            "math": {
                "from": str(folder / "math.jsonl"),
                "do": [
                    {"holdout": {"amount": "6 rows", "near": None}},
                    {"select": {"method": "kmq", "quality": "length", "amount": "12 rows", "clusters": 3}},
                ],
            },
            "code": {"from": str(folder / "code.jsonl"), "do": [{"sample": {"amount": "8 rows"}}]},
            "chat": {
                "from": str(folder / "chat.jsonl"),
                "do": [
                    {"holdout": {"amount": "6 rows", "near": None}},
                    {"sample": {"amount": "8 rows"}},
                    {
                        "respond": {
                            "model": "tiny",
                            "policy": "s3ft",
                            "judge": "text",
                            "decoding": {"max_new_tokens": 12},
                        }
                    },
                ],
            },
        },
        "stages": {
            "special": {"mix": {"math": "all", "code": "all"}},
            "general": {"mix": {"chat": "all", "math": "1/4"}, "init": "special"},
        },
        "train": {"model": "tiny", "epochs": 1, "lr": 1e-3, "global_batch": 4, "max_len": 128},
        "evaluate": {
            "gold_loss": ["math", "chat"],
            "accuracy": {"math": "numeric"},
            "decoding": {"max_new_tokens": 8},
            "at": ["base", "general"],
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def command(*arguments: str, timeout: float = 400) -> subprocess.CompletedProcess[str]:
    """`cuvee …` in a process of its own, as a user calls it."""
    return subprocess.run(
        [sys.executable, "-m", "services.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "160"},
    )


def begun(recipe: Path, store: Path) -> subprocess.Popen[bytes]:
    """`cuvee run` in the background, in a session of its own, to be killed."""
    return subprocess.Popen(
        [sys.executable, "-m", "services.cli", "run", str(recipe), "--store", str(store)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def final_losses(store: Path) -> dict[str, list[float]]:
    """Losses of every training of a store, by key."""
    return {
        path.parents[1].name: [json.loads(line)["loss"] for line in path.read_text().splitlines()]
        for path in sorted((store / "artifacts").glob("train-*/a*/metrics.jsonl"))
    }
