"""A contrast over a column of a table, and answers exchanged by a recipe: neither asks a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services import results
from services.arms import expand
from services.broker import Broker
from services.plan import Plan, make_plan
from services.recipe import loads
from services.runtime import Runtime
from services.store import Store
from services.variants import Contrast

RECIPE = """
version: 1
data:
  pool: {from: %s, do: [{corrupt: $share}]}
  few: {from: pool, do: [{select: {method: longest, amount: 4 rows}}]}
let: {share: 1/2}
arms: {add: {half: {}, whole: {share: all}}}
repeat: {seeds: [0, 1], vary: [sample]}
contrasts: [{a: {arm: half}, b: {arm: whole}, metric: %s, expect: less}]
"""


def ran(tmp_path: Path, metric: str) -> tuple[Plan, Store]:
    file = tmp_path / "pool.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"q{i}", "completion": f"a{i}"}) + "\n" for i in range(8)))
    recipe = loads(RECIPE % (json.dumps(str(file)), metric))
    store = Store(str(tmp_path / "store"))
    plan = make_plan(recipe, expand(recipe), store, accelerator=False)
    with Runtime(store, log=tmp_path / "log") as runtime:
        Broker(store, runtime).run(plan.targets)
    return plan, store


def test_the_share_of_bad_rows_is_compared_by_seeds(tmp_path: Path) -> None:
    plan, store = ran(tmp_path, "rows.pool.corrupted")
    (found,) = results.contrasts(plan, store)
    assert found["a"] == [0.5, 0.5]
    assert found["b"] == [1.0, 1.0]
    assert found["mean"] == -0.5


@pytest.mark.parametrize(
    ("metric", "says"),
    [("rows.pool.corupted", "no column 'corupted'"), ("rows.pol.corrupted", "no table 'pol'")],
)
def test_what_is_not_there_is_named(tmp_path: Path, metric: str, says: str) -> None:
    plan, store = ran(tmp_path, metric)
    found: dict[str, Any] = results.collect(plan, store)
    assert says in found["contrasts"][0]["verdict"]


@pytest.mark.parametrize(
    ("expect", "p_holm", "says"),
    [
        ("less", 0.01, "as expected: less"),
        ("less", 0.097, "as expected: less, not after correction"),
        ("greater", 0.01, "against expectation: less"),
        ("different", 0.2, "different: less, not after correction"),
    ],
)
def test_a_verdict_says_when_the_correction_takes_it_back(expect: str, p_holm: float, says: str) -> None:
    contrast = Contrast.model_validate({"a": {"arm": "x"}, "b": {"arm": "y"}, "metric": "m", "expect": expect})
    assert results.verdict(contrast, {"mean": -0.17, "low": -0.34, "high": -0.01, "p_holm": p_holm}) == says
