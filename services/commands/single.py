"""What commands of single steps share: options, and the store, machine and terminal that they work with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cuvee.errors import UserError
from services.commands.recipes import log_file, tail

if TYPE_CHECKING:
    from services.single import Session

F = TypeVar("F", bound=Callable[..., Any])


@contextmanager
def session(store: str, name: str, *, as_json: bool = False, address: str | None = None) -> Iterator[Session]:
    """A session whose libraries write to a log; the log's end is shown when something breaks that is our fault."""
    from services.runtime import Runtime
    from services.single import Session
    from services.store import Store
    from services.terminal import quiet

    log = log_file(store, name)
    with quiet(log, json=as_json) as terminal:
        try:
            where = Store(store)
            with Runtime(where, address=address, log=log) as runtime:
                yield Session(where, runtime, terminal)
        except UserError:
            raise
        except BaseException as error:
            if not isinstance(error, KeyboardInterrupt):
                terminal.err.print(tail(log), markup=False, style="dim")
            terminal.err.print(f"log: {log}", markup=False)
            raise


def source_options(function: F) -> F:
    """`--shape` and `--column`, for data whose columns are not recognised."""
    function = click.option(
        "--column", "columns", multiple=True, metavar="OURS=THEIRS", help="Rename a column, e.g. question=problem."
    )(function)
    return click.option("--shape", default=None, help="Shape of the records, if it is not recognised: alpaca, qa, …")(
        function
    )


def pairs(values: Sequence[str], option: str) -> dict[str, str]:
    """`a=b` options as a map. Raises UserError."""
    found = {}
    for value in values:
        key, equals, other = value.partition("=")
        if not equals or not key or not other:
            raise UserError(f"{option} {value}: not of the form KEY=VALUE")
        found[key.strip()] = other.strip()
    return found
