"""Checked against scipy and statsmodels, by hand, and by simulation of what an interval promises."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cuvee.errors import UserError
from evaluation.items import summarise, table
from evaluation.statistics import (
    bootstrap_mean,
    clustered_mean,
    compare,
    holm,
    mcnemar,
    minimum_detectable,
    paired,
    paired_t,
    retention_drop,
    retention_drop_items,
    variance_components,
    wilson,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def items(scores: dict[str, float | None], task: str = "t", metric: str = "acc", **more: Any) -> pa.Table:
    return table(
        {"task": task, "version": "1", "item": name, "metric": metric, "score": score, **more}
        for name, score in scores.items()
    )


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (3, 64), (1, 1), (700, 1319)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_is_that_of_statsmodels(k: int, n: int, level: float) -> None:
    from statsmodels.stats.proportion import proportion_confint

    found = wilson(k, n, level)
    assert (found.low, found.high) == pytest.approx(proportion_confint(k, n, 1 - level, "wilson"), abs=1e-12)
    assert found.mean == k / n


def test_wilson_of_nothing_knows_nothing() -> None:
    found = wilson(0, 0)
    assert math.isnan(found.mean)
    assert (found.low, found.high) == (0.0, 1.0)
    with pytest.raises(ValueError, match="proportion"):
        wilson(3, 2)


def test_bootstrap_is_that_of_scipy() -> None:
    values = rng(1).exponential(size=200)
    found = bootstrap_mean(values, rng(2), resamples=40_000)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=40_000, method="percentile", rng=rng(3)
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)
    assert found.se == pytest.approx(stats.sem(values), rel=0.03)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30), st.randoms())
def test_bootstrap_does_not_depend_on_order(values: list[float], random: Any) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)
    a, b = (bootstrap_mean(v, rng(7), resamples=200) for v in (values, shuffled))
    assert (a.low, a.high) == pytest.approx((b.low, b.high), abs=1e-9)
    assert min(values) - 1e-9 <= a.low <= a.high <= max(values) + 1e-9


def test_bootstrap_of_few_values() -> None:
    one = bootstrap_mean([0.5], rng())
    assert one.mean == 0.5
    assert math.isnan(one.low)
    assert math.isnan(bootstrap_mean([], rng()).mean)
    one_cluster = bootstrap_mean([0.0, 1.0], rng(), clusters=["a", "a"])
    assert math.isnan(one_cluster.high)
    with pytest.raises(ValueError, match="finite"):
        bootstrap_mean([1.0, math.nan], rng())


def test_weighted_bootstrap_is_a_ratio_of_sums() -> None:
    loss, tokens = np.array([1.0, 2.0, 3.0]), np.array([1.0, 1.0, 8.0])
    found = bootstrap_mean(loss, rng(), weights=tokens, resamples=20_000)
    assert found.mean == pytest.approx((1 + 2 + 24) / 10)
    drawn = rng(5).integers(3, size=(20_000, 3))
    expected = np.quantile((loss * tokens)[drawn].sum(1) / tokens[drawn].sum(1), [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx(expected, abs=0.05)


def clustered_sample(seed: int, groups: int = 20, size: int = 8) -> tuple[np.ndarray, list[str]]:
    draw = rng(seed)
    names = [f"g{i}" for i in range(groups) for _ in range(size)]
    return np.repeat(draw.normal(size=groups), size) + draw.normal(size=groups * size), names


def test_clustered_mean_is_that_of_statsmodels() -> None:
    import statsmodels.api as sm

    values, names = clustered_sample(0)
    found = clustered_mean(values, names)
    codes = np.unique(names, return_inverse=True)[1]
    model = sm.OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": codes}, use_t=True)
    assert found.se == pytest.approx(model.bse[0], rel=1e-9)
    assert (found.low, found.high) == pytest.approx(tuple(model.conf_int()[0]), rel=1e-9)


def test_clusters_widen_the_bootstrap() -> None:
    values, names = clustered_sample(1)
    plain = bootstrap_mean(values, rng(), resamples=4000)
    by_group = bootstrap_mean(values, rng(), clusters=names, resamples=4000)
    robust = clustered_mean(values, names)
    assert by_group.se > 1.5 * plain.se
    assert by_group.se == pytest.approx(robust.se, rel=0.1)


def test_mcnemar_is_that_of_statsmodels() -> None:
    from statsmodels.stats.contingency_tables import mcnemar as reference

    draw = rng(4)
    a, b = draw.integers(2, size=90), draw.integers(2, size=90)
    found = mcnemar(a.tolist(), b.tolist())
    cells = [[found.both, found.only_a], [found.only_b, found.neither]]
    assert sum(map(sum, cells)) == 90
    assert found.p == pytest.approx(reference(cells, exact=True).pvalue, rel=1e-9)
    assert mcnemar([1, 0], [1, 0]).p == 1.0
    with pytest.raises(ValueError, match="0 and 1"):
        mcnemar([0.5], [1])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_that_of_statsmodels(p: list[float]) -> None:
    from statsmodels.stats.multitest import multipletests

    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1], abs=1e-12)


def test_holm_leaves_out_what_was_not_tested() -> None:
    adjusted = holm([0.01, math.nan, 0.04])
    assert adjusted[0] == pytest.approx(0.02)
    assert math.isnan(adjusted[1])
    assert adjusted[2] == pytest.approx(0.04)
    assert holm([]) == []


def test_paired_on_binary_scores() -> None:
    draw = rng(9)
    a = draw.integers(2, size=300).astype(float)
    b = np.where(draw.random(300) < 0.2, 1.0, a)
    names = [f"i{n}" for n in range(300)]
    found = paired(items(dict(zip(names, a, strict=True))), items(dict(zip(names, b, strict=True))), rng(1))
    difference = b - a
    assert found.difference == pytest.approx(difference.mean())
    assert (found.mean_a, found.mean_b) == pytest.approx((a.mean(), b.mean()))
    assert (found.wins, found.losses) == (int((difference > 0).sum()), 0)
    assert found.wins + found.ties == found.n == 300
    assert found.p == pytest.approx(stats.binomtest(0, found.wins).pvalue)
    expected = stats.bootstrap((difference,), np.mean, n_resamples=9999, method="percentile", rng=rng(2))
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval), abs=0.008)


def test_paired_on_losses_is_per_token() -> None:
    a = table(
        {"task": "t", "version": "1", "item": str(i), "metric": "loss", "score": s, "tokens": n}
        for i, (s, n) in enumerate([(2.0, 10), (1.0, 30), (3.0, 5)])
    )
    b = table(
        {"task": "t", "version": "1", "item": str(i), "metric": "loss", "score": s, "tokens": n}
        for i, (s, n) in enumerate([(1.5, 10), (1.0, 30), (2.0, 5)])
    )
    found = paired(a, b, rng())
    assert found.mean_a == pytest.approx((20 + 30 + 15) / 45)
    assert found.difference == pytest.approx(-(5 + 5) / 45)
    assert found.low <= found.difference <= found.high <= 0
    assert (found.wins, found.ties, found.losses) == (0, 1, 2)


def test_paired_clusters_are_those_of_a_regression() -> None:
    import statsmodels.api as sm

    values, names = clustered_sample(3)
    keys = [f"{i:03d}" for i in range(len(values))]

    def grouped(scores: Any) -> pa.Table:
        return table(
            {"task": "t", "version": "1", "item": k, "metric": "grade", "score": float(s), "group": g}
            for k, s, g in zip(keys, scores, names, strict=True)
        )

    found = paired(grouped(np.zeros(len(values))), grouped(values), rng())
    codes = np.unique(names, return_inverse=True)[1]
    model = sm.OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": codes}, use_t=True)
    assert found.method == "cluster-robust t"
    assert found.p == pytest.approx(model.pvalues[0], rel=1e-6)
    assert (found.low, found.high) == pytest.approx(tuple(model.conf_int()[0]), rel=1e-9)


def test_pairs_of_few_groups_are_drawn_inside_each() -> None:
    draw = np.random.default_rng(4)
    change = np.concatenate([draw.normal(-0.2, 0.05, 30), draw.normal(-1.5, 0.05, 30)])
    names = ["a"] * 30 + ["b"] * 30

    def grouped(scores: np.ndarray) -> pa.Table:
        return table(
            {"task": "t", "version": "1", "item": f"{i:03d}", "metric": "grade", "score": float(s), "group": g}
            for i, (s, g) in enumerate(zip(scores, names, strict=True))
        )

    found = paired(grouped(np.zeros(60)), grouped(change), rng())
    error = np.sqrt(change[:30].var() + change[30:].var()) / 2 / np.sqrt(30)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert found.p < 0.001


def test_different_item_sets_and_versions_are_refused() -> None:
    a, b = items({"1": 1.0, "2": 0.0}), items({"2": 1.0, "3": 1.0, "4": 0.0})
    with pytest.raises(UserError, match="different items"):
        paired(a, b, rng())
    common = paired(a, b, rng(), strict=False)
    assert (common.n, common.missing_a, common.missing_b) == (1, 2, 1)
    assert math.isnan(common.low)
    other = items({"1": 1.0, "2": 0.0}).set_column(1, "version", pa.array(["2", "2"]))
    with pytest.raises(UserError, match="different ways"):
        paired(a, other, rng())
    with pytest.raises(UserError, match="no item has a score"):
        paired(items({"1": None}), items({"1": 1.0}), rng())
    with pytest.raises(UserError, match="twice"):
        paired(pa.concat_tables([a, a]), a, rng())


def test_items_without_a_score_are_missing_pairs() -> None:
    a, b = items({"1": 1.0, "2": None, "3": 0.0}), items({"1": 1.0, "2": 1.0, "3": None})
    found = paired(a, b, rng())
    assert (found.n, found.missing_a, found.missing_b) == (1, 1, 1)


def test_all_ties_do_not_claim_certainty() -> None:
    same = items({str(i): float(i % 2) for i in range(100)})
    found = paired(same, same, rng())
    assert (found.difference, found.p, found.ties) == (0.0, 1.0, 100)
    # Exact: were more than 3.6% of pairs to differ, seeing none in 100 would have a chance below 2.5%.
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 100))
    assert found.low == -found.high


def test_compare_corrects_over_the_table() -> None:
    draw = rng(11)
    tables = [
        pa.concat_tables(
            items({str(i): float(x) for i, x in enumerate(draw.integers(2, size=60))}, task) for task in ("x", "y", "z")
        )
        for _ in range(2)
    ]
    found = compare(*tables)
    assert [f.task for f in found] == ["x", "y", "z"]
    assert [f.p_holm for f in found] == pytest.approx(holm([f.p for f in found]))
    shuffled = [t.take(draw.permutation(t.num_rows)) for t in tables]
    assert compare(*shuffled) == found
    with pytest.raises(UserError, match="only one of the two"):
        compare(tables[0], items({"1": 1.0}, "x"))


def test_paired_t_is_that_of_scipy() -> None:
    differences = [0.3, 0.1, 0.25, -0.05]
    found, expected = paired_t(differences), stats.ttest_1samp(differences, 0)
    assert (found.t, found.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert math.isnan(paired_t([0.2]).p)
    assert paired_t([]).n == 0
    equal = paired_t([0.2, 0.2, 0.2])
    assert (equal.low, equal.high) == pytest.approx((0.2, 0.2))
    assert math.isnan(equal.p)


@pytest.mark.parametrize("n", [3, 4, 10, 200, 14_042])
def test_minimum_detectable_is_that_of_statsmodels(n: int) -> None:
    from statsmodels.stats.power import TTestPower

    effect = minimum_detectable(n, sd=2.0) / 2.0
    assert TTestPower().power(effect, n, 0.05) == pytest.approx(0.8, abs=1e-4)


def test_minimum_detectable_reads_proportions() -> None:
    assert minimum_detectable(500, p=0.5) == pytest.approx(minimum_detectable(500, sd=math.sqrt(0.5)))
    assert minimum_detectable(500, p=0.5, correlation=0.75) == pytest.approx(minimum_detectable(500, p=0.5) / 2)
    assert minimum_detectable(1, sd=1.0) == math.inf
    with pytest.raises(ValueError, match="exactly one"):
        minimum_detectable(5)


def test_variance_one_factor_at_a_time_is_the_sample_variance() -> None:
    runs = [{"sample": 0, "order": 0}, {"sample": 1, "order": 0}, {"sample": 2, "order": 0}]
    runs += [{"sample": 0, "order": 1}, {"sample": 0, "order": 2}]
    scores = [1.0, 2.0, 3.0, 4.0, 5.0]
    found = variance_components(runs, scores, ("sample", "order"))
    assert found.parts[0].variance == pytest.approx(np.var([1, 2, 3], ddof=1))
    assert found.parts[1].variance == pytest.approx(np.var([1, 4, 5], ddof=1))
    assert found.total_sd == pytest.approx(math.sqrt(sum(p.variance for p in found.parts)))


def test_variance_of_a_crossed_design_is_anova() -> None:
    a, b = 4, 5
    draw = rng(0)
    y = 2 * draw.normal(size=(a, 1)) + draw.normal(size=(1, b)) + 0.3 * draw.normal(size=(a, b))
    cells = list(itertools.product(range(a), range(b)))
    found = variance_components(
        [{"sample": i, "init": j} for i, j in cells], [y[c] for c in cells], ("sample", "init"), residual=True
    )
    grand, rows, columns = y.mean(), y.mean(1), y.mean(0)
    error = ((y - rows[:, None] - columns[None] + grand) ** 2).sum() / ((a - 1) * (b - 1))
    expected = [
        (b * ((rows - grand) ** 2).sum() / (a - 1) - error) / b,
        (a * ((columns - grand) ** 2).sum() / (b - 1) - error) / a,
        error,
    ]
    assert [p.variance for p in found.parts] == pytest.approx(expected, rel=1e-9)


def test_factors_that_vary_together_cannot_be_told_apart() -> None:
    runs = [{"sample": i, "order": i, "init": 0} for i in range(4)]
    found = variance_components(runs, [1.0, 2.0, 4.0, 3.0], ("sample", "order", "init"))
    assert found.confounded == ("sample", "order")
    assert all(math.isnan(part.variance) for part in found.parts)
    assert found.total_sd == pytest.approx(np.std([1, 2, 4, 3], ddof=1))
    assert math.isnan(variance_components([{"sample": 0}], [1.0], ("sample",)).total_sd)


def test_retention_drop() -> None:
    draw = rng(2)
    base, tuned = [], []
    for task in ("x", "y"):
        before = draw.integers(2, size=200).astype(float)
        after = np.where(draw.random(200) < 0.1, 0.0, before)
        base.append(items({str(i): v for i, v in enumerate(before)}, task))
        tuned.append(items({str(i): v for i, v in enumerate(after)}, task))
    a, b = pa.concat_tables(base), pa.concat_tables(tuned)
    summaries = summarise(a), summarise(b)
    drop, interval = retention_drop(*summaries, ["x", "y"])
    assert drop == pytest.approx(np.mean([summaries[0][t]["mean"] - summaries[1][t]["mean"] for t in "xy"]))
    close, narrow = retention_drop_items(a, b, ["x", "y"])
    assert close == pytest.approx(drop)
    assert interval.low < narrow.low < drop < narrow.high < interval.high
    with pytest.raises(UserError, match="no score of z"):
        retention_drop(*summaries, ["x", "z"])
