"""A recipe from file to results: plan, make what is missing, measure, report.

The manifest of a run (recipe, arms, keys) is written before the first step and again at the end, so that `prune` never
takes what a killed run has made, and every page can be traced to artifacts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cuvee.errors import CuveeError, UserError
from services import placing, results, sources
from services.broker import Broker, Observer, Outcome
from services.capacity import Capacity
from services.figures import Figures
from services.graph import Node, ordered
from services.plan import ArmPlan, Builder, Plan
from services.recipe import Recipe, load
from services.redact import redact
from services.refusals import refusals
from services.runtime import Runtime
from services.store import Store
from services.sweep.run import Sweep
from services.sweep.sources import needed
from services.table_plan import Surroundings
from services.terminal import StepLines, Terminal


@dataclass(frozen=True)
class Request:
    """What a command asks for."""

    path: Path
    profiles: Sequence[str] = ()
    overrides: Sequence[str] = ()
    store: str = "cuvee-store"
    address: str | None = None
    keep_going: bool | None = None
    recipe: Recipe | None = None
    """The recipe itself, where it was made from the one in the file; `command` says how."""
    command: Sequence[str] = ()


@dataclass
class Result:
    """A finished run: `found` is what `services.results.collect` says."""

    name: str
    plan: Plan
    outcomes: list[Outcome]
    found: dict[str, Any]
    folder: Path
    seconds: float
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> list[Outcome]:
        """Steps that did not come to an end. Those of a search's arms are not among them: the search goes on."""
        wanted = {node.key for node in ordered(self.plan.targets)}
        return [o for o in self.outcomes if o.status in ("failed", "skipped") and o.node.key in wanted]


def open_plan(request: Request, store: Store, capacity: Capacity) -> Plan:
    """The plan of a recipe file, for the machines that it will run on."""
    recipe = request.recipe or load(request.path, request.profiles, request.overrides)
    return plan_in(Surroundings(store, capacity.gpus > 0), recipe)


def plan_in(where: Surroundings, recipe: Recipe) -> Plan:
    """The plan of a recipe; `where` may then plan other arms of it, as a search does."""
    from services.arms import expand

    plans = [Builder(arm, where).build() for arm in expand(recipe)]
    for plan in plans:
        if plan.arm.half == "validation":  # of what only competes, only what decides is measured
            plan.measures = needed(plan, recipe.arms.deciding)
    return Plan(recipe, plans, where.missing)


def read_pools(plan: Plan, store: Store) -> None:
    """Read the pools that are at hand (files, installed packages), so that a plan can say how many rows there are."""
    loads = [n for n in ordered(plan.targets) if n.step == "load" and store.done(n.key) is None]
    near = [n for n in loads if not str(n.execution["source"]["path"]).startswith(("hub:", "s3://"))]
    near = [n for n in near if sources.resolve(sources.Source.model_validate(n.execution["source"]))[0] != "hub"]
    if near:
        with Runtime(store, log=store.scratch / "logs" / "plan.log") as runtime:
            Broker(store, runtime).run(near)


def check_judges(plan: Plan, store: Store) -> None:
    """UserError when a judge cannot decide the rows that it will get, as far as these have been read."""
    from cuvee import rows
    from evaluation.judges import JudgeConfig, fits

    for node in ordered(plan.targets):
        if not node.config.get("judge") or "rows" not in node.inputs:
            continue
        source: Node | None = node.inputs["rows"]
        while source is not None and store.done(source.key) is None:
            source = next((n for name, n in sorted(source.inputs.items()) if name.startswith("rows")), None)
        if source is None:
            continue
        why = fits(JudgeConfig.parse(node.config["judge"]), rows.read(store.local(source.key) / "rows"))
        if why:
            raise UserError(f"{node.label}: {why}", remedy="name another judge")


def store_of(request: Request) -> Store:
    """The store: the command's, or the recipe's if the command names none."""
    return Store(request.store)


def run(request: Request, terminal: Terminal, log: Path) -> Result:
    """Run a recipe. Raises the first error of a single arm; with several arms a failed one is reported at the end."""
    store = store_of(request)
    with Runtime(store, address=request.address, log=log) as runtime:
        return _run(request, terminal, store, runtime)


