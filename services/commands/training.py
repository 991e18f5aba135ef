"""`cuvee compose`, `train`, `export`: a recipe's stages as lists, as models, and as data for other trainers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from cuvee.errors import UserError
from services.commands.common import address_option, json_option, print_json, recipe_options, store_option
from services.commands.single import session
from services.runs import find_run

F = TypeVar("F", bound=Callable[..., Any])


def stage_options(function: F) -> F:
    """`--arm`, `--stage` and `--out`."""
    function = click.option("--out", required=True, type=click.Path(file_okay=False), help="Folder to write to.")(
        function
    )
    function = click.option("--stage", default=None, help="Only this stage (and what it starts from).")(function)
    return click.option("--arm", default=None, help="Only this arm, when the recipe has several.")(function)


def plan_of(work: Any, recipe: str, profiles: tuple[str, ...], overrides: tuple[str, ...]) -> Any:
    """The plan of a recipe file over the session's store."""
    from services.run import Request, open_plan

    return open_plan(Request(Path(recipe), profiles, overrides), work.store, work.runtime.capacity)


@click.command()
@recipe_options
@stage_options
@store_option
@address_option
@json_option
def compose(recipe: str, out: str, store: str, as_json: bool, **said: Any) -> None:
    """Write the exact list of every stage of RECIPE: stage, epoch, position, id, target, source, tokens.

    With several arms there is a folder for each.

    Example: cuvee compose recipes/quickstart.yaml --out lists
    """
    from services.run import Lists
    from services.single_training import compose as make
    from services.single_training import parts

    with session(store, "compose", as_json=as_json, address=said["address"]) as work:
        plan = plan_of(work, recipe, said["profiles"], said["overrides"])
        found = make(work, parts(plan, Path(out), said["arm"], said["stage"]), Lists(work.terminal))
    if as_json:
        print_json({"out": out, "lists": found, "steps": work.steps})
        return
    for entry in found:
        click.echo(f"{entry['path']}: {entry['rows']:,} rows, {entry['tokens']:,} tokens")


@click.command()
@recipe_options
@stage_options
@store_option
@address_option
@json_option
def train(recipe: str, out: str, store: str, as_json: bool, **said: Any) -> None:
    """Train the stages of RECIPE and write each model as a Hugging Face folder, with `<stage>.metrics.jsonl`.

    Example: cuvee train recipes/quickstart.yaml --stage special --out models
    """
    from services.run import Lists
    from services.single_training import parts
    from services.single_training import train as make

    with session(store, "train", as_json=as_json, address=said["address"]) as work:
        plan = plan_of(work, recipe, said["profiles"], said["overrides"])
        found = make(work, parts(plan, Path(out), said["arm"], said["stage"]), Lists(work.terminal))
    if as_json:
        print_json({"out": out, "models": found, "steps": work.steps})
        return
    for entry in found:
        loss = f": loss {entry['final_loss']:.3f}" if entry["final_loss"] is not None else ""
        click.echo(f"{entry['path']}{loss}")


@click.command()
@click.argument("recipe_or_run")
@click.option(
    "--format",
    "form",
    type=click.Choice(["messages", "trl", "axolotl", "llama-factory"]),
    default="messages",
    show_default=True,
    help="The data alone, or with settings for this trainer.",
)
@click.option("--profile", "profiles", multiple=True, metavar="NAME", help="Overlay a profile, e.g. cpu.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Set a key of the recipe.")
@stage_options
@store_option
@address_option
@json_option
def export(recipe_or_run: str, form: str, out: str, store: str, as_json: bool, **said: Any) -> None:
    """Write the examples of each stage of a recipe, or of a stored run, as `messages` in the order of training.

    For other trainers, settings go beside them: the same rows, order, batches and rates; what they cannot say is
    written at the top.

    Example: cuvee export recipes/quickstart.yaml --format trl --out for-trl
    """
    from services.single_export import export as make
    from services.single_training import parts, plan_of_run

    with session(store, "export", as_json=as_json, address=said["address"]) as work:
        if Path(recipe_or_run).suffix in (".yaml", ".yml"):
            plan = plan_of(work, recipe_or_run, said["profiles"], said["overrides"])
        elif said["profiles"] or said["overrides"]:
            raise UserError("a stored run cannot be changed", remedy="give its recipe with --profile and --set")
        else:
            plan = plan_of_run(find_run(work.store, recipe_or_run), work)
        found = make(work, parts(plan, Path(out), said["arm"], said["stage"]), form, Path(out))
    if as_json:
        print_json({"out": out, "format": form, "stages": found, "steps": work.steps})
        return
    for entry in found:
        click.echo(f"{entry['data']}: {entry['rows']:,} examples")
        if "settings" in entry:
            click.echo(f"{entry['settings']}")
            for sentence in entry["different"]:
                click.echo(f"  not the same: {sentence}")
