"""`cuvee diff`, `lineage`, `ui`: looking at what is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cuvee.errors import Unavailable, UserError
from services.commands.common import json_option, print_json, store_option


@click.command()
@click.argument("a")
@click.argument("b")
@store_option
@json_option
@click.option("--format", "form", type=click.Choice(["md", "json"]), default="md", show_default=True)
def diff(a: str, b: str, store: str, as_json: bool, form: str) -> None:
    """What differs between runs A and B (names, beginnings of names, or RUN:ARM), and whether it is more than noise.

    Example: cuvee diff quickstart-3b57 quickstart-91ac
    """
    from services.diff import diff as compare
    from services.diff_text import markdown
    from services.store import Store

    found = compare(Store(store), a, b)
    if as_json or form == "json":
        print_json(found)
    else:
        click.echo(markdown(found))


@click.command()
@click.argument("model_or_row")
@store_option
@json_option
@click.option("--rows", type=click.Path(dir_okay=False), help="Write the whole list of a model's rows, as Parquet.")
def lineage(model_or_row: str, store: str, as_json: bool, rows: str | None) -> None:
    """Which rows made a model (RUN:ARM:STAGE, or its key), or which models saw a row (its id, or the beginning of it).

    Example: cuvee lineage quickstart:main:general --rows rows.parquet
    """
    from services import lineage as models
    from services import row_lineage
    from services.store import Store

    where = Store(store)
    if row_lineage.is_row(model_or_row):
        if rows:
            raise UserError("--rows is for a model", remedy="leave it out, or name RUN:ARM:STAGE")
        found = row_lineage.of_row(where, model_or_row)
        show = show_row
    else:
        found = models.of_model(where, models.find_model(where, model_or_row), Path(rows) if rows else None)
        show = show_model
    if as_json:
        print_json(found)
        return
    show(found)
    if rows:
        click.echo(f"\nrows  {rows}")


@click.command()
@store_option
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535))
@click.option("--host", default="127.0.0.1", show_default=True, help="Interface to listen on.")
@click.option("--allow-remote", is_flag=True, help="Let other machines reach it; MLflow asks nobody for a password.")
def ui(store: str, port: int, host: str, allow_remote: bool) -> None:
    """Serve the MLflow pages of a store until Ctrl-C.

    Example: cuvee ui --port 5001
    """
    from services.store import Store
    from services.tracking import default_uri
    from services.ui import address, is_loopback, server

    if not is_loopback(host) and not allow_remote:
        raise UserError(
            f"{host} can be reached from other machines, and MLflow asks nobody for a password",
            remedy="use an ssh tunnel (ssh -L 5000:127.0.0.1:5000 HOST), or add --allow-remote",
        )
    where = Store(store)
    uri = default_uri(where.scratch)
    if uri.startswith(("http://", "https://")):
        click.echo(f"runs go to an MLflow server that is up already: {uri}")
        return
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise UserError(f"no run has been tracked in {where.url}", remedy="run a recipe first, or give another --store")
    try:
        with server(uri, where.scratch, host=host, port=port) as process:
            click.echo(f"MLflow  {address(host, port)}  (Ctrl-C ends it)")
            process.wait()
    except KeyboardInterrupt:
        click.echo("")
    else:
        raise Unavailable("MLflow's server has ended", remedy=f"its log is {where.scratch / 'mlflow-ui.log'}")


def show_model(found: dict[str, Any]) -> None:
    """A model's history as tables."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    click.echo(f"model  {found['model']}\nbase   {found['base']['model']} ({found['base']['key']})")
    for use in found["used_by"]:
        click.echo(f"used   {use['run']} · {use['arm']} · {use['stage']}")
    click.echo(f"rows   {found['rows']:,} different ones in {len(found['stages'])} stages")
    console = Console(soft_wrap=True, highlight=False)
    for stage in found["stages"]:
        click.echo(
            f"\n{stage['stage']}: {stage['exposures']:,} positions, {stage['rows']:,} rows, {stage['epochs']} epochs, "
            f"{stage['tokens']:,} tokens ({stage['train']})"
        )
        table = Table(box=None, pad_edge=False, header_style="dim")
        names = ("table", "source", "exposures", "rows", "most", "own", "paraphrase", "gold")
        for name in names:
            table.add_column(name, justify="left" if name in ("table", "source") else "right")
        for line in stage["sources"]:
            table.add_row(*(Text(str(line[name])) for name in names))
        console.print(table)
        for target in stage["targets"]:
            if target["judge"]:
                click.echo(
                    f"  {target['table']}: {target['rows']:,} targets {target['chosen']}, "
                    f"verdict {target['verdict']} by {target['judge']} {target['judge_version']}"
                )


def show_row(found: dict[str, Any]) -> None:
    """A row's way through the store. Texts are quoted: they come from data and models."""
    click.echo(f"row     {found['id']}\nsource  {found['source']}")
    click.echo(f"prompt  {quoted(found['messages'][0]['content'])}\ngold    {quoted(found['gold'])}")
    for step in found["steps"]:
        figures = {k: v for k, v in step["figures"].items() if not isinstance(v, str) or len(v) <= 40}
        click.echo(f"\n{step['label']}: {step['what']} ({step['key']})")
        if figures:
            click.echo(f"  {', '.join(f'{k} {shown(v)}' for k, v in figures.items())}")
    for seen in found["seen"]:
        places = ", ".join(f"epoch {p['epoch']} position {p['position']}" for p in seen["positions"][:8])
        more = "" if seen["times"] <= 8 else f" and {seen['times'] - 8} more"
        click.echo(f"\n{seen['stage']}: {seen['times']} times as row of {seen['table']} ({seen['list']})")
        click.echo(f"  {places}{more}")
        by = f", verdict {seen['verdict']} by {seen['judge']}" if seen["judge"] else ""
        click.echo(f"  target {seen['target']} ({seen['chosen']}{by}): {quoted(seen['text'])}")
    if not found["models"]:
        click.echo("\nno model of this store saw it")
    for model in found["models"]:
        uses = "; ".join(f"{use['run']} · {use['arm']} · {use['stage']}" for use in model["used_by"])
        how = "trained on it" if model["directly"] else "started from a model that was"
        click.echo(f"\n{model['model']}: {how}{f' ({uses})' if uses else ''}")


def quoted(text: str | None, limit: int = 160) -> str:
    """A text on one line, without control characters."""
    whole = text or ""
    return json.dumps(whole[:limit] + ("…" if len(whole) > limit else ""), ensure_ascii=False)


def shown(value: Any) -> str:
    """A figure for people."""
    return f"{value:.4g}" if isinstance(value, float) else quoted(value) if isinstance(value, str) else str(value)
