"""Options and endings that commands share."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_STORE = "cuvee-store"


def recipe_options(function: F) -> F:
    """RECIPE with `--profile` and `--set`."""
    function = click.option(
        "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Set a key of the recipe, e.g. train.lr=1e-5."
    )(function)
    function = click.option(
        "--profile", "profiles", multiple=True, metavar="NAME", help="Overlay a profile, e.g. cpu; may be repeated."
    )(function)
    return click.argument("recipe", type=click.Path(exists=True, dir_okay=False))(function)


def store_option(function: F) -> F:
    """`--store`, else CUVEE_STORE, else ./cuvee-store."""
    return click.option(
        "--store",
        default=lambda: os.environ.get("CUVEE_STORE", DEFAULT_STORE),
        show_default=DEFAULT_STORE,
        help="Folder or s3://bucket/prefix of the artifacts.",
    )(function)


def json_option(function: F) -> F:
    """`--json`: one JSON object on standard output."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")(function)


def address_option(function: F) -> F:
    """`--address` of a Ray cluster."""
    return click.option(
        "--address", default=None, help="A Ray cluster to run on; without it a local one that ends with the command."
    )(function)


def request_options(function: Callable[..., None]) -> Callable[..., None]:
    """A recipe, a store, a cluster and `--json`: the command gets them as a `services.run.Request` and `as_json`."""

    @functools.wraps(function)
    def command(
        recipe: str, profiles: Sequence[str], overrides: Sequence[str], store: str, address: str | None, **own: Any
    ) -> None:
        from services.run import Request

        function(Request(Path(recipe), profiles, overrides, store, address), **own)

    return recipe_options(store_option(address_option(json_option(command))))


def print_json(value: Any) -> None:
    """The one object of `--json`."""
    click.echo(json.dumps(value, indent=1, default=str, ensure_ascii=False))
