from __future__ import annotations

import os

import pytest

from cuvee.environment import defaults


def test_settings_last_as_long_as_the_block_and_the_users_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUVEE_TRY_OWN", "user")
    monkeypatch.delenv("CUVEE_TRY_NEW", raising=False)
    with defaults({"CUVEE_TRY_OWN": "ours", "CUVEE_TRY_NEW": "ours"}):
        assert (os.environ["CUVEE_TRY_OWN"], os.environ["CUVEE_TRY_NEW"]) == ("user", "ours")
    assert os.environ["CUVEE_TRY_OWN"] == "user"
    assert "CUVEE_TRY_NEW" not in os.environ
