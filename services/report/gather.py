"""From a stored run to what its report shows: plain data, nothing escaped yet.

Everything comes from the manifest and the artifacts that it names, so that a report can be written again later, and on
another machine. A part whose artifact is missing (a step that failed) is left out; `unfinished` lists the steps, and
`notes` what is there and could not be read.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from cuvee.errors import UserError
from services.report import flow, items, pools, stages
from services.report.artifacts import Artifacts
from services.report.published import published
from services.report.search import search
from services.report.sweep import NOTHING, sweep
from services.report.verdict import standing, verdict
from services.store import Store


def gather(store: Store, run: str) -> dict[str, Any]:
    """The view of a run. Raises UserError when the store has no such run."""
    runs = store.runs()
    if run not in runs:
        raise UserError(
            f"no run {run!r} in {store.url}", remedy=f"runs of this store: {', '.join(sorted(runs)) or 'none'}"
        )
    manifest = clean(runs[run])
    artifacts = Artifacts(store, manifest)
    arms = manifest["arms"]
    results = {**NOTHING, **(manifest.get("results") or {})}
    results["changes"] = [{**change, "standing": standing(change)} for change in results["changes"]]
    steps = list(_steps(artifacts, manifest))
    unfinished = [step for step in steps if not step["done"]]
    # Seeds that are varied apart are no arms to choose from.
    apart = (manifest["recipe"].get("repeat") or {}).get("apart", False)
    swept = None if apart else sweep(arms, results)
    view = {
        "run": run,
        "manifest": {k: v for k, v in manifest.items() if k not in ("nodes", "keys", "results", "outcomes", "search")},
        "verdict": verdict(manifest, results, len(unfinished), swept),
        "results": results,
        "tables": list(flow.tables(artifacts, arms)),
        "pools": list(pools.pools(artifacts)),
        "stages": list(stages.mixtures(artifacts, arms)),
        "responses": list(stages.responses(artifacts, arms)),
        "training": list(stages.trainings(artifacts, arms)),
        "compared": items.compared(artifacts, arms),
        "sweep": swept,
        "search": search(manifest, results),
        "published": published(artifacts, manifest, results),
        "steps": steps,
        "unfinished": unfinished,
        "command": command(store, manifest),
        "store": store.url,
        "where": {step["key"]: step["path"] for step in steps if step["done"]},
        "notes": artifacts.notes,
    }
    return dict(clean(view))


def _steps(artifacts: Artifacts, manifest: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every step in the order of the graph, with what became of it in this run."""
    outcomes = {outcome["key"]: outcome for outcome in manifest.get("outcomes") or []}
    for key, node in artifacts.nodes.items():
        outcome = outcomes.get(key, {})
        done = key in artifacts.finished
        yield {
            "key": key,
            **node,
            "done": done,
            "status": outcome.get("status") or ("done" if done else "not run"),
            "error": outcome.get("error", ""),
            "seconds": artifacts.seconds(key),
            "path": artifacts.place(key),
        }


def command(store: Store, manifest: Mapping[str, Any]) -> str:
    """What to type to run it again."""
    words = ["cuvee", *manifest.get("command", ["run", manifest["path"]])]
    for name in manifest["profiles"]:
        words += ["--profile", name]
    for text in manifest["overrides"]:
        words += ["--set", text]
    return shlex.join([*words, "--store", store.url])


def clean(value: Any) -> Any:
    """The value with what JSON has no number for (a p of one seed) as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: clean(child) for key, child in value.items()}
    return [clean(child) for child in value] if isinstance(value, list | tuple) else value
