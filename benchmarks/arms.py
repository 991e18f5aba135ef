"""What an arm costs beside its training: a sweep of tiny arms through Ray Tune against a plain loop.

    python benchmarks/arms.py

`--toy 100` steps that compute nothing: the machinery alone. `--trained 8`: a tiny random model is trained, from the
start of an arm to its first step. Zero leaves a part out.

The toys run the same step functions on the same store format three times: called in a plain loop, by the broker alone,
and by the whole sweep (proposals, records, Tune, trials, broker). The other part reads from the metrics of every
training when its first optimiser step had ended, and takes off the time since the trial began; the plain loop calls the
trainer with the same inputs. Ray is started before the clock. Results go to `benchmarks/results/arms.txt`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from side_by_side import RESULTS, machine, table

from services.broker import Broker
from services.graph import Node, ordered
from services.plan import Builder, Plan
from services.recipe import Recipe, loads
from services.runtime import Runtime
from services.steps import Context, get
from services.store import Store
from services.sweep import trial
from services.sweep.run import Sweep
from services.sweep.sources import task_of
from services.table_plan import Surroundings
from tests.services.sweep import toys
from tests.tiny import make_tiny_model, sentences

RECIPE = """
version: 1
models: {{m: {{id: "{folder}/model", micro_batch: 4}}}}
let: {{lr: 1.0e-3}}
data:
  math: {{from: {folder}/math.jsonl, do: [{{holdout: {{amount: 8 rows, near: ~}}}}]}}
stages:
  special: {{mix: {{math: 16 rows}}}}
  general: {{mix: {{math: 16 rows}}, init: special, train: {{lr: $lr, validation_every: 2}}}}
train: {{model: m, epochs: 1, global_batch: 4, max_len: 64}}
evaluate: {{gold_loss: [math], at: [base, final]}}
arms:
  search:
    space: {{lr: {{loguniform: [1.0e-5, 1.0e-1]}}}}
    metric: validation
    searcher: random
    budget: {arms}
"""


class Silent:
    """An observer that notes when the arms' own trainings began, not the one that they share."""

    def __init__(self) -> None:
        self.began: dict[str, float] = {}

    def started(self, node: Node) -> Callable[[int, int | None], None]:
        if node.step == "train" and node.inputs["init"].step == "train":
            self.began[node.key] = time.time()
        return lambda done, total: None

    def waiting(self, node: Node, holder: str) -> None:
        return

    def finished(self, outcome: Any) -> None:
        return


def recipe_in(folder: Path, arms: int) -> Recipe:
    """The data and the model, and the recipe over them."""
    make_tiny_model(folder / "model")
    lines = [
        {"messages": [{"role": "user", "content": f"{i}: {text}"}, {"role": "assistant", "content": text}]}
        for i, text in enumerate(sentences()[:64])
    ]
    (folder / "math.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return loads(RECIPE.format(folder=folder, arms=arms))


def plan_in(recipe: Recipe, store: Store) -> tuple[Plan, Surroundings]:
    from services.arms import expand

    where = Surroundings(store, False)
    return Plan(recipe, [Builder(arm, where).build() for arm in expand(recipe)], where.missing), where


def swept(recipe: Recipe, folder: Path, function: Callable[..., None]) -> tuple[float, Silent, Store]:
    """The search whole, without its finalist: its arms were measured when it was chosen."""
    store, watch = Store(str(folder)), Silent()
    folder.mkdir()
    plan, where = plan_in(recipe, store)
    with Runtime(store, log=folder / "log") as runtime:
        sweep = Sweep(store, runtime, where, [watch], lambda text: None, "bench", True, function=function)
        began = time.perf_counter()
        sweep.run(plan)
        return time.perf_counter() - began, watch, store


def brokered(recipe: Recipe, folder: Path) -> float:
    """The same nodes by the broker alone."""
    store = Store(str(folder))
    folder.mkdir()
    plan, _ = plan_in(recipe, store)
    nodes = trainings(plan)
    with Runtime(store, log=folder / "log") as runtime:
        began = time.perf_counter()
        Broker(store, runtime).run(nodes)
        return time.perf_counter() - began


def looped(recipe: Recipe, folder: Path) -> tuple[float, list[float]]:
    """The step functions called one after the other, each distinct one once; seconds to the first step of each arm."""
    store = Store(str(folder / "none"))
    plan, _ = plan_in(recipe, store)
    own = {node.key for node in trainings(plan)}
    firsts = []
    with Runtime(store, log=folder / "log") as runtime:
        runtime.ray()
        began = time.perf_counter()
        for node in ordered(trainings(plan)):
            start = time.time()
            out, work = folder / node.key, folder / f"{node.key}.work"
            out.mkdir(parents=True)
            work.mkdir()
            inputs = {name: folder / source.key for name, source in node.inputs.items()}
            context = Context(
                node.config, inputs, out, work, node.seed, node.execution, runtime, lambda done, total: None
            )
            get(node.step).run(context)
            if node.key in own:
                firsts.append(first_step(out / "metrics.jsonl") - start)
        return time.perf_counter() - began, firsts


def trainings(plan: Plan) -> list[Node]:
    """The last training of each arm, which its trial runs."""
    return [task.train for arm in plan.arms if (task := task_of(arm)).train]


def first_step(metrics: Path) -> float:
    """When the first optimiser step had ended."""
    return float(json.loads(metrics.read_text().splitlines()[0])["clock"])


def toy(arms: int) -> list[dict[str, Any]]:
    toys.register()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = recipe_in(folder, arms)
        (folder / "loop").mkdir()
        found = [
            ("plain loop", looped(recipe, folder / "loop")[0]),
            ("broker alone", brokered(recipe, folder / "broker")),
            ("sweep through Ray Tune", swept(recipe, folder / "sweep", toys.run_trial)[0]),
        ]
    base = found[0][1]
    return [
        {"toy arms": arms, "how": how, "seconds": s, "ms an arm over the loop": 1000 * (s - base) / arms}
        for how, s in found
    ]


def trained(arms: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = recipe_in(folder, arms)
        (folder / "loop").mkdir()
        loop, firsts = looped(recipe, folder / "loop")
        seconds, watch, store = swept(recipe, folder / "sweep", trial.run)
        begun = [
            first_step(store.local(key) / "metrics.jsonl") - start
            for key, start in watch.began.items()
            if store.done(key)
        ]
    return [
        {"trained arms": arms, "how": "plain loop", "seconds": loop, "start to first step": statistics.median(firsts)},
        {
            "trained arms": arms,
            "how": "sweep through Ray Tune",
            "seconds": seconds,
            "start to first step": statistics.median(begun),
        },
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", type=int, default=100, metavar="ARMS")
    parser.add_argument("--trained", type=int, default=8, metavar="ARMS")
    args = parser.parse_args()
    import ray

    from services.environment import quiet_environment

    quiet_environment()
    ray.init(address="local", num_cpus=2, log_to_driver=False, object_store_memory=500_000_000)
    parts: list[str] = [machine("ray", "torch", "deepspeed")]
    runs: Sequence[tuple[int, Callable[[int], list[dict[str, Any]]]]] = [(args.trained, trained), (args.toy, toy)]
    for count, run in runs:
        if count:
            parts += ["", table(run(count))]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "arms.txt").write_text("\n".join(parts) + "\n")
    print("\n".join(parts))


if __name__ == "__main__":
    main()
