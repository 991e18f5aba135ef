"""From a stored run to what its report shows.

Everything comes from the manifest and the artifacts that it names, so that a report can be written again later, and on
another machine. A part whose artifact is missing (a step that failed) is left out and listed under `open`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from cuvee import rows
from services.store import Store

FLIPPED = 200
"""Items shown whose answer went from right to wrong or back, at most, for each task and model."""
CURVE = 500
"""Points of a training curve, at most."""


def gather(store: Store, run: str) -> dict[str, Any]:
    """The view of a run: plain data, nothing escaped yet."""
    manifest = store.runs()[run]
    done = {key for key in manifest["keys"] if store.done(key)}
    return {
        "run": run,
        "manifest": {k: v for k, v in manifest.items() if k not in ("nodes", "keys", "results", "outcomes")},
        "results": manifest.get("results") or {"scores": [], "changes": [], "retention": [], "contrasts": []},
        "tables": list(_tables(store, manifest, done)),
        "responses": list(_responses(store, manifest, done)),
        "stages": list(_stages(store, manifest, done)),
        "training": list(_training(store, manifest, done)),
        "flipped": list(_flipped(store, manifest, done)),
        "steps": [
            {"key": key, **node, "done": key in done, "seconds": _seconds(store, key), "path": store.where(key)}
            for key, node in manifest["nodes"].items()
        ],
        "open": [node["label"] for key, node in manifest["nodes"].items() if key not in done],
    }


def _seconds(store: Store, key: str) -> float | None:
    done = store.done(key)
    return done.seconds if done else None


def _info(store: Store, key: str) -> Mapping[str, Any]:
    done = store.done(key)
    return done.info if done else {}


def _tables(store: Store, manifest: Mapping[str, Any], done: set[str]) -> Iterator[dict[str, Any]]:
    """Rows of every table after each of its steps, with what was rejected, removed and held out."""
    seen: set[str] = set()
    for arm in manifest["arms"]:
        for name, table in arm["tables"].items():
            if table["rows"] in seen:
                continue
            seen.add(table["rows"])
            steps = []
            for key in dict.fromkeys([*table["steps"], table["rows"]]):
                if key in done:
                    info = _info(store, key)
                    counts = {k: info.get(k) for k in ("rows", "rejected", "removed", "held", "k", "inertia")}
                    steps.append({"label": manifest["nodes"][key]["label"], "key": key, **counts})
            yield {"arm": arm["name"], "table": name, "steps": steps}


def _responses(store: Store, manifest: Mapping[str, Any], done: set[str]) -> Iterator[dict[str, Any]]:
    """Own, paraphrase and gold shares of every respond step."""
    for key, node in manifest["nodes"].items():
        if node["step"] == "respond" and key in done:
            yield {"label": node["label"], "key": key, "composition": _info(store, key)["composition"]}


def _stages(store: Store, manifest: Mapping[str, Any], done: set[str]) -> Iterator[dict[str, Any]]:
    """Asked against realised, each list once."""
    seen: set[str] = set()
    for arm in manifest["arms"]:
        for name, stage in arm["stages"].items():
            key = stage["list"]
            if key in seen or key not in done:
                continue
            seen.add(key)
            info = _info(store, key)
            yield {
                "arm": arm["name"],
                "stage": name,
                "key": key,
                "realised": info["realised"],
                "excluded": info["excluded_as_held_out"],
            }


def _training(store: Store, manifest: Mapping[str, Any], done: set[str]) -> Iterator[dict[str, Any]]:
    """The curve of every training, thinned to at most CURVE points."""
    arms: dict[str, list[str]] = {}
    for arm in manifest["arms"]:
        for stage in arm["stages"].values():
            arms.setdefault(stage["train"], []).append(arm["name"])
    for key, node in manifest["nodes"].items():
        if node["step"] != "train" or key not in done:
            continue
        text = (store.local(key) / "metrics.jsonl").read_text().splitlines()
        every = max(1, len(text) // CURVE)
        yield {
            "label": node["label"],
            "key": key,
            "arms": arms.get(key, []),
            "summary": dict(_info(store, key)),
            "curve": [json.loads(line) for line in text[::every]],
        }


def _flipped(store: Store, manifest: Mapping[str, Any], done: set[str]) -> Iterator[dict[str, Any]]:
    """Items whose judgement differs between base and a later point, with both answers."""
    import pyarrow.parquet as pq

    columns = ["item", "group", "metric", "main", "prompt", "prediction", "reference", "correct", "reason"]
    for arm in manifest["arms"]:
        base = {m["task"]: m["key"] for m in arm["measures"] if m["point"] == "base" and m["key"] in done}
        for measure in arm["measures"]:
            before = base.get(measure["task"])
            if measure["point"] == "base" or before is None or measure["key"] not in done:
                continue
            sides = []
            for key in (before, measure["key"]):
                table = pq.read_table(store.local(key) / "items.parquet", columns=columns)
                sides.append({r["item"]: r for r in table.to_pylist() if r["main"] and r["correct"] is not None})
            both = [item for item in sides[0] if item in sides[1]]
            flips = [i for i in both if sides[0][i]["correct"] != sides[1][i]["correct"]]
            if flips:
                items = [{"base": sides[0][i], "tuned": sides[1][i]} for i in flips[:FLIPPED]]
                yield {
                    "arm": arm["name"],
                    "point": measure["point"],
                    "task": measure["task"],
                    "gained": sum(bool(sides[1][i]["correct"]) for i in flips),
                    "lost": sum(bool(sides[0][i]["correct"]) for i in flips),
                    "items": items,
                }


def example_rows(store: Store, key: str, count: int = 5) -> list[dict[str, Any]]:
    """The first rows of a table's artifact; ids are hashes, so they are a sample."""
    table = rows.read(store.local(key) / "rows", ["id", "source", "messages"]).slice(0, count)
    return list(rows.records(table))
