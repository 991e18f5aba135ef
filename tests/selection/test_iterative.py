from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee import rows
from cuvee.errors import DataError, UserError
from selection.iterative import IterateConfig, differences, init, propose, share, update, weights
from selection.methods import needs


def pool(sizes: list[int], seed: int = 0) -> pa.Table:
    """Rows of clusters 0, 1, … with so many rows each, and a quality."""
    n = sum(sizes)
    chats = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}]}
        for i in range(n)
    ]
    table = rows.make_table("s", chats)
    draw = np.random.default_rng(seed)
    table = table.append_column("cluster", pa.array(np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)))
    return table.append_column("score.q", pa.array(draw.random(n) + 0.01))


def config(amount: str = "30 rows", **more: Any) -> IterateConfig:
    return IterateConfig.model_validate({"amount": amount, "quality": "q"} | more)


def scores(selection: pa.Table, by_cluster: dict[int, float], only: int | None = None) -> pa.Table:
    """A difference for the selected rows (of round `only`) of the clusters that are in `by_cluster`."""
    chosen = selection.filter(selection["selected"]).to_pylist()
    kept = [r for r in chosen if r["cluster"] in by_cluster and (only is None or r["round"] == only)]
    return pa.table(
        {"id": [r["id"] for r in kept], "difference": pa.array([by_cluster[r["cluster"]] for r in kept], pa.float64())}
    )


def run(
    table: pa.Table, setting: IterateConfig, by_cluster: dict[int, float], seed: int = 0
) -> tuple[pa.Table, pa.Table]:
    selection, state = init(table, setting)
    for number in range(1, setting.rounds + 1):
        selection, state = propose(selection, state, setting, seed=seed)
        if number < setting.rounds:
            state = update(selection, state, scores(selection, by_cluster), setting)
    return selection, state


def drawn(state: pa.Table, number: int) -> list[int]:
    return [r["drawn"] for r in state.to_pylist() if r["round"] == number]


def weight(state: pa.Table, number: int) -> list[float]:
    return [r["weight"] for r in state.to_pylist() if r["round"] == number]


def test_two_rounds_by_hand() -> None:
    setting = config("8 rows", rounds=2)
    selection, state = init(pool([20, 20]), setting)
    assert weight(state, 1) == [0.5, 0.5]
    selection, state = propose(selection, state, setting, seed=0)
    assert drawn(state, 1) == [2, 2]
    # softmax of (log 3, 0) is 3/4, 1/4; times equal weights the same
    state = update(selection, state, scores(selection, {0: float(np.log(3)), 1: 0.0}), setting)
    np.testing.assert_allclose(weight(state, 2), [0.75, 0.25])
    selection, state = propose(selection, state, setting, seed=0)
    assert drawn(state, 2) == [3, 1]
    # again: paper multiplies, 9 to 1; released forgets, 3 to 1
    more = scores(selection, {0: float(np.log(3)), 1: 0.0})
    np.testing.assert_allclose(weight(update(selection, state, more, setting), 3), [0.9, 0.1])
    released = setting.model_copy(update={"update": "released"})
    np.testing.assert_allclose(weight(update(selection, state, more, released), 3), [0.75, 0.25])


def test_the_released_softmax_is_not_the_ratio() -> None:
    mean, before = np.array([1.0, 2.0]), np.array([0.9, 0.1])
    e = np.exp(mean)
    np.testing.assert_allclose(weights(mean, before, "released"), e / e.sum())
    np.testing.assert_allclose(weights(mean, before, "paper"), e * before / (e * before).sum())
    np.testing.assert_allclose(weights(mean, before, "released", 2.0), np.sqrt(e) / np.sqrt(e).sum())


def test_negative_and_equal_differences() -> None:
    before = np.array([0.5, 0.2, 0.3])
    np.testing.assert_allclose(weights(np.full(3, -4.0), before, "paper"), before)
    np.testing.assert_allclose(weights(np.full(3, -4.0), before, "released"), [1 / 3] * 3)
    new = weights(np.array([-1.0, -2.0, -1000.0]), before, "paper")
    assert (new >= 0).all()
    assert new.sum() == pytest.approx(1)
    assert new[0] > before[0]


