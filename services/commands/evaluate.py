"""`cuvee evaluate`: a model on benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cuvee.errors import UserError
from services.commands.common import address_option, json_option, print_json, store_option
from services.commands.respond import MODEL_HELP
from services.commands.single import session


@click.command()
@click.option("--tasks", required=True, help="Tasks and suites, e.g. gsm8k,arc_easy; list shows what there is.")
@click.option("--model", help=MODEL_HELP)
@click.option("--limit", type=click.IntRange(min=1), help="Items of each task; all if absent.")
@click.option("--shots", type=click.IntRange(min=0), help="Worked examples before each question.")
@click.option(
    "--chat/--no-chat", default=None, help="Ask through the chat template or not; the task's own way if absent."
)
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Tokens of an answer; the task's own if absent.")
@click.option(
    "--data",
    "data",
    multiple=True,
    metavar="TASK=WHERE",
    help="Rows from a file in the hub's format, or hub:name@split.",
)
@click.option("--judge", help="For judged chat: a judge as in a recipe, e.g. '{rating: {model: hub:org/name}}'.")
@click.option("--template", help="Chat template in place of the model's: a Jinja file.")
@click.option("--out", type=click.Path(file_okay=False), help="Folder for items.parquet and summary.json.")
@store_option
@address_option
@json_option
def evaluate(tasks: str, model: str | None, out: str | None, store: str, as_json: bool, **said: Any) -> None:
    """Score a model on tasks: a table of items with every answer, and a summary with intervals.

    Example: cuvee evaluate --model smollm2-135m-instruct --tasks arc_easy --limit 50 --out scores
    """
    if tasks == "list":
        show_tasks(as_json)
        return
    for option, value in (("--model", model), ("--out", out)):
        if value is None:
            raise UserError(
                f"{option} is missing", remedy="--model smollm2-135m-instruct --tasks arc_easy --out scores"
            )
    from services.single import yaml_value
    from services.single_evaluate import EvaluateRequest
    from services.single_evaluate import evaluate as score

    request = EvaluateRequest(
        str(model),
        [name.strip() for name in tasks.split(",")],
        Path(str(out)),
        limit=said["limit"],
        shots=said["shots"],
        judge=yaml_value(said["judge"], "--judge") if said["judge"] else None,
        template=said["template"],
        chat=said["chat"],
        max_new_tokens=said["max_new_tokens"],
        data=dict(_pair(text) for text in said["data"]),
    )
    with session(store, "evaluate", as_json=as_json, address=said["address"]) as work:
        summary = score(work, request)
    if as_json:
        print_json({**summary, "out": out, "steps": work.steps})
        return
    for task, figures in summary["tasks"].items():
        click.echo(f"{task:<24} {figures['metric']:<12} {_score(figures)}")
    click.echo(f"items: {Path(str(out)) / 'items.parquet'}")


def _pair(text: str) -> tuple[str, str]:
    task, found, where = text.partition("=")
    if not (task and found and where):
        raise UserError(f"--data {text}", remedy="write --data gsm8k=test.jsonl")
    return task, where


def _score(figures: dict[str, Any]) -> str:
    if figures["mean"] is None:
        return f"no score; {figures['errors']} items failed"
    failed = f"; {figures['errors']} failed" if figures["errors"] else ""
    interval = f" ({figures['low']:.3f} to {figures['high']:.3f})" if figures["low"] is not None else ""
    return f"{figures['mean']:.3f}{interval} over {figures['n']} items{failed}"


def show_tasks(as_json: bool) -> None:
    """Which tasks are there, what is missing for the others, and the suites."""
    from evaluation import suites, tasks

    found = tasks.available()
    if as_json:
        named = {name: {"tasks": list(s.tasks), "about": s.about} for name, s in suites.SUITES.items()}
        print_json({"tasks": found, "suites": named, "steps": []})
        return
    for here in (True, False):
        click.echo("available here:" if here else "\nnot here yet:")
        for task in (t for t in found if t["available"] is here):
            items = f"{task['items']:>6,}" if task["items"] else f"{'':>6}"
            click.echo(f"  {task['name']:<18} {task['kind']:<12} {items} items  {task['where']}")
    click.echo("\nsuites:")
    for name, one in suites.SUITES.items():
        click.echo(f"  {name:<18} {one.about}")
    click.echo("\nAny task of lm-evaluation-harness: lm_eval:NAME. With worked examples: NAME@5.")
