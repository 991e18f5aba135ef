"""How a command ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

import click
import pytest

from cuvee.errors import CuveeError, UserError
from services import cli


def ending(act: Callable[[], None], monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    """The exit code of a command that does `act`."""
    module = ModuleType("services.commands.probe")
    module.probe = click.command()(click.option("--json", is_flag=True)(lambda json: act()))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.COMMANDS, "probe", ("probe", ""))
    with pytest.raises(SystemExit) as end:
        cli.main(["probe", *options])
    assert isinstance(end.value.code, int)
    return end.value.code


def raising(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (click.exceptions.Exit(7), 7),  # the code of a job, or of findings
        (click.UsageError("no"), 2),
        (UserError("no"), 2),
        (CuveeError("no"), 1),
        (KeyError("no"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ending(raising(error), monkeypatch) == code
    assert ending(lambda: None, monkeypatch) == 0


def test_an_error_is_one_object_with_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    assert ending(raising(UserError("bad", remedy="do")), monkeypatch, "--json") == 2
    assert json.loads(capsys.readouterr().out) == {"error": "bad (do)", "exit_code": 2}
