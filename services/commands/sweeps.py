"""`cuvee suggest`: what to try next."""

from __future__ import annotations

from typing import Any

import click

from services.commands.common import json_option, print_json, store_option


@click.command()
@click.argument("run_or_recipe")
@store_option
@json_option
@click.option("--target", "targets", multiple=True, metavar="METRIC=VALUE", help="Ask how much data a score needs.")
@click.option("--arms", "count", default=3, show_default=True, type=click.IntRange(1), help="Arms to propose.")
def suggest(run_or_recipe: str, store: str, as_json: bool, targets: tuple[str, ...], count: int) -> None:
    """Propose the next arms of a search, or an amount of data, from what a run has found, and say how sure it is.

    Example: cuvee suggest my-sweep --target gold_loss.math=0.8
    """
    from services.store import Store
    from services.suggest import suggest as propose

    found = propose(Store(store), run_or_recipe, targets, count)
    if as_json:
        print_json(found)
    else:
        show(found)


def show(found: dict[str, Any]) -> None:
    """Proposals for people."""
    from services.suggest import snippet

    click.echo(f"run  {found['run']}")
    if found["arms"]:
        click.echo(f"\nnext arms ({found['sure']})")
        for i, arm in enumerate(found["arms"], 1):
            settings = ", ".join(f"{key}={value}" for key, value in arm["values"].items())
            expected = ", ".join(f"{m} {e['mean']:.4g} ± {e['sd']:.2g}" for m, e in arm["expected"].items())
            chance = f"; {arm['chance']:.0%} to beat the best" if arm["chance"] is not None else ""
            click.echo(f"  {i}. {settings}{f'  →  {expected}{chance}' if expected else ''}")
        click.echo(f"\nto run them, put this into the recipe:\n\n{snippet(found)}")
    for budget in found["budgets"]:
        line = f" ({budget['line']})" if budget["line"] else ""
        click.echo(f"{budget['metric']} over {budget['setting']}{line}: {budget['law']}, R² {budget['r2']:.2f}")
        click.echo(f"  {budget['target']:.4g} at {amount(budget)}; {budget['sure']}")


def amount(budget: dict[str, Any]) -> str:
    """The amount with its interval."""
    if budget["amount"] is None:
        return "no amount"
    ends = [f"{budget[end]:.4g}" if budget[end] is not None else "more than any" for end in ("low", "high")]
    return f"{budget['setting']} = {budget['amount']:.4g} (95%: {ends[0]} to {ends[1]})"
