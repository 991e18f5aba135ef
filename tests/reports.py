"""Stores of runs made by hand, for tests of what reads them. Texts of rows, items and names are hostile throughout."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cuvee import rows
from evaluation.items import summarise
from evaluation.items import table as items_table
from evaluation.statistics import pareto
from selection.vectors import write_vectors
from services.space import Dimension, Space
from services.store import Store

EVIL = (
    """</script><script>window.bad=1</script><img src=x onerror="window.bad=2">{{7*7}}{% raw %}"""
    """<a href="javascript:bad()">"""
)
LONG = "x" * 4000
RUN = "demo-0123456789ab"


class Maker:
    """Publishes artifacts and keeps the nodes of a manifest."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(str(folder))
        self.nodes: dict[str, dict[str, Any]] = {}

    def node(self, key: str, label: str, inputs: Mapping[str, str] | None = None) -> str:
        step = key.rsplit("-", 1)[0]
        self.nodes[key] = {"step": step, "label": label, "inputs": dict(inputs or {}), "seed": 0}
        return key

    def make(
        self,
        key: str,
        label: str,
        info: Mapping[str, Any],
        fill: Callable[[Path], object] = lambda folder: None,
        inputs: Mapping[str, str] | None = None,
    ) -> str:
        self.node(key, label, inputs)
        lease = self.store.acquire(key)
        assert lease
        folder = self.store.attempt_folder(lease)
        fill(folder)
        self.store.publish(lease, folder, info=info, inputs=inputs or {}, seconds=1.5)
        lease.release()
        return key

    def save(self, arms: list[dict[str, Any]], results: Mapping[str, Any] | None, **more: Any) -> Store:
        manifest: dict[str, Any] = {
            "name": RUN,
            "recipe": {"version": 1, "name": f"demo {EVIL}", "note": "höher\nzweite Zeile"},
            "recipe_hash": "0" * 32,
            "path": "recipes/demo.yaml",
            "profiles": ["cpu"],
            "overrides": ["train.lr=1e-5"],
            "started": 1.7e9,
            "status": "finished",
            "keys": list(self.nodes),
            "nodes": self.nodes,
            "arms": arms,
            **more,
        }
        if results is not None:
            manifest["results"] = {"scores": [], "changes": [], "retention": [], "contrasts": [], **results}
        self.store.save_run(RUN, manifest)
        return self.store


def score(
    task: str, point: str, mean: float, *, arm: str = "main", metric: str = "accuracy", seed: int = 0
) -> dict[str, Any]:
    figures = {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "n": 40, "errors": 0, "unsure": 0}
    return {
        "arm": arm,
        "seed": seed,
        "point": point,
        "task": task,
        "kind": "task",
        "metric": metric,
        **figures,
        "key": "",
    }


def change(
    task: str, low: float, high: float, p: float, *, arm: str = "main", metric: str = "accuracy"
) -> dict[str, Any]:
    figures = {
        "difference": (low + high) / 2,
        "low": low,
        "high": high,
        "p": p,
        "p_holm": p,
        "wins": 3,
        "ties": 4,
        "losses": 1,
    }
    return {"arm": arm, "point": "sft", "task": task, "metric": metric, "n": 8, **figures}


def arm(name: str, settings: Mapping[str, str] | None = None, seed: int = 0, **parts: Any) -> dict[str, Any]:
    empty: dict[str, Any] = {"tables": {}, "stages": {}, "points": {}, "measures": []}
    return {"name": name, "seed": seed, "settings": dict(settings or {}), **empty, **parts}


def items(task: str, answers: Mapping[str, tuple[str, bool]]) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        table = items_table(
            {
                "task": task, "version": "1", "item": name, "metric": "accuracy", "score": float(right),
                "prompt": f"Question {name}? {EVIL} {LONG}", "prediction": text, "reference": "gold", "correct": right,
            }
            for name, (text, right) in answers.items()
        )  # fmt: skip
        pq.write_table(table, folder / "items.parquet")
        (folder / "summary.json").write_text(json.dumps(summarise(table)))

    return fill


