"""`cuvee store`: what is there, what nothing needs, and versions that were declared equal."""

from __future__ import annotations

import datetime
from typing import Any

import click

from cuvee.errors import UserError, nearest
from services.commands.common import json_option, print_json, store_option
from services.graph import known_steps
from services.steps import get
from services.store import Store


@click.group()
def store() -> None:
    """List, prune and accept artifacts."""


@store.command("list")
@store_option
@json_option
@click.option("--step", default=None, help="Only artifacts of this step, e.g. train.")
def list_(store: str, as_json: bool, step: str | None) -> None:
    """List finished artifacts, oldest first, and stored runs.

    Example: cuvee store list --step train
    """
    where = Store(store)
    found: list[dict[str, Any]] = [
        {
            "key": done.key,
            "step": done.step,
            "bytes": where.objects.size(f"artifacts/{done.key}"),
            "seconds": done.seconds,
            "made": datetime.datetime.fromtimestamp(done.made, datetime.UTC).isoformat(timespec="seconds"),
            "path": where.where(done.key),
        }
        for done in where.artifacts()
        if step in (None, done.step)
    ]
    runs = {name: run["status"] for name, run in where.runs().items()}
    if as_json:
        print_json({"artifacts": found, "runs": runs})
        return
    for item in found:
        click.echo(f"{item['made']}  {size(item['bytes']):>9}  {item['seconds']:>8.1f} s  {item['key']}")
    total = sum(item["bytes"] for item in found)
    click.echo(
        f"{len(found)} artifacts, {size(total)}; runs: {', '.join(f'{n} ({s})' for n, s in runs.items()) or '-'}"
    )


@store.command()
@store_option
@json_option
@click.option("--yes", is_flag=True, help="Delete. Without it nothing is changed.")
@click.option("--forget", multiple=True, metavar="RUN", help="A stored run whose artifacts need not be kept.")
def prune(store: str, as_json: bool, yes: bool, forget: tuple[str, ...]) -> None:
    """Show (or with --yes delete) what no stored run reaches.

    Example: cuvee store prune --forget quickstart-1a2b3c --yes
    """
    where = Store(store)
    names = where.runs()
    for name in forget:
        if name not in names:
            raise UserError(f"no run {name!r}", remedy=nearest(name, names))
    doomed = where.prune(dry_run=not yes, forget=forget)
    if as_json:
        print_json({"deleted": yes, "items": [{"name": name, "bytes": count} for name, count in doomed]})
        return
    for name, count in doomed:
        click.echo(f"{size(count):>9}  {name}")
    total = size(sum(count for _, count in doomed))
    click.echo(f"{len(doomed)} items, {total} {'deleted' if yes else 'would be deleted; add --yes'}")


@store.command()
@store_option
@click.argument("step")
@click.argument("old")
@click.argument("new")
def accept(store: str, step: str, old: str, new: str) -> None:
    """Declare that version NEW of STEP gives the same result as OLD, so that its artifacts serve.

    Example: cuvee store accept train 1 2
    """
    if step not in known_steps():
        raise UserError(f"unknown step {step!r}", remedy=nearest(step, known_steps()))
    if get(step).version != new:
        raise UserError(f"{step} is at version {get(step).version}, not {new}")
    if old == new:
        raise UserError("the two versions are the same")
    Store(store).accept(step, old, new)
    click.echo(f"{step}: artifacts of version {old} serve for version {new}")


def size(count: int) -> str:
    """Bytes for people."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
