"""Proposals from stored runs: of a search, of a grid, and of runs that have nothing to say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from cuvee.errors import UserError
from services.commands.sweeps import suggest as command
from services.suggest import snippet, suggest, sure
from tests import reports


def grid(folder: Path, values: list[float], amounts: tuple[int, ...] = (8, 16, 32, 64, 128, 256)) -> reports.Store:
    maker = reports.Maker(folder)
    arms = [reports.arm(f"n={n} rows", {"n": f"{n} rows"}) for n in amounts]
    scores = [
        reports.score("gold_loss.math", "base", value, arm=arm["name"], metric="loss")
        for arm, value in zip(arms, values, strict=True)
    ]
    return maker.save(arms, {"scores": scores}, recipe={"name": "grid"})


def law(n: float) -> float:
    return 0.5 + 4.0 * n**-0.6


def test_a_search_proposes_arms_of_its_space_and_how_likely_they_win(tmp_path: Path) -> None:
    found = suggest(reports.searched(tmp_path), "demo", count=2)
    assert len(found["arms"]) == 2
    for arm in found["arms"]:
        assert sum(int(arm["values"][k].split()[0]) for k in ("math", "chat")) == 200
        assert 1e-5 <= arm["values"]["lr"] <= 1e-3
        assert 0 <= arm["chance"] <= 1
    assert "left out in turn" in found["sure"]
    pasted = yaml.safe_load(snippet(found))
    assert pasted["arms"]["add"]["next-1"] == found["arms"][0]["values"]


def test_a_grid_says_how_much_data_a_target_needs(tmp_path: Path) -> None:
    store = grid(tmp_path, [law(n) for n in (8, 16, 32, 64, 128, 256)])
    (budget,) = suggest(store, "demo", ["gold_loss.math=0.6"])["budgets"]
    exact = ((0.6 - 0.5) / 4.0) ** (-1 / 0.6)
    assert budget["amount"] == pytest.approx(exact, rel=0.25)
    assert (budget["setting"], budget["tried"]["to"]) == ("n", 256)
    assert budget["sure"].startswith("sure as far as it goes")


def test_doubts_are_said(tmp_path: Path) -> None:
    noisy = grid(tmp_path, [1.0, 1.4, 0.9, 1.3, 1.1, 0.2])
    (budget,) = suggest(noisy, "demo", ["gold_loss.math=0.1"])["budgets"]
    assert budget["sure"].startswith("not sure: ")
    found = {"check": None, "r2": 0.4}
    assert sure(found, 5000.0, 100.0, 0.5) == (
        "not sure: too few amounts to leave one out; it explains little (R² 0.40); it is 50 times more than was tried; "
        "50% of the resampled curves never reach it"
    )


@pytest.mark.parametrize(
    ("targets", "what"),
    [(["gold_loss.math"], "not METRIC=VALUE"), (["gold_loss.maht=1"], 'did you mean "gold_loss.math"')],
)
def test_faults(tmp_path: Path, targets: list[str], what: str) -> None:
    with pytest.raises(UserError, match=what):
        suggest(grid(tmp_path, [law(n) for n in (8, 16, 32, 64, 128, 256)]), "demo", targets)


def test_a_run_without_four_amounts_has_nothing_to_go_by(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to go by"):
        suggest(grid(tmp_path, [1.0, 0.9, 0.8], (8, 16, 32)), "demo")


def test_the_command_prints_both_forms(tmp_path: Path) -> None:
    store = reports.searched(tmp_path)
    plain = CliRunner().invoke(command, ["demo", "--store", store.url])
    assert plain.exit_code == 0, plain.output
    assert "next arms" in plain.output
    assert "next-1:" in plain.output
    found = json.loads(CliRunner().invoke(command, ["demo", "--store", store.url, "--json"]).output)
    assert set(found) >= {"run", "arms", "budgets", "sure", "trust"}
