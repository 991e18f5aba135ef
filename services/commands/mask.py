"""`cuvee mask`: which tokens carry loss, seen on the data itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from services.commands.common import json_option, print_json, store_option
from services.commands.respond import MODEL_HELP
from services.commands.single import pairs, session, source_options


@click.command()
@click.argument("data")
@click.option("--model", required=True, help=MODEL_HELP)
@click.option("--objective", default="sft", show_default=True, help="sft, im, wit, all, or as in a recipe.")
@click.option("--limit", type=click.IntRange(min=1), default=3, show_default=True, help="First so many rows.")
@click.option("--html", type=click.Path(dir_okay=False), help="Write a page with the same instead.")
@click.option("--template", help="Chat template in place of the model's: a Jinja file.")
@source_options
@store_option
@json_option
def mask(data: str, model: str, html: str | None, store: str, as_json: bool, **said: Any) -> None:
    """Show the tokens of the first rows of DATA: role as colour, weight in the loss as intensity and underline.

    Example: cuvee mask pool.jsonl --model smollm2-135m-instruct --objective im --limit 2
    """
    from services import single_mask
    from services.single import yaml_value

    request = single_mask.MaskRequest(
        data,
        model,
        yaml_value(said["objective"], "--objective"),
        said["limit"],
        template=said["template"],
        shape=said["shape"],
        columns=pairs(said["columns"], "--column"),
    )
    with session(store, "mask", as_json=as_json) as work:
        entries = single_mask.mask(work, request)
    if html:
        from services.preview import to_html
        from services.single_files import whole

        with whole(Path(html)) as partial:
            partial.write_text(to_html(entries), encoding="utf-8")
    if as_json:
        print_json({"rows": entries, "html": html, "steps": work.steps})
    elif html:
        click.echo(f"wrote {html}")
    else:
        from rich.console import Console

        from services.preview import to_terminal

        to_terminal(entries, Console(highlight=False))
