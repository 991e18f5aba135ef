"""`cuvee submit`, `jobs`, `status`, `logs`, `stop`: recipes on a Ray cluster."""

from __future__ import annotations

import datetime
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from cuvee.errors import UserError
from services.commands.common import json_option, print_json, recipe_options

F = TypeVar("F", bound=Callable[..., Any])


def dashboard_option(function: F) -> F:
    """`--address`, else RAY_API_SERVER_ADDRESS, else this end of a tunnel."""
    return click.option(
        "--address",
        default=lambda: os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265"),
        show_default="http://127.0.0.1:8265",
        help="The cluster's dashboard.",
    )(function)


@click.command()
@recipe_options
@dashboard_option
@click.option("--store", default=None, help="s3://bucket/prefix, or an absolute path that the cluster sees.")
@json_option
@click.option("--follow/--no-follow", default=True, help="Show the log until the job has ended.")
@click.option(
    "--check/--no-check",
    default=True,
    help="Look from inside first: data, models, store, tracking server, versions.",
)
@click.option("--max-mb", default=50.0, show_default=True, help="Refuse to send more than this.")
def submit(
    recipe: str,
    profiles: tuple[str, ...],
    overrides: tuple[str, ...],
    address: str,
    store: str | None,
    as_json: bool,
    follow: bool,
    check: bool,
    max_mb: float,
) -> None:
    """Send RECIPE to a Ray cluster and follow it. Send it again to follow a live job, or to continue an ended one.

    Example: cuvee submit recipes/quickstart.yaml --address http://127.0.0.1:8265 --store s3://bucket/cuvee
    """
    from services.arms import expand
    from services.jobs import Cluster, Order, check_store, entrypoint
    from services.parcel import pack
    from services.recipe import load

    document = load(recipe, profiles, overrides)
    arms = [arm.document for arm in expand(document)]
    place = store or document.store or os.environ.get("CUVEE_STORE")
    if not place:
        raise UserError("the job has no store", remedy="give --store s3://… or an absolute path that the cluster sees")
    tracking = document.tracking or os.environ.get("MLFLOW_TRACKING_URI", "")
    cluster = Cluster(address, same_version=True)
    check_store(place)
    with tempfile.TemporaryDirectory(prefix="cuvee-job-") as folder:
        parcel = pack(Path(recipe), profiles, arms, Path(folder), max_mb=max_mb)
        click.echo(f"sends {len(parcel.files)} files, {parcel.size / 1e6:.2f} MB, and Cuvee itself", err=True)
        for path in parcel.elsewhere:
            click.echo(f"needs {path} on the cluster", err=True)
        order = Order(
            hash=document.hash,
            recipe=document.name,
            store=place,
            command=entrypoint(parcel, overrides, place),
            folder=parcel.folder,
            packages=parcel.packages,
            variables={} if document.tracking or not tracking else {"MLFLOW_TRACKING_URI": tracking},
        )
        if check and not cluster.live(order):
            look(cluster, order, parcel, overrides)
        name, new = cluster.submit(order)
    click.echo(f"{name} {'started' if new else 'is running already'} at {cluster.address}", err=True)
    finish(cluster, name, as_json=as_json, follow=follow)


def look(cluster: Any, order: Any, parcel: Any, overrides: tuple[str, ...]) -> None:
    """UserError with all that stands against the job, as seen from the cluster."""
    from services.probe import versions

    asked = {
        "recipe": parcel.recipe,
        "profiles": list(parcel.profiles),
        "overrides": list(overrides),
        "start": parcel.start,
        "store": order.store,
        "versions": versions(),
    }
    found = cluster.probe(order, asked)
    if found:
        listed = "".join(f"\n  {text}" for text in found)
        raise UserError(f"the cluster cannot run this:{listed}", remedy="--no-check submits all the same")


@click.command()
@dashboard_option
@json_option
def jobs(address: str, as_json: bool) -> None:
    """List the jobs that were submitted to a cluster, oldest first.

    Example: cuvee jobs --address http://127.0.0.1:8265
    """
    from services.jobs import Cluster

    found = Cluster(address).jobs()
    if as_json:
        print_json({"jobs": found})
        return
    for job in found:
        click.echo(
            f"{job['job']:<24} {job['status']:<10} {when(job['started'])}  {seconds(job)}  {job['recipe'] or ''}"
        )
    if not found:
        click.echo("no jobs")


@click.command()
@click.argument("job")
@dashboard_option
@json_option
def status(job: str, address: str, as_json: bool) -> None:
    """Show the state of JOB: an id, or the beginning of one for its last attempt.

    Example: cuvee status cuvee-3b57911132fb --json
    """
    from services.jobs import Cluster

    found = Cluster(address).job(job)
    if as_json:
        print_json(found)
        return
    click.echo(f"{found['job']}: {found['status']} after {seconds(found)}, started {when(found['started'])}")
    click.echo(f"recipe {found['recipe']}, store {found['store']}\n{found['message'] or ''}")


@click.command()
@click.argument("job")
@dashboard_option
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended, and end with its status.")
def logs(job: str, address: str, follow: bool) -> None:
    """Show the log of JOB.

    Example: cuvee logs cuvee-3b57911132fb -f
    """
    from services.jobs import Cluster

    cluster = Cluster(address)
    name = cluster.job(job)["job"]
    if follow:
        finish(cluster, name, as_json=False, follow=True)
    else:
        click.echo(cluster.logs(name), nl=False)


@click.command()
@click.argument("job")
@dashboard_option
@json_option
def stop(job: str, address: str, as_json: bool) -> None:
    """End JOB. What it has finished stays in the store; submit the recipe again to continue.

    Example: cuvee stop cuvee-3b57911132fb
    """
    from services.jobs import Cluster

    cluster = Cluster(address)
    found = cluster.stop(cluster.job(job)["job"])
    if as_json:
        print_json(found)
    else:
        click.echo(f"{found['job']}: {found['status']}")


def finish(cluster: Any, name: str, *, as_json: bool, follow: bool) -> None:
    """Follow a job if asked, say how it stands, and end with its status."""
    found = cluster.job(name)
    if follow:
        # With --json, standard output has one object alone.
        stream = sys.stderr if as_json else sys.stdout
        try:
            found = cluster.follow(name, lambda text: click.echo(text, file=stream, nl=False))
        except KeyboardInterrupt:
            where = f"--address {cluster.address}"
            click.echo(f"\n{name} goes on: `cuvee logs {name} -f {where}`, `cuvee stop {name} {where}`", err=True)
            raise click.exceptions.Exit(130) from None
    if as_json:
        print_json({**found, "address": cluster.address})
    elif follow:
        click.echo(f"{name}: {found['status']} after {seconds(found)}", err=True)
        if found["status"] == "FAILED":
            click.echo(found["message"] or "", err=True)
    if code := found["exit_code"]:
        raise click.exceptions.Exit(code)


def when(stamp: float | None) -> str:
    """A time for people."""
    if stamp is None:
        return "not yet".ljust(19)
    return datetime.datetime.fromtimestamp(stamp).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def seconds(job: dict[str, Any]) -> str:
    """How long a job has run."""
    return "-" if job["seconds"] is None else f"{job['seconds']:.0f} s"
