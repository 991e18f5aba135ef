"""`cuvee init`, `plan`, `run`, `noise`, `report`: recipes from file to results."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cuvee.errors import UserError
from services.commands.common import print_json, request_options, store_option
from services.texts import p_value
from services.variants import STREAMS

if TYPE_CHECKING:
    from services.run import Request


@click.command()
@click.argument("path", default="recipe.yaml", type=click.Path(dir_okay=False))
@click.option("--schema", is_flag=True, help="Write the JSON Schema for editors instead.")
def init(path: str, schema: bool) -> None:
    """Write a commented starter recipe to PATH (default recipe.yaml).

    Example: cuvee init my.yaml && cuvee plan my.yaml
    """
    import json

    from services.schema import json_schema, starter

    target = Path(path)
    if target.exists():
        raise UserError(f"{path} exists", remedy="give another name")
    target.write_text(json.dumps(json_schema(), indent=1) + "\n" if schema else starter())
    click.echo(f"wrote {path}")


@click.command()
@request_options
def plan(request: Request, as_json: bool) -> None:
    """Show the steps of RECIPE, which are done, what the rest will cost, and where it runs or waits. Loads no model.

    Exit code 2 when it is known already that a run will refuse something.

    Example: cuvee plan recipes/quickstart.yaml --set train.lr=1e-5
    """
    from services.placing import placements
    from services.plan_record import plan_record
    from services.plan_text import show
    from services.run import check_judges, open_plan, read_pools, store_of
    from services.runtime import Runtime

    where = store_of(request)
    with Runtime(where, address=request.address, log=where.scratch / "logs" / "plan.log") as runtime:
        capacity = runtime.capacity
    opened = open_plan(request, where, capacity)
    if not opened.missing:
        read_pools(opened, where)
        check_judges(opened, where)
    found = plan_record(opened, where, accelerator=capacity.gpus > 0) | {
        "machines": str(capacity),
        "placements": placements(opened, where, capacity),
    }
    if as_json:
        print_json(found)
    else:
        show(found)
    if found["refused"]:
        click.get_current_context().exit(2)


@click.command()
@request_options
def run(request: Request, as_json: bool) -> None:
    """Run RECIPE: make what is missing, train, measure, and write the report. Run it again to continue.

    Example: cuvee run recipes/quickstart.yaml
    """
    execute(request, as_json=as_json)


@click.command()
@request_options
@click.option("--seeds", type=click.IntRange(min=2), default=3, show_default=True, help="Seeds of each stream.")
@click.option(
    "--vary",
    default=",".join(STREAMS),
    show_default=True,
    help="Streams to vary, one at a time; one that nothing draws from costs nothing.",
)
@click.option("--arm", help="An arm of the recipe, without its seed; the first one if absent.")
def noise(request: Request, seeds: int, vary: str, arm: str | None, as_json: bool) -> None:
    """Run one arm of RECIPE over seeds, one stream of them at a time: whose luck the scores depend on, and how large a
    difference between arms must be to show.

    Example: cuvee noise recipes/quickstart.yaml --seeds 3 --vary sample,order
    """
    from services.noise import noise_recipe
    from services.recipe import load

    streams = [word.strip() for word in vary.split(",") if word.strip()]
    recipe = load(request.path, request.profiles, request.overrides)
    made = noise_recipe(recipe, arm=arm, seeds=seeds, vary=streams)
    command = [
        "noise",
        str(request.path),
        "--seeds",
        str(seeds),
        "--vary",
        ",".join(streams),
        *(["--arm", arm] if arm else []),
    ]
    execute(replace(request, recipe=made, command=command), as_json=as_json)


def execute(request: Request, *, as_json: bool) -> None:
    """Run a recipe and show what came out."""
    from services.run import first_failure
    from services.run import run as run_recipe
    from services.terminal import quiet

    log = log_file(request.store, request.path.stem)
    with quiet(log, json=as_json) as terminal:
        try:
            result = run_recipe(request, terminal, log)
        except BaseException as error:
            if not isinstance(error, KeyboardInterrupt | UserError):
                terminal.err.print(tail(log), markup=False, style="dim")
            terminal.err.print(f"log: {log}", markup=False)
            raise
        report = result.folder / "report.html"
        if not as_json:
            show_results(terminal, result.found)
            terminal.out.print(
                f"\nreport  {report}\nmlflow  cuvee ui --store {request.store}\nlog     {log}", markup=False
            )
            terminal.out.print(f"{len(result.outcomes)} steps in {result.seconds:.0f} s", markup=False)
    if as_json:
        print_json(
            {
                "run": result.name,
                "status": "failed" if result.failed else "finished",
                "steps": [outcome.record() for outcome in result.outcomes],
                "report": str(report),
                "log": str(log),
                "seconds": round(result.seconds, 2),
                **result.found,
            }
        )
    if failure := first_failure(result):
        raise failure


@click.command()
@click.argument("run_or_recipe")
@store_option
@click.option("--format", "form", type=click.Choice(["html", "md", "json"]), default="html", show_default=True)
@click.option("--out", type=click.Path(dir_okay=False), help="Where to write it; default beside the run.")
def report(run_or_recipe: str, store: str, form: str, out: str | None) -> None:
    """Write the report of a run (its name, the beginning of it, or its recipe file) again.

    Example: cuvee report quickstart --format md --out quickstart.md
    """
    from services.report import write
    from services.runs import find_run
    from services.store import Store

    where = Store(store)
    name = find_run(where, run_or_recipe)
    target = Path(out) if out else where.scratch / "runs" / name / f"report.{form}"
    target.parent.mkdir(parents=True, exist_ok=True)
    click.echo(write(where, name, target, form=form))


def log_file(store: str, name: str) -> Path:
    """The log of a command, beside a local store. Raises UserError when the store cannot be written."""
    from services.store import Store

    if "://" in store:
        base = Path("cuvee-logs")
    else:
        base = Path(store)
        Store(store).check_writable()
    return (base / "logs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}.log").resolve()


def tail(log: Path, lines: int = 6) -> str:
    """The last lines of a log that speak of an error, else its last lines."""
    from services.redact import redact

    if not log.exists():
        return ""
    text = log.read_text(errors="replace").splitlines()[-400:]
    errors = [line for line in text if "Error" in line or "error:" in line]
    return redact("\n".join((errors or text)[-lines:]))


def show_results(terminal: Any, found: dict[str, Any]) -> None:
    """The table at the end of a run."""
    from rich.table import Table

    changes = {(c["arm"], c["point"], c["task"]): c for c in found["changes"]}
    arms = dict.fromkeys(s["arm"] for s in found["scores"])
    for arm in arms:
        table = Table(title=f"arm {arm}" if len(arms) > 1 else None, title_justify="left", header_style="bold")
        for title in ("task", "metric", "model", "score", "95% interval", "change from base", "items"):
            table.add_column(title, justify="right" if title in ("score", "items") else "left", no_wrap=title == "task")
        last = ""
        for score in sorted((s for s in found["scores"] if s["arm"] == arm), key=lambda s: s["task"]):
            change = changes.get((arm, score["point"], score["task"]))
            table.add_row(
                score["task"] if score["task"] != last else "",
                score["metric"] if score["task"] != last else "",
                score["point"],
                _number(score["mean"]),
                f"{_number(score['low'])} to {_number(score['high'])}",
                f"{change['difference']:+.3f} ({change['low']:+.3f} to {change['high']:+.3f})" if change else "",
                _items(score),
            )
            last = score["task"]
        terminal.out.print(table)
    for drop in found["retention"]:
        terminal.out.print(
            f"forgotten ({drop['arm']}, {drop['point']}): mean drop {drop['drop']:+.3f} "
            f"({drop['low']:+.3f} to {drop['high']:+.3f})",
            markup=False,
        )
    for record in found["contamination"]:
        without = _number(record["without"])
        terminal.out.print(
            f"found in the data ({record['arm']}, {record['point']}): {record['found']} of {record['n']} items of "
            f"{record['task']}; without them {without} instead of {_number(record['score'])}",
            markup=False,
        )
    if search := found.get("search"):
        counts = ", ".join(f"{n} {word}" for word, n in search["counts"].items() if n)
        terminal.out.print(f"search: {len(search['arms'])} arms ({counts})", markup=False)
        if search["winner"]:
            scores = ", ".join(f"{m} {_number(s['mean'])}" for m, s in search["winner"]["scores"].items())
            terminal.out.print(f"best: {search['winner']['arm']} ({scores}), by {search['rule']}", markup=False)
    for contrast in found["contrasts"]:
        figures = f": {contrast['mean']:+.4f}" if "mean" in contrast else ""
        if contrast.get("n", 0) > 1:  # one seed has none
            figures += f" ({contrast['low']:+.4f} to {contrast['high']:+.4f}), p (Holm) {p_value(contrast['p_holm'])}"
        terminal.out.print(f"contrast {contrast['name']}{figures}: {contrast['verdict']}", markup=False)
    if found["noise"]:
        show_noise(terminal, found["noise"])


def show_noise(terminal: Any, found: Sequence[dict[str, Any]]) -> None:
    """The spread over seeds, by stream, and what it hides."""
    from rich.table import Table

    streams = list(dict.fromkeys(part["stream"] for record in found for part in record["parts"]))
    seeds = list(found[0]["detectable"])
    several = len({record["variant"] for record in found}) > 1
    table = Table(title="noise of seeds (standard deviations)", title_justify="left", header_style="bold")
    titles = ["task", "mean", *streams, "all", "95% interval", *(f"shows with {n} seeds" for n in seeds)]
    for title in titles:
        table.add_column(title, justify="left" if title == "task" else "right", no_wrap=title == "task")
    for record in found:
        parts = {part["stream"]: part for part in record["parts"]}
        table.add_row(
            f"{record['variant']} {record['task']}" if several else record["task"],
            _number(record["mean"]),
            *("" if s not in parts else _spread(parts[s]) for s in streams),
            _number(record["sd"]),
            f"{_number(record['low'])} to {_number(record['high'])}",
            *(_number(record["detectable"][n]) for n in seeds),
        )
    terminal.out.print(table)
    terminal.out.print(
        "shows with n seeds: the smallest true difference between two arms that a paired t over n seeds finds four "
        "times in five; –: nothing draws from the stream",
        markup=False,
    )


def _spread(part: dict[str, Any]) -> str:
    return _number(part["sd"]) if part["touches"] else "–"


def _items(score: dict[str, Any]) -> str:
    told = [f"{score[word]} {said}" for word, said in (("errors", "failed"), ("unsure", "unsure")) if score[word]]
    return f"{score['n']} ({', '.join(told)})" if told else str(score["n"])


def _number(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.3f}"
