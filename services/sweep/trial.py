"""What runs inside a trial of Ray Tune: one arm's own last training, and nothing else.

The trial asks the driver for its arm, which answers when everything that the training needs is there and its turn has
come. It trains under the step's lease, as any other command would, and publishes the artifact. Validation losses go to
Tune's scheduler as the trainer writes them to its file, the one of the last step excepted: an arm that has come so far
is never stopped. A fault of the arm is reported and not raised, so that Tune does not repeat it; a trial whose process
dies begins again and continues at its last checkpoint.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cuvee.errors import CuveeError
from services.broker import POLL, run_step
from services.graph import Node
from services.runtime import Runtime
from services.search import VALIDATION
from services.store import Done, Store
from services.sweep.desk import Desk


def run(config: Mapping[str, Any], desk: Desk, url: str, log: str, signal: str) -> None:
    """The function of a trial: `config` has the arm's number; reports end with one that has `final`."""
    from ray import tune
    from ray.exceptions import RayActorError

    number = int(config["number"])
    try:
        reply = desk.ask(number, "begin")
        if node := reply.get("node"):
            reply = desk.ask(number, "trained", **trained(Store(url), node, Path(log), signal))
    except RayActorError:
        reply = {"result": {"status": "left"}}  # the driver has gone, and with it everybody who could want this arm
    tune.report({"final": True, **reply["result"]})


def trained(store: Store, node: Node, log: Path, signal: str) -> dict[str, Any]:
    """How the training of an arm went, whatever happened: `how` with `seconds`, or `error`."""
    began = time.monotonic()
    try:
        steps, how = train(store, node, log, signal)
    except CuveeError as error:
        return {"error": str(error)}
    except Exception as error:  # whatever it is, it is of this arm
        return {"error": f"{type(error).__name__}: {error}"}
    return {"steps": steps, "how": how, "seconds": time.monotonic() - began}


def train(store: Store, node: Node, log: Path, signal: str) -> tuple[int, str]:
    """Make the artifact of the last training; (optimiser steps, `computed` or `reused`)."""
    from services.steps import train as _  # noqa: F401 - registers the step in this process

    while True:
        if done := store.done(node.key):
            return int(done.info["steps"]), "reused"
        if lease := store.acquire(node.key):
            break
        time.sleep(POLL)
    try:
        runtime = Runtime(store, log=log, connected=True)
        made: Done = run_step(store, runtime, node, lease, Follower(store.work(node.key) / "metrics.jsonl", signal))
    finally:
        lease.release()
    return int(made.info["steps"]), "computed"


class Follower:
    """A step's progress that reports the validation losses of a growing file of metrics."""

    def __init__(self, path: Path, signal: str) -> None:
        self._path, self._signal, self._seen = path, signal, 0

    def __call__(self, done: int, total: int | None) -> None:
        from ray import tune

        for step, value in self.news():
            if total is None or step < total:
                tune.report({"step": step, "steps": total, "signal": value})

    def news(self) -> Iterator[tuple[int, float]]:
        """(optimiser steps done, signal) of validations that were not seen yet."""
        if not self._signal or not self._path.exists():
            return
        for line in self._path.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                return  # still being written
            step = int(record["step"]) + 1
            if step > self._seen and (value := value_of(record.get("validation") or {}, self._signal)) is not None:
                self._seen = step
                yield step, value


def value_of(validation: Mapping[str, Mapping[str, float]], name: str) -> float | None:
    """A validation loss by its name: `validation` (the mean over tables), `validation.<table>[.<source>]`."""
    _, _, rest = name.partition(".")
    if name.split(".")[0] != VALIDATION or not validation:
        return None
    if not rest:
        return sum(float(losses["all"]) for losses in validation.values()) / len(validation)
    table = next((t for t in validation if rest == t or rest.startswith(f"{t}.")), None)
    if table is None:
        return None
    found = validation[table].get(rest.removeprefix(table).lstrip(".") or "all")
    return None if found is None else float(found)
