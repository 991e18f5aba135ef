"""`cuvee select`: rows of plain files, chosen for a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cuvee.errors import UserError
from services.commands.common import address_option, json_option, print_json, store_option
from services.commands.single import pairs, session, source_options


@click.command()
@click.argument("pools", nargs=-1, metavar="POOL…")
@click.option("--method", help="random, longest, top, km_closest, km_random, kmq, k_center, deita, qdit or iterative.")
@click.option("--budget", help='Rows to choose: 100, or an amount as in a recipe ("1/10", "25%").')
@click.option("--clusters", metavar="K|auto", help="Clusters of the methods that use them.")
@click.option("--quality", metavar="NAME", help="A column of the data, length, cosine, or a scorer. Default: length.")
@click.option("--by", type=click.Choice(["source"]), help="Take the budget from each source.")
@click.option("--min-per-source", type=int, help="At least so many rows of each source.")
@click.option("--allocation", type=click.Choice(["size", "equal"]), help="Budget of a cluster. Default: size.")
@click.option("--with", "settings", multiple=True, metavar="KEY=VALUE", help="Another setting of the method.")
@click.option("--encoder", help="Encoder of the embedding: builtin:NAME, hub:org/name or a folder.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False), help="Where the chosen rows go: .jsonl, .json, .csv, .parquet.")
@click.option("--explain", metavar="ID", help="Say why a row was chosen or was not; without POOL, of the stored --out.")
@click.option("--recipe", type=click.Path(exists=True, dir_okay=False), help="Models and training settings come here.")
@click.option("--profile", "profiles", multiple=True, metavar="NAME", help="A profile of that recipe.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Set a key of that recipe.")
@source_options
@store_option
@address_option
@json_option
def select(
    pools: tuple[str, ...], out: str | None, explain: str | None, store: str, as_json: bool, **said: Any
) -> None:
    """Choose rows of POOL… (files, globs, folders, s3://, hub: or builtin: names) and write them to --out.

    The rows keep the input's format and get an `id`. Beside them go `<out>.selection.parquet` with the decision on
    every row, and `<out>.rejected.jsonl` with the rows that could not be used.

    Example: cuvee select pool.jsonl --method kmq --budget 100 --clusters 8 --seed 0 --out chosen.jsonl
    """
    from services import single_select

    if out is None:
        raise UserError("where to? --out is missing", remedy="--out chosen.jsonl")
    if not pools:
        if explain is None:
            raise UserError(
                "no POOL is given", remedy="cuvee select pool.jsonl --method kmq --budget 100 --out c.jsonl"
            )
        words = single_select.explain(single_select.stored_selection(Path(out)), explain)
        print_json({"explanation": words, "steps": []}) if as_json else click.echo(words)
        return
    request = _request(pools, Path(out), said)
    with session(store, "select", as_json=as_json, address=said["address"]) as work:
        found = single_select.select(work, request)
    words = single_select.explain(found.selection, explain, found.vectors) if explain else ""
    if as_json:
        counts = {"chosen": found.chosen, "pool": found.pool, "rejected": found.rejected, "quality": found.quality}
        print_json({**counts, "files": found.files, "explanation": words or None, "steps": work.steps})
        return
    by = f", quality {found.quality}" if found.quality else ""
    click.echo(f"{found.chosen:,} of {found.pool:,} rows by {request.method}{by}: {out}")
    click.echo(f"the decision on every row: {found.files['selection']}")
    if found.rejected:
        click.echo(f"{found.rejected} rows could not be used: {found.files['rejected']}")
    if words:
        click.echo(f"\n{words}")


def _request(pools: tuple[str, ...], out: Path, said: dict[str, Any]) -> Any:
    from services.single import yaml_value
    from services.single_select import SelectRequest

    for option in ("method", "budget"):
        if said[option] is None:
            raise UserError(f"--{option} is missing", remedy="--method kmq --budget 100")
    settings = {key: said[key] for key in ("quality", "by", "min_per_source", "allocation") if said[key] is not None}
    if said["clusters"] is not None:
        settings["clusters"] = int(said["clusters"]) if said["clusters"].isdigit() else said["clusters"]
    settings |= {key: yaml_value(text, "--with") for key, text in pairs(said["settings"], "--with").items()}
    return SelectRequest(
        pools,
        said["method"],
        said["budget"],
        out,
        seed=said["seed"],
        settings=settings,
        encoder=said["encoder"],
        shape=said["shape"],
        columns=pairs(said["columns"], "--column"),
        recipe=Path(said["recipe"]) if said["recipe"] else None,
        profiles=said["profiles"],
        overrides=said["overrides"],
    )
