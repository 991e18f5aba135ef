"""The front door: names of commands, and how any of them ends.

Exit codes: 0 done, 1 our fault, 2 the user's, 130 interrupted. A command's module is imported only when it is called,
so that `cuvee --help` is instant.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

from cuvee import __version__
from cuvee.errors import CuveeError

COMMANDS = {
    "init": ("recipes", "Write a commented starter recipe."),
    "plan": ("recipes", "Show the steps of a recipe, what is done, and what the rest will cost."),
    "run": ("recipes", "Run a recipe; finished steps are reused."),
    "noise": ("recipes", "How much the scores of a recipe move with its seeds, and what that hides."),
    "report": ("recipes", "Write the report of a run again, as HTML, Markdown or JSON."),
    "suggest": ("sweeps", "Propose the next arms, or an amount of data, from what a run has found."),
    "submit": ("jobs", "Send a recipe to a Ray cluster and follow it."),
    "jobs": ("jobs", "List the jobs of a cluster."),
    "status": ("jobs", "Show the state of a job."),
    "logs": ("jobs", "Show or follow the log of a job."),
    "stop": ("jobs", "Stop a job."),
    "diff": ("looking", "What differs between two runs, and whether it is more than noise."),
    "lineage": ("looking", "Which rows made a model; which models saw a row."),
    "ui": ("looking", "Open the MLflow pages of a store."),
    "doctor": ("doctor", "Check this machine, and say what to do about each finding."),
    "store": ("store", "List, prune and accept artifacts."),
    "select": ("select", "Choose rows of files."),
    "respond": ("respond", "Choose each row's target: own answer, paraphrase or gold."),
    "judge": ("respond", "Judge predictions against references."),
    "mask": ("mask", "Show which tokens carry loss."),
    "compose": ("training", "Write the exact list of rows of every stage."),
    "train": ("training", "Train the stages of a recipe."),
    "export": ("training", "Write data and settings for other trainers."),
    "evaluate": ("evaluate", "Score a model on tasks."),
}


class Lazy(click.Group):
    """A group whose commands are imported when they are called; help texts of the list come from `COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"services.commands.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from cuvee.errors import UserError, nearest

            raise UserError(f"unknown command {args[0]!r}", remedy=nearest(args[0], COMMANDS))
        return super().resolve_command(ctx, args)


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cuvee")
def cuvee() -> None:
    """Find the blend of fine-tuning data for a model: which rows, how much, in which order, with which targets."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and end the process with its exit code."""
    _environment()
    # A job that is ended (SIGTERM) puts its processes away like one that is interrupted.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in arguments
    code = 0
    try:
        # Without standalone mode click hands back the code of an Exit; commands themselves return nothing.
        code = cuvee.main(arguments, prog_name="cuvee", standalone_mode=False) or 0
    except (KeyboardInterrupt, click.exceptions.Abort):
        code = _say("interrupted; finished steps are kept, run the same command again to continue", 130, as_json)
    except click.ClickException as error:
        code = _say(error.format_message(), 2, as_json)
    except CuveeError as error:
        code = _say(str(error), error.exit_code, as_json)
    except BrokenPipeError:
        # The reader (head, less) has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        code = _say(_unexpected(error), 1, as_json)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def _environment() -> None:
    """Settings that must stand before torch or Ray are loaded; what the user has set stays."""
    from services.environment import quiet_environment

    quiet_environment()


def _say(message: str, code: int, as_json: bool) -> int:
    from services.redact import redact

    text = redact(message)
    if as_json:
        click.echo(json.dumps({"error": text, "exit_code": code}))
    else:
        click.echo(f"cuvee: {text}", err=True)
    return code


def _unexpected(error: Exception) -> str:
    """An error that nobody foresaw: its last lines here, all of it in a file."""
    import tempfile

    with tempfile.NamedTemporaryFile("w", prefix="cuvee-error-", suffix=".log", delete=False) as file:
        traceback.print_exception(error, file=file)
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "site-packages" not in f.filename]
    place = f" at {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
    text = str(error).strip().splitlines()
    last = text[-1] if text else ""
    return f"{type(error).__name__}{place}: {last}\n  this is a fault of Cuvee; the whole trace is in {file.name}"


if __name__ == "__main__":
    main()