def test_a_cluster_without_scores() -> None:
    mean, before = np.array([np.nan, 0.0, np.log(3)]), np.array([0.4, 0.3, 0.3])
    np.testing.assert_allclose(weights(mean, before, "paper"), [0.4, 0.15, 0.45])
    e = np.exp([np.log(3) / 2, 0, np.log(3)])
    np.testing.assert_allclose(weights(mean, before, "released"), e / e.sum())
    for rule in ("paper", "released"):
        np.testing.assert_allclose(weights(np.full(3, np.nan), before, rule), before)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(0, 25), min_size=1, max_size=6).filter(lambda s: sum(s) >= 8),
    amount=st.integers(4, 60),
    rounds=st.integers(1, 4),
    rule=st.sampled_from(["paper", "released"]),
    first=st.sampled_from(["kmq", "uniform"]),
    differing=st.lists(st.floats(-50, 50), min_size=6, max_size=6),
)
def test_every_draw_is_exact_and_no_row_comes_twice(
    sizes: list[int], amount: int, rounds: int, rule: str, first: str, differing: list[float]
) -> None:
    total = min(amount, sum(sizes))
    setting = config(f"{total} rows", rounds=rounds, update=rule, first=first)
    selection, state = run(pool(sizes), setting, dict(enumerate(differing)))
    number = selection["round"].to_numpy()
    assert np.bincount(number[number > 0], minlength=rounds + 1)[1:].tolist() == [
        share(setting, total, i) for i in range(1, rounds + 1)
    ]
    assert ((number > 0) == selection["selected"].to_numpy()).all()
    assert number.max() <= rounds
    for i in range(1, rounds + 1):
        assert sum(weight(state, i)) == pytest.approx(1) or sum(weight(state, i)) == 0
    for row in state.to_pylist():
        assert 0 <= row["drawn"] <= row["available"] <= row["size"]


def test_budget_that_the_rounds_do_not_divide() -> None:
    setting = config("10 rows")
    assert [share(setting, 10, i) for i in (1, 2, 3)] == [3, 3, 4]
    selection, _ = run(pool([10, 10]), setting, {0: 0.0, 1: 0.0})
    assert sorted(r for r in selection["round"].to_pylist() if r > 0) == [1] * 3 + [2] * 3 + [3] * 4
    with pytest.raises(UserError, match="2 rows in 3 rounds"):
        init(pool([10]), config("2 rows"))


def test_an_exhausted_cluster_has_weight_zero_and_others_give() -> None:
    setting = config("12 rows", rounds=2)
    selection, state = init(pool([2, 20, 20]), setting)
    selection, state = propose(selection, state, setting, seed=0)
    assert drawn(state, 1) == [2, 2, 2]
    state = update(selection, state, scores(selection, {0: 9.0, 1: 0.0, 2: 0.0}), setting)
    assert weight(state, 2) == pytest.approx([0, 0.5, 0.5])
    selection, state = propose(selection, state, setting, seed=0)
    assert drawn(state, 2) == [0, 3, 3]


def test_a_pool_that_runs_dry_and_an_empty_cluster() -> None:
    table = pool([3, 0, 4])
    setting = config("all", rounds=3)
    selection, state = run(table, setting, {0: 5.0, 2: -5.0})
    assert selection["selected"].to_pylist() == [True] * 7
    assert weight(state, 1) == [0.5, 0, 0.5]
    assert [drawn(state, i)[1] for i in (1, 2, 3)] == [0, 0, 0]


def test_noise_moves_by_scorer() -> None:
    """Section 6b of the method: a perplexity gap raises a noisy cluster from 0.50 to 0.96 in two updates."""
    mean, now = np.array([0.69, 3.40]), np.array([0.5, 0.5])
    ratio = mean / mean.sum() * now
    ratio = mean / mean.sum() * ratio
    assert (ratio / ratio.sum())[1] == pytest.approx(0.96, abs=0.005)  # the paper's own equation 6
    for _ in range(2):
        now = weights(mean, now, "paper")
    assert now[1] > 0.96


def test_failed_scores_are_counted_and_several_answers_averaged() -> None:
    setting = config("6 rows", rounds=2)
    selection, state = init(pool([10, 10, 10]), setting)
    selection, state = propose(selection, state, setting, seed=0)
    one, two, three = (r["id"] for r in selection.to_pylist() if r["selected"])
    nan = float("nan")
    table = pa.table({"id": [one, one, two, three, three], "difference": pa.array([1.0, 3.0, None, nan, 4.0])})
    state = update(selection, state, table, setting)
    first = [r for r in state.to_pylist() if r["round"] == 1]
    assert [(r["scored"], r["failed"], r["difference"]) for r in first] == [(1, 0, 2.0), (0, 1, None), (1, 0, 4.0)]
    assert weight(state, 2)[1] == pytest.approx(1 / 3)


