"""Mixtures, targets and trainings: what was asked for, what came of it, and how the loss went."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from cuvee.amounts import Amount
from cuvee.errors import UserError
from services.report.artifacts import Artifacts

CURVE = 500
"""Points of a training curve, at most."""
BINS = 40
TARGETS = ("own", "paraphrase", "gold")


def mixtures(artifacts: Artifacts, arms: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Asked against realised, each list once with the arms that train on it."""
    shared: dict[tuple[str, str], list[str]] = {}
    for arm in arms:
        for name, stage in arm["stages"].items():
            shared.setdefault((name, stage["list"]), []).append(arm["name"])
    for (name, key), names in shared.items():
        if key in artifacts.finished:
            info = artifacts.info(key)
            lines = [{**line, "asked_rows": _asked(line)} for line in info.get("realised", [])]
            excluded = info.get("excluded_as_held_out") or {}
            yield {"stage": name, "arms": names, "key": key, "realised": lines, "excluded": excluded}


def _asked(line: Mapping[str, Any]) -> int | None:
    """The rows that the amount means; None for an amount in tokens."""
    try:
        return Amount.parse(line["asked"]).rows_of(int(line["available"]))
    except (UserError, ValueError):
        return None


def responses(artifacts: Artifacts, arms: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Own, paraphrase and gold shares of every respond step, and how likely the model finds each kind.

    The arms tell apart steps of one name. The judge is marked where the answering model judges itself.
    """
    users: dict[str, list[str]] = {}
    for arm in arms:
        for key in dict.fromkeys(key for table in arm["tables"].values() for key in table["steps"]):
            users.setdefault(key, []).append(arm["name"])
    for key, node in artifacts.nodes.items():
        if node["step"] == "respond" and key in artifacts.finished:
            name = node["label"]
            yield {
                "label": name,
                "key": key,
                "arms": users.get(key, []),
                "judge": artifacts.attempt(f"the judge of {name}", _judge, artifacts, key),
                "composition": artifacts.info(key).get("composition", []),
                "logprobs": artifacts.attempt(f"log-probabilities of {name}", _logprobs, artifacts, key),
            }


def _judge(artifacts: Artifacts, key: str) -> str | None:
    table = artifacts.table(key, "responses.parquet", ["judge"])
    return next(iter(table["judge"].drop_null().to_pylist()), None) if "judge" in table.column_names else None


def _logprobs(artifacts: Artifacts, key: str) -> dict[str, Any] | None:
    """Histograms of the log-probability (nats) of a row's answer of each kind, by `answer` and by `token` of it."""
    columns = [f"{word}_{name}" for name in TARGETS for word in ("logprob", "tokens")]
    table = artifacts.table(key, "responses.parquet", columns)
    totals: dict[str, np.ndarray] = {}
    means: dict[str, np.ndarray] = {}
    for name in TARGETS:
        if f"logprob_{name}" in table.column_names:
            total = np.asarray(table[f"logprob_{name}"].to_numpy(zero_copy_only=False), dtype=float)
            tokens = np.asarray(table[f"tokens_{name}"].to_numpy(zero_copy_only=False), dtype=float)
            known = np.isfinite(total) & (tokens > 0)
            if known.any():
                totals[name], means[name] = total[known], total[known] / tokens[known]
    return {"answer": _histogram(totals), "token": _histogram(means)} if totals else None


def _histogram(values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Counts of each kind over the same bins."""
    everything = np.concatenate(list(values.values()))
    # Single very unlikely answers would squeeze the rest into one bin; they are counted in the first.
    low, high = float(np.quantile(everything, 0.005)), max(float(everything.max()), -1e-9)
    edges = np.linspace(min(low, high - 1e-6), high, BINS + 1)
    found = {
        name: {
            "counts": np.histogram(np.clip(v, edges[0], edges[-1]), edges)[0].tolist(),
            "mean": float(v.mean()),
            "rows": len(v),
        }
        for name, v in values.items()
    }
    return {"edges": [round(float(e), 4) for e in edges], "kinds": found}


def trainings(artifacts: Artifacts, arms: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every training with its curve, thinned to at most CURVE points."""
    shared: dict[str, list[str]] = {}
    stage_of: dict[str, str] = {}
    for arm in arms:
        for name, stage in arm["stages"].items():
            shared.setdefault(stage["train"], []).append(arm["name"])
            stage_of[stage["train"]] = name
    for key, node in artifacts.nodes.items():
        if node["step"] != "train" or key not in artifacts.finished:
            continue
        label = node["label"]
        lines = artifacts.attempt(f"metrics of {label}", artifacts.lines, key, "metrics.jsonl") or []
        yield {
            "label": label,
            "stage": stage_of.get(key, label),
            "key": key,
            "arms": shared.get(key, []),
            "summary": dict(artifacts.info(key)),
            "curve": thin(lines),
        }


def thin(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every n-th line and the last, and every line with a validation."""
    every = max(1, -(-len(lines) // CURVE))
    wanted = ("step", "loss", "loss_by_source", "lr", "tokens_per_s", "memory_gb", "validation")
    kept = [line for i, line in enumerate(lines) if i % every == 0 or i == len(lines) - 1 or "validation" in line]
    return [{name: line[name] for name in wanted if name in line} for line in kept]
