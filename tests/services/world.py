"""A small store made by hand: two variants of one recipe, two seeds each, with every artifact that is looked at.

Stage `special` trains four of six math rows for two epochs. Stage `general` trains three rows of qa, whose targets are
chosen by the policy (variant `s3ft`) or are the gold ones (`gold`), and one row of math.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cuvee import rows
from evaluation import items
from evaluation.items import summarise
from selection.provenance import PROVENANCE
from services.arms import expand
from services.recipe import loads
from services.store import Store

RECIPE = """
version: 1
models: {m: {id: "builtin:smollm2-135m-instruct"}}
let: {policy: s3ft}
data:
  math: {from: math.jsonl, do: [{select: {method: random, amount: 4 rows}}]}
  qa: {from: qa.jsonl, do: [{respond: {policy: $policy, judge: text, model: m}}]}
stages:
  special: {mix: {math: all}, epochs: 2}
  general: {mix: {qa: all, math: 1/4}, init: special}
train: {model: m}
evaluate: {tasks: [arc_easy], at: [base, general]}
arms: {grid: {policy: [s3ft, gold]}}
repeat: {seeds: [0, 1]}
"""
RIGHT = {("s3ft", 0): 30, ("s3ft", 1): 31, ("gold", 0): 10, ("gold", 1): 12}
"""Items of 40 that the last model of an arm has right; the base has 20."""


def talk(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


MATH = rows.make_table("math", [talk(f"{i} + {i}", str(2 * i)) for i in range(6)])
QA = rows.make_table("qa", [talk(f"Who is {name}?", f"a {name}") for name in ("Ana", "Ben", "Chen")])
CHOSEN = sorted(MATH["id"].to_pylist())[:4]


class World:
    """The store, and the ids of its rows."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(str(folder))
        self.nodes: dict[str, Any] = {}
        self.made()

    def add(
        self, key: str, label: str, inputs: Mapping[str, str], *, info: Mapping[str, Any] | None = None, **files: Any
    ) -> str:
        """Publish an artifact of tables (folders of rows, else one Parquet file) and JSON files."""
        lease = self.store.acquire(key)
        assert lease is not None
        folder = self.store.attempt_folder(lease)
        for name, content in files.items():
            if name in ("rows", "held"):
                rows.write(content, folder / name)
            elif isinstance(content, pa.Table):
                pq.write_table(content, folder / f"{name}.parquet")
            else:
                (folder / f"{name}.json").write_text(json.dumps(content))
        self.store.publish(lease, folder, info={"model": "tiny", **(info or {})}, inputs=inputs, seconds=1.0)
        lease.release()
        self.nodes[key] = {"step": key.split("-")[0], "label": label, "inputs": dict(inputs), "seed": None}
        return key

    def made(self) -> None:
        self.add("load-a1", "math · load", {}, rows=MATH)
        self.add("load-a2", "qa · load", {}, rows=QA)
        self.add("model-b1", "model m", {})
        figures = pa.table({
            "id": MATH["id"], "quality": [float(i) for i in range(6)],
            "selected": [name in CHOSEN for name in MATH["id"].to_pylist()],
        })  # fmt: skip
        chosen = MATH.filter(pa.array([name in CHOSEN for name in MATH["id"].to_pylist()]))
        self.add("select-a3", "math · select", {"rows": "load-a1"}, rows=chosen, selection=figures)
        self.add("render-a4", "math · tokens", {"rows": "select-a3", "model": "model-b1"})
        self.add("evaluate-e0", "base · arc_easy", {"model": "model-b1"}, **scored(20))
        arms = [self.arm(policy, seed) for policy in ("s3ft", "gold") for seed in (0, 1)]
        self.store.save_run(
            "small-0123456789ab",
            {
                "name": "small-0123456789ab",
                "recipe": loads(RECIPE).document,
                "status": "finished",
                "keys": list(self.nodes),
                "nodes": self.nodes,
                "arms": arms,
            },
        )
        assert [arm["name"] for arm in arms] == [arm.name for arm in expand(loads(RECIPE))]

    def arm(self, policy: str, seed: int) -> dict[str, Any]:
        """The first stage is shared by the policies of a seed, the answers by the seeds of a policy."""
        answered = f"respond-{policy}"
        if answered not in self.nodes:
            self.answers(policy)
            self.add(f"render-{policy}", "qa · tokens", {"rows": answered, "model": "model-b1"})
        first = [f"{step}-special{seed}" for step in ("compose", "train")]
        last = [f"{step}-{policy}{seed}" for step in ("compose", "train")]
        once = [(name, 0) for name in CHOSEN]
        ids = once if seed == 0 else once[::-1]
        tokens = {"tokens.math": "render-a4"}
        if first[0] not in self.nodes:
            special = listed("special", [ids, ids[::-1]], "math")
            self.add(first[0], "special · list", tokens, special=special)
            self.add(first[1], "special · train", {"init": "model-b1", "plan": first[0], **tokens})
        targets = [(name, 0) for name in QA["id"].to_pylist()]
        general = pa.concat_tables([listed("general", [targets], "qa"), listed("general", [ids[:1]], "math", start=3)])
        tokens["tokens.qa"] = f"render-{policy}"
        self.add(last[0], "general · list", tokens, general=general)
        self.add(last[1], "general · train", {"init": first[1], "plan": last[0], **tokens})
        self.add(f"evaluate-{policy}{seed}", "general · arc_easy", {"model": last[1]}, **scored(RIGHT[policy, seed]))
        return {
            "name": f"policy={policy},seed={seed}",
            "seed": seed,
            "settings": {"policy": policy},
            "tables": {
                "math": {"rows": "select-a3", "steps": ["load-a1", "select-a3"], "held": []},
                "qa": {"rows": answered, "steps": ["load-a2", answered], "held": []},
            },
            "stages": {
                "special": {"list": first[0], "train": first[1]},
                "general": {"list": last[0], "train": last[1]},
            },
            "points": {"base": "model-b1", "general": last[1]},
            "measures": [
                {"point": "base", "task": "arc_easy", "kind": "task", "key": "evaluate-e0"},
                {"point": "general", "task": "arc_easy", "kind": "task", "key": f"evaluate-{policy}{seed}"},
            ],
        }

    def answers(self, policy: str) -> None:
        """Under s3ft the first row keeps the model's answer, the second a paraphrase, the third the gold one."""
        records = []
        for i, row in enumerate(rows.records(QA)):
            gold = rows.answer_of(row["messages"])
            which = ("model", "paraphrase", "gold")[i] if policy == "s3ft" else "gold"
            records.append({
                "id": row["id"], "target": 0, "source": "qa", "chosen": which,
                "own_answer": f"own {i}", "own_verdict": "equivalent" if which == "model" else "different",
                "paraphrase_verdict": "equivalent" if which == "paraphrase" else None,
                "text": gold if which == "gold" else f"{which} {i}", "judge": "text:exact", "judge_version": "1",
            })  # fmt: skip
        messages = [[talk("", r["text"])["messages"][1]] for r in records]
        turns = [
            [{**m, "weight": None} for m in (*rows.prompt_of(row["messages"]), *answer)]
            for row, answer in zip(rows.records(QA), messages, strict=True)
        ]
        table = QA.set_column(QA.column_names.index("messages"), rows.SCHEMA.field("messages"),
                              pa.array(turns, rows.MESSAGES))  # fmt: skip
        self.add(f"respond-{policy}", "qa · respond", {"rows": "load-a2", "model": "model-b1"},
                 rows=table, responses=pa.Table.from_pylist(records, schema=PROVENANCE))  # fmt: skip


def listed(stage: str, epochs: Sequence[Sequence[tuple[str, int]]], source: str, *, start: int = 0) -> pa.Table:
    """A stage's list in the form of `training.mixture`."""
    places = [(epoch, i, *row) for epoch, order in enumerate(epochs) for i, row in enumerate(order)]
    return pa.table({
        "stage": [stage] * len(places),
        "epoch": pa.array([p[0] for p in places], pa.int32()),
        "position": pa.array([start + i for i in range(len(places))], pa.int64()),
        "id": [p[2] for p in places],
        "target": pa.array([p[3] for p in places], pa.int32()),
        "source": [source] * len(places),
        "tokens": pa.array([10] * len(places), pa.int32()),
    })  # fmt: skip


def scored(right: int, of: int = 40) -> dict[str, Any]:
    """The items and the summary of an evaluation, the first `right` of them right."""
    records = [
        {"task": "arc_easy", "version": "1", "item": f"q{i:03}", "group": "", "metric": "acc", "main": True,
         "score": float(i < right), "correct": i < right, "prediction": "x", "reference": "x", "prompt": "x"}
        for i in range(of)
    ]  # fmt: skip
    table = items.table(records)
    return {"items": table, "summary": summarise(table)}