def test_draws_inside_a_cluster() -> None:
    table = pool([200])
    high = {r["id"] for r in table.to_pylist() if r["score.q"] > 0.5}
    means = {}
    for first in ("kmq", "uniform"):
        got = [
            r["id"]
            for seed in range(30)
            for r in run(table, config("20 rows", rounds=1, first=first), {}, seed)[0].to_pylist()
            if r["selected"]
        ]
        means[first] = sum(i in high for i in got) / len(got)
    assert means["kmq"] > 0.68
    assert abs(means["uniform"] - len(high) / 200) < 0.08


def test_the_order_of_rows_makes_no_difference() -> None:
    table = pool([12, 9, 30])
    order = np.random.default_rng(3).permutation(51)
    runs = [run(t, config(), {0: 1.0, 1: -1.0, 2: 0.0}) for t in (table, table.take(pa.array(order)))]
    assert runs[0][0].drop(["row"]).equals(runs[1][0].drop(["row"]))
    assert runs[0][1].equals(runs[1][1])
    assert not runs[0][0].equals(run(table, config(), {0: 1.0, 1: -1.0, 2: 0.0}, seed=1)[0])


def test_steps_in_the_wrong_order_are_refused() -> None:
    setting = config("8 rows", rounds=1)
    selection, state = init(pool([20]), setting)
    with pytest.raises(ValueError, match="has not been drawn"):
        update(selection, state, scores(selection, {}), setting)
    selection, state = propose(selection, state, setting, seed=0)
    with pytest.raises(ValueError, match="nothing to draw"):
        propose(selection, state, setting, seed=0)
    with pytest.raises(DataError, match="1 of 1 scored rows were not selected"):
        update(selection, state, pa.table({"id": ["x"], "difference": [1.0]}), setting)
    state = update(selection, state, scores(selection, {0: 1.0}), setting)
    with pytest.raises(ValueError, match="round 2 of 1"):
        propose(selection, state, setting, seed=0)


def test_missing_quality() -> None:
    table = pool([5, 5])
    values: list[float | None] = table["score.q"].to_pylist()
    values[0] = None
    holes = table.drop(["score.q"]).append_column("score.q", pa.array(values))
    with pytest.raises(DataError, match="1 of 10 rows have no finite score"):
        init(holes, config("all"))
    selection, _ = run(holes, config("all", missing="exclude"), {})
    assert selection["selected"].to_pylist() == [False] + [True] * 9
    with pytest.raises(DataError, match="needs clusters"):
        init(table.drop(["cluster"]), config())


def test_gold_minus_generated() -> None:
    gold = pa.table({"id": ["a", "b"], "score": [1.0, 2.0]})
    generated = pa.table({"id": ["b", "b", "a"], "score": pa.array([0.5, None, 3.0])})
    assert differences(gold, generated).to_pylist() == [
        {"id": "b", "difference": 1.5},
        {"id": "b", "difference": None},
        {"id": "a", "difference": -2.0},
    ]
    with pytest.raises(DataError, match="1 generations have no gold"):
        differences(gold.slice(1), generated.slice(2))


def test_config_as_in_the_recipes() -> None:
    setting = config(
        train={"from": "previous", "epochs": 3},
        respond={"decoding": "greedy"},
        score={"reward": {"model": "rm"}},
    )
    assert setting.train.from_ == "previous"
    assert setting.train.settings == {"epochs": 3}
    assert IterateConfig.model_validate(setting.model_dump(mode="json", by_alias=True)) == setting
    assert needs(setting.selection()) == {"embedding", "cluster", "quality"}
    assert needs(config(first="uniform", quality=None).selection()) == {"embedding", "cluster"}
    assert (setting.respond.model, setting.respond.rows) == ("current", "selected")
    with pytest.raises(UserError, match="kmq needs a quality"):
        needs(config(quality=None).selection())
    assert needs(config(quality=None).selection(), ["q"]) == {"embedding", "cluster", "quality"}
    same = [run(pool([9, 9]), config("6 rows", quality=name), {})[0] for name in (None, "q")]
    assert same[0]["selected"].equals(same[1]["selected"])