def _run(request: Request, terminal: Terminal, store: Store, runtime: Runtime) -> Result:
    from services.tracking import RunTracker

    start = time.time()
    recipe = request.recipe or load(request.path, request.profiles, request.overrides)
    where = Surroundings(store, runtime.capacity.gpus > 0)
    plan = plan_in(where, recipe)
    if plan.missing:
        raise plan.missing[0]
    store.check_writable()
    check_judges(plan, store)
    placing.check(plan, store, runtime.capacity)
    keep_going = len(plan.arms) > 1 if request.keep_going is None else request.keep_going
    if not keep_going and (refused := refusals(plan, Figures(store))):
        raise UserError(refused[0])  # of several arms the others can run: there the step refuses it
    name = run_name(plan.recipe)
    targets = plan.targets
    written = [arm for arm in plan.arms if arm.arm.half != "validation"]
    manifest = manifest_of(Plan(recipe, written, plan.missing) if recipe.arms.search else plan, name, request, start)
    store.save_run(name, manifest)
    with ExitStack() as stack:
        tracker = stack.enter_context(RunTracker(store, plan, name))
        lines = StepLines(terminal, 0 if recipe.arms.halved else len(ordered(targets)))
        observers: list[Observer] = [lines, Lists(terminal), tracker]

        def keep(search: dict[str, Any], keys: Sequence[str]) -> None:
            manifest["search"] = search
            manifest["keys"] = list(dict.fromkeys([*manifest["keys"], *keys]))
            store.save_run(name, manifest)

        def say(text: str) -> None:
            terminal.err.print(f"  {text}", markup=False)

        sweep = Sweep(store, runtime, where, observers, say, name, keep_going, tracker.arm, keep)
        try:
            made = sweep.run(plan)
        except BaseException as error:
            store.save_run(name, manifest | {"status": "failed", "error": redact(str(error) or "interrupted")})
            raise
        runtime.close()
        plan, outcomes = made.plan, made.outcomes
        found = results.collect(plan, store)
        found |= {word: part for word, part in (("search", made.search), ("nuisance", made.nuisance)) if part}
        kept = manifest["keys"]
        manifest |= {k: v for k, v in manifest_of(plan, name, request, start).items() if k in ("nodes", "arms", "keys")}
        manifest["keys"] = list(dict.fromkeys([*manifest["keys"], *kept]))
        if made.search:
            manifest["search"] = made.search
        seconds = time.time() - start
        folder = store.scratch / "runs" / name
        folder.mkdir(parents=True, exist_ok=True)
        result = Result(name, plan, outcomes, found, folder, seconds)
        result.failures = made.failures
        said = {k: v for k, v in found.items() if k != "search"}
        manifest |= {"finished": time.time(), "status": "failed" if result.failed else "finished", "results": said}
        manifest["outcomes"] = [outcome.record() for outcome in outcomes]
        store.save_run(name, manifest)
        write_report(store, name)
        tracker.results(found, folder)
    if tracker.notice:
        terminal.err.print(tracker.notice, markup=False)
    return result


def write_report(store: Store, name: str) -> Path:
    """The report of a stored run, beside its manifest."""
    from services.report import write

    folder = store.scratch / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    return write(store, name, folder / "report.html")


def run_name(recipe: Recipe) -> str:
    """The recipe's name with its hash: the same recipe continues the same run."""
    safe = "".join(c if c.isalnum() or c in "-_" else "-" for c in recipe.name) or "run"
    return f"{safe}-{recipe.hash[:12]}"


def manifest_of(plan: Plan, name: str, request: Request, start: float) -> dict[str, Any]:
    """What is kept of a run, for the report, lineage and prune."""
    nodes = ordered(plan.targets)
    return {
        "name": name,
        "recipe": redact(plan.recipe.document),
        "recipe_hash": plan.recipe.hash,
        "path": str(request.path),
        "profiles": list(request.profiles),
        "overrides": [redact(text) for text in request.overrides],
        "command": list(request.command) or ["run", str(request.path)],
        "started": start,
        "status": "running",
        "keys": [node.key for node in nodes],
        "nodes": {node.key: _node(node) for node in nodes},
        "arms": [_arm(arm) for arm in plan.arms],
    }


def _node(node: Node) -> dict[str, Any]:
    inputs = {name: source.key for name, source in node.inputs.items()}
    return {"step": node.step, "label": node.label, "inputs": inputs, "seed": node.seed}


def _arm(arm: ArmPlan) -> dict[str, Any]:
    return {
        "name": arm.arm.name,
        "seed": arm.arm.seed,
        "settings": dict(arm.arm.settings),
        "tables": {
            name: {"rows": state.rows.key, "steps": [n.key for n in state.nodes], "held": [n.key for n in state.held]}
            for name, state in arm.tables.items()
        },
        "stages": {name: {"list": s.compose.key, "train": s.train.key} for name, s in arm.stages.items()},
        "points": {label: node.key for label, node in arm.points.items()},
        "measures": [{"point": m.point, "task": m.task, "kind": m.kind, "key": m.node.key} for m in arm.measures],
    }


class Lists:
    """The observer that prints each stage's list before it is trained: asked against realised."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal

    def started(self, node: Node) -> Any:
        return lambda done, total: None

    def waiting(self, node: Node, holder: str) -> None:
        return

    def finished(self, outcome: Outcome) -> None:
        if outcome.node.step == "compose" and outcome.status in ("computed", "reused"):
            self._terminal.err.print(realised_table(outcome.info["realised"]))


def realised_table(realised: Sequence[dict[str, Any]]) -> Any:
    """A stage's list as a table for the terminal."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="dim")
    columns = {
        "table": "table", "asked": "asked", "rows": "rows", "unique": "unique", "repeat": "repeat",
        "tokens": "tokens", "token_share": "share", "truncated": "cut",
    }  # fmt: skip
    table.add_column("       ")
    for title in columns.values():
        table.add_column(title, justify="left" if title in ("table", "asked") else "right")
    for line in realised:
        table.add_row("", *(_cell(line.get(name)) for name in columns))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def first_failure(result: Result) -> CuveeError | None:
    """The first error of a run that went on."""
    return next((o.error for o in result.failed if o.status == "failed"), None)
