"""`cuvee respond` and `cuvee judge`: targets and verdicts over plain files."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from cuvee.errors import UserError
from services.commands.common import address_option, json_option, print_json, store_option
from services.commands.single import pairs, session, source_options

MODEL_HELP = "A built-in name, hub:org/name, or a folder (also one that another trainer made)."
JUDGE_HELP = (
    "numeric, choice, text, code, llm, reward, or as in a recipe: '{text: contains}', '{tiers: [numeric, llm]}'."
)


@click.command()
@click.argument("pools", nargs=-1, required=True, metavar="POOL…")
@click.option("--model", required=True, help=MODEL_HELP)
@click.option("--policy", default="s3ft", show_default=True, help="gold, ssr, sdft, s3ft, model_only, rft or best_of.")
@click.option("--judge", help=JUDGE_HELP)
@click.option("--max-new-tokens", type=int, help="Longest answer, in tokens.")
@click.option("--with", "settings", multiple=True, metavar="KEY=VALUE", help="Another key of respond, as in a recipe.")
@click.option("--template", help="Chat template in place of the model's: a Jinja file.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="Where the rows go: .jsonl, .parquet, …")
@source_options
@store_option
@address_option
@json_option
def respond(pools: tuple[str, ...], model: str, out: str, store: str, as_json: bool, **said: Any) -> None:
    """Choose the target of each row of POOL…: the model's own answer, its paraphrase of the gold, or the gold.

    The rows are written as conversations (`messages`). Beside them goes `<out>.responses.parquet`: own answer,
    paraphrase, both verdicts, what was chosen, by which judge and decoding.

    Example: cuvee respond pool.jsonl --model smollm2-135m-instruct --policy s3ft --judge numeric --out new.jsonl
    """
    from services import single_respond
    from services.single import yaml_value

    settings = {key: yaml_value(text, "--with") for key, text in pairs(said["settings"], "--with").items()}
    if said["max_new_tokens"]:
        decoding = settings.get("decoding")
        given = decoding if isinstance(decoding, dict) else {}
        settings["decoding"] = {**given, "max_new_tokens": said["max_new_tokens"]}
    request = single_respond.RespondRequest(
        pools,
        model,
        said["policy"],
        yaml_value(said["judge"], "--judge") if said["judge"] else None,
        Path(out),
        seed=said["seed"],
        settings=settings,
        template=said["template"],
        shape=said["shape"],
        columns=pairs(said["columns"], "--column"),
    )
    with session(store, "respond", as_json=as_json, address=said["address"]) as work:
        found = single_respond.respond(work, request)
    if as_json:
        counts = {"rows": found.rows, "rejected": found.rejected, "composition": found.composition}
        print_json({**counts, "files": found.files, "steps": work.steps})
        return
    for line in found.composition:
        if line["source"] != "all" or len(found.composition) > 2:
            shares = ", ".join(f"{name} {line[name]}" for name in ("model", "paraphrase", "gold", "dropped"))
            click.echo(f"{line['source']}: {line['rows']} rows: {shares}")
    click.echo(f"{found.rows:,} rows: {out}")
    click.echo(f"where each target comes from: {found.files['responses']}")
    if found.rejected:
        click.echo(f"{found.rejected} rows could not be used: {found.files['rejected']}")


@click.command()
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False))
@click.option("--judge", "name", required=True, help=JUDGE_HELP)
@click.option("--out", type=click.Path(dir_okay=False), help="Where the rows go, with verdict and reason: .jsonl.")
@click.option("--calibrate", type=click.Path(exists=True, dir_okay=False), help="Rows with a person's `label`.")
@click.option("--model", help=f"For a judge that asks a model. {MODEL_HELP}")
@store_option
@address_option
@json_option
def judge(
    file: str | None,
    name: str,
    out: str | None,
    calibrate: str | None,
    model: str | None,
    store: str,
    address: str | None,
    as_json: bool,
) -> None:
    """Judge the rows of FILE: `prompt`, `prediction`, and `reference` (or `tests`, a list of asserts).

    The rows are written to --out with `verdict` (equivalent, different, unsure) and `reason`. With --calibrate, the
    judge is compared with people: accuracy, abstention, Cohen's kappa; the figures are kept in the store.

    Example: cuvee judge answers.jsonl --judge numeric --out judged.jsonl
    """
    from services import single_respond
    from services.single import MODEL, yaml_value
    from services.store import Store

    if file is None and calibrate is None:
        raise UserError("nothing to judge", remedy="give a FILE, or --calibrate FILE")
    if file is not None and out is None:
        raise UserError("where to? --out is missing", remedy="--out judged.jsonl")
    written = yaml_value(name, "--judge")
    found: dict[str, Any] = {}
    models = [model or name if name == MODEL else name for name in single_respond.asked_models(written)]
    with session(store, "judge", as_json=as_json, address=address) if models else nullcontext() as work:
        built = single_respond.build_judge(written, model, work)
        if calibrate is not None:
            folder = Store(store).scratch / "judges"
            figures, kept = single_respond.calibrate(built, Path(calibrate), folder, models)
            found |= {"calibration": figures, "calibration_file": str(kept)}
        if file is not None and out is not None:
            found |= {"verdicts": single_respond.judge_file(Path(file), built, Path(out)), "out": out}
    if as_json:
        print_json({**found, "judge": f"{built.name}@{built.version}", "steps": work.steps if work else []})
        return
    if "calibration" in found:
        click.echo(_calibrated(found["calibration"]) + f"\nkept in {found['calibration_file']}")
    if "verdicts" in found:
        click.echo(", ".join(f"{count} {label}" for label, count in found["verdicts"].items()) + f": {out}")


def _asked(models: Sequence[str]) -> str:
    return f" by {', '.join(models)}" if models else ""


def _calibrated(figures: dict[str, Any]) -> str:
    return (
        f"{figures['judge']}@{figures['version']}{_asked(figures['models'])} against {figures['rows']} labels:"
        f" decided {figures['decided']}"
        f" (abstention {figures['abstention']:.1%}), accuracy {figures['accuracy']:.3f}, kappa {figures['kappa']:.3f}"
        f"; accepted wrongly {figures['false_accepts']}, rejected wrongly {figures['false_rejects']}"
    )