def single(folder: Path) -> Store:
    """One arm with every kind of artifact."""
    maker = Maker(folder)
    talks = [
        [
            {
                "role": "user",
                "content": f"{EVIL if i % 7 == 0 else ''} {'apples pears' if i % 2 else 'stones rocks'} {i}",
            },
            {"role": "assistant", "content": f"answer {i}"},
        ]
        for i in range(60)
    ]
    pool = rows.make_table("shop", [{"messages": talk} for talk in talks])
    ids = pool["id"].to_pylist()
    rng = np.random.default_rng(0)
    chosen = [i % 3 == 0 for i in range(60)]
    cluster = [int("apples" in talk[0]["content"]) for talk in pool["messages"].to_pylist()]

    def rejected(folder: Path) -> None:
        rows.write(pool, folder / "rows")
        lines = [{"line": i, "reason": f"line {i} has no {EVIL}"} for i in range(3)]
        (folder / "rejected.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def selection(folder: Path) -> None:
        rows.write(pool.filter(pa.array(chosen)), folder / "rows")
        columns = {
            "id": ids,
            "cluster": cluster,
            "distance": rng.random(60),
            "quality": rng.random(60),
            "selected": chosen,
        }
        pq.write_table(pa.table(columns), folder / "selection.parquet")

    def vectors(folder: Path) -> None:
        write_vectors(folder / "vectors", iter([(ids, rng.normal(size=(60, 8)).astype(np.float32))]), dim=8)

    def answers(folder: Path) -> None:
        kinds = {kind: -rng.random(20) * 20 for kind in ("own", "paraphrase", "gold")}
        columns = {f"logprob_{kind}": values for kind, values in kinds.items()}
        columns |= {f"tokens_{kind}": np.full(20, 10) for kind in kinds}
        pq.write_table(pa.table(columns), folder / "responses.parquet")

    def metrics(folder: Path) -> None:
        lines = [
            {"step": i, "loss": 2 / (i + 1), "loss_by_source": {EVIL: 1.0}, "lr": 1e-5, "tokens_per_s": 50.0}
            for i in range(5)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    load = maker.make("load-1", "shop · load", {"rows": 60, "rejected": 3}, rejected)
    embed = maker.make("embed-1", "shop · embed", {"rows": 60}, vectors, {"rows": load})
    tried = [{"k": 2, "inertia": 3.0, "silhouette": 0.4}, {"k": 4, "inertia": 2.0, "silhouette": 0.2}]
    choice = {"k": 2, "reason": "highest silhouette.", "elbow": None, "rows": 60, "sample": 60, "tried": tried}
    clusters = maker.make(
        "cluster-1", "shop · cluster", {"rows": 60, "k": 2, "choice": choice}, inputs={"rows": load, "vectors": embed}
    )
    chose = {"rows": load, "vectors": embed, "clusters": clusters}
    select = maker.make("select-1", "shop · select", {"rows": 20, "pool": 60, "method": "kmq"}, selection, chose)
    before = maker.make("iterate_init-1", "more · round 0 · weights", {"pool": 60}, inputs=chose)
    weights: list[dict[str, Any]] = []
    for number in (1, 2):
        weights += [{"round": number, "cluster": c, "weight": 0.5 + 0.1 * number * (1 - 2 * c)} for c in (0, 1)]
        info, label = {"rows": 20, "weights": list(weights)}, f"more · round {number}"
        links = {"rows": load, "before": before}
        proposed = maker.make(f"iterate_propose-{number}", f"{label} · choose", info, selection, links)
        before = maker.make(f"iterate_update-{number}", f"{label} · weights", {}, inputs={"proposed": proposed})
    shares = {
        "rows": 20,
        "model": 5,
        "paraphrase": 10,
        "gold": 5,
        "model_share": 0.25,
        "paraphrase_share": 0.5,
        "gold_share": 0.25,
    }
    composition = [{"source": EVIL, **shares}, {"source": "all", **shares}]
    respond = maker.make(
        "respond-1", "shop · respond", {"rows": 20, "composition": composition}, answers, {"rows": select}
    )
    line = {"table": "shop", "asked": "1/2", "available": 20, "rows": 10, "unique": 10, "examples": 10, "repeat": 1.0,
            "tokens": 500, "row_share": 1.0, "token_share": 1.0, "truncated": 0}  # fmt: skip
    compose = maker.make("compose-1", "sft · list", {"realised": [line], "excluded_as_held_out": {"shop": 2}})
    train = maker.make("train-1", "sft · train", {"steps": 5, "loss": 0.4, "seconds": 61.0}, metrics)
    model = maker.make("model-1", "model smol", {"model": "tiny", "parameters": 1_000_000})
    wrong = {"a": (f"wrong {EVIL}", False), "b": ("right", True), "c": ("right", True)}
    right = {"a": ("now right", True), "b": (f"now wrong {EVIL}", False), "c": ("right", True)}
    base = maker.make("evaluate-1", "base · quiz", {}, items("quiz", wrong))
    tuned = maker.make("evaluate-2", "sft · quiz", {}, items("quiz", right))
    table = {"rows": respond, "steps": [load, embed, clusters, select, respond], "held": []}
    measures = [
        {"point": point, "task": "quiz", "kind": "task", "key": key} for point, key in (("base", base), ("sft", tuned))
    ]
    main = arm(
        "main",
        tables={"shop": table},
        stages={"sft": {"list": compose, "train": train}},
        points={"base": model, "sft": train},
        measures=measures,
    )
    results = {
        "scores": [
            score("quiz", "base", 0.5),
            score("quiz", "sft", 0.7),
            score("loss.shop", "base", 2.0, metric="loss"),
            score("loss.shop", "sft", 1.5, metric="loss"),
        ],
        "changes": [change("quiz", -0.1, 0.5, 0.3), change("loss.shop", -0.6, -0.4, 0.001, metric="loss")],
        "retention": [{"arm": "main", "point": "sft", "drop": 0.08, "low": 0.02, "high": 0.14}],
        "noise": [spread("quiz"), spread("loss.shop")],
    }
    return maker.save([main], results)


def spread(task: str) -> dict[str, Any]:
    """Noise as a stored run has it: keys of `detectable` are text, as JSON has no other."""
    from evaluation.statistics import noise

    found = noise({"sample": [0.7, 0.6, 0.66], "order": [0.7, 0.71, 0.69]}, still=["judge"])
    parts = [part.__dict__ for part in found.parts]
    detectable = {str(n): value for n, value in found.detectable.items()}
    return {
        "variant": "main",
        "task": task,
        "metric": "acc",
        **found.__dict__,
        "parts": parts,
        "detectable": detectable,
    }


def several(folder: Path) -> Store:
    """Eight arms (four values of k, two seeds), a contrast, the paper's figures; one arm has no results."""
    maker = Maker(folder)
    maker.make("model-1", "model smol", {"model": "tiny", "parameters": 1_000_000})
    failed = maker.node("train-2", "sft · train")
    arms, scores, changes, retention = [], [], [], []
    for step, k in enumerate(("1/64", "1/16", "1/4", "all")):
        for seed in (0, 1):
            name = f"k={k},seed={seed}"
            arms.append(arm(name, {"strategy.k": k}, seed, points={"base": "model-1", "sft": failed}))
            if k != "all" or seed == 0:
                scores += [score("math", "base", 0.1, arm=name), score("math", "sft", 0.2 + 0.1 * step, arm=name)]
                scores.append(score("chat", "sft", 7.5 - step, arm=name, metric="rating"))
                changes.append(change("math", 0.05 + 0.1 * step, 0.15 + 0.1 * step, 0.001, arm=name))
                retention.append({"arm": name, "point": "sft", "drop": 0.01 * step, "low": -0.01, "high": 0.05})
    contrast = {"name": f"more {EVIL}", "metric": "tasks.math", "expect": "greater", "margin": None, "seeds": [0, 1],
                "a": [0.5], "b": [0.2], "missing": 1, "mean": 0.3, "low": float("nan"), "high": float("nan"),
                "p": float("nan"), "p_holm": float("nan"), "verdict": "greater, of one seed: no interval"}  # fmt: skip
    paper = {"source": "arXiv 0000.00000, Table 1", "note": "larger models",
             "rows": [{"arm": {"k": "1/4"}, "scores": {"math": 43.1, "chat": 5.7, "nothing": 1.0}}]}  # fmt: skip
    results = {
        "scores": scores,
        "changes": changes,
        "retention": retention,
        "contrasts": [contrast, {"name": "contrasts", "verdict": "b matches no arm"}],
    }
    outcomes = [
        {"key": failed, "name": "sft · train", "status": "failed", "seconds": 1, "error": f"out of memory {EVIL}"}
    ]
    return maker.save(arms, results, status="failed", outcomes=outcomes, recipe={"name": "sweep", "published": paper})


def searched(folder: Path) -> Store:
    """A search of twelve arms over shares, a rate and a hostile word, for two metrics; two stopped, one failed."""
    maker = Maker(folder)
    maker.make("model-1", "model smol", {"model": "tiny", "parameters": 1_000_000})
    space = {
        "shares": {"simplex": ["math", "chat"], "total": "200 rows"},
        "lr": {"loguniform": [1e-5, 1e-3]},
        "word": {"choice": ["plain", EVIL]},
    }
    recipe = {"name": "search", "seed": 3, "arms": {"search": {"space": space}}}
    rng = np.random.default_rng(0)
    records = []
    for i in range(1, 13):
        point = [float(u) for u in rng.random(4)]
        values = Space({k: Dimension.model_validate(v) for k, v in space.items()}).values(point)
        share = int(values["math"].split()[0]) / 200
        scores = {"gold_loss.math": 0.4 + 2.0 / (1 + 20 * share), "retention.drop": 0.1 * share + 0.01 * rng.random()}
        status = {4: "stopped", 9: "stopped", 11: "failed"}.get(i, "finished")
        steps = (2, 4) if status == "stopped" else (2, 4, 8)
        records.append(
            {
                "number": i, "name": f"arm-{i:03}", "point": point, "values": values, "status": status,
                "step": steps[-1], "steps": 12, "reports": [[s, 2.0 - share + 1 / s] for s in steps],
                "scores": scores if status == "finished" else {}, "seconds": 60.0, "workers": 1,
                "train": "", "keys": [],
                "reason": f"out of memory {EVIL}" if status == "failed" else "",
                "said": "stopped at step 4 of 12" if status == "stopped" else status,
            }
        )  # fmt: skip
    on = pareto.front([list(r["scores"].values()) or [np.nan, np.nan] for r in records], [True, True])
    names = [r["name"] for r, front in zip(records, on, strict=True) if front]
    interval = {"mean": 0.6, "low": 0.5, "high": 0.7, "n": 3}
    search = {
        "records": "search-0", "metrics": ["gold_loss.math", "retention.drop"], "signal": "validation",
        "lower": ["gold_loss.math", "retention.drop"], "searcher": "tpe", "scheduler": {"grace": 2, "factor": 3.0},
        "budget": {"arms": 12, "gpu_hours": None}, "rule": "lowest gold_loss.math and lowest retention.drop",
        "counts": {"finished": 9, "stopped": 2, "failed": 1, "running": 0}, "ended": "", "hours": 0.2,
        "front": names, "finalists": names[:1], "arms": records,
        "winner": {"arm": names[0], "scores": {"gold_loss.math": interval, "retention.drop": interval}},
    }  # fmt: skip
    finals = [arm(f"{names[0]},seed={seed}", {"lr": "1e-4"}, seed) for seed in (0, 1)]
    scores = [score("gold_loss.math", "sft", 0.62, arm=a["name"], metric="loss", seed=a["seed"]) for a in finals]
    return maker.save(finals, {"scores": scores}, recipe=recipe, search=search)
