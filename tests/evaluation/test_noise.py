"""Noise of seeds against statsmodels' analysis of variance and a simulation."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from evaluation.statistics import minimum_detectable, noise

SERIES = {"sample": [1.0, 2.0, 4.5], "order": [1.0, 1.2, 0.7], "init": [1.0, 1.1, 0.9, 1.4]}


def test_parts_are_those_of_an_analysis_of_variance() -> None:
    """Each stream is a one-way layout: its variance is the mean square of statsmodels' table over that stream alone."""
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    found = noise(SERIES)
    for part in found.parts:
        scores = SERIES[part.stream]
        frame = pd.DataFrame({"score": scores, "seed": [str(i) for i in range(len(scores))]})
        table = anova_lm(ols("score ~ 1", frame).fit())
        assert part.sd**2 == pytest.approx(table.loc["Residual", "mean_sq"])
    assert found.sd**2 == pytest.approx(sum(part.sd**2 for part in found.parts))
    assert sum(part.share for part in found.parts) == pytest.approx(1)
    # The common first run counts once: 3 + 2 + 3 runs.
    assert (found.runs, found.mean) == (8, pytest.approx((1 + 2 + 4.5 + 1.2 + 0.7 + 1.1 + 0.9 + 1.4) / 8))


def test_intervals_hold_what_they_say() -> None:
    """Of 1,000 experiments with known spreads, 95% of the intervals of the whole and of each part hold the truth."""
    draw = np.random.default_rng(0)
    spreads = {"sample": 2.0, "order": 1.0}
    held = dict.fromkeys([*spreads, "all"], 0)
    for _ in range(1000):
        first = 10.0
        series = {}
        for stream, sd in spreads.items():
            effects = draw.normal(scale=sd, size=4)
            series[stream] = list(first + effects - effects[0])
        found = noise(series)
        for part in found.parts:
            held[part.stream] += part.low <= spreads[part.stream] <= part.high
        held["all"] += found.low <= math.hypot(*spreads.values()) <= found.high
    assert held["sample"] == pytest.approx(950, abs=30)
    assert held["order"] == pytest.approx(950, abs=30)
    assert held["all"] == pytest.approx(950, abs=45)  # Satterthwaite is an approximation


def test_the_detectable_difference_is_found_four_times_in_five() -> None:
    """A paired t of scipy over five seeds, two arms with this noise and a true difference of that size."""
    from scipy import stats

    found = noise({"sample": [0.0, 2.0], "order": [0.0, 1.0]}, seeds=(5,))
    assert found.sd == pytest.approx(math.sqrt(2.5))
    draw = np.random.default_rng(1)
    a = draw.normal(scale=found.sd, size=(4000, 5))
    b = draw.normal(loc=found.detectable[5], scale=found.sd, size=(4000, 5))
    assert np.mean(stats.ttest_rel(a, b, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.02)
    assert found.detectable[5] == minimum_detectable(5, sd=math.sqrt(2) * found.sd)


def test_streams_that_touch_nothing_have_no_variance() -> None:
    found = noise({"order": [1.0, 3.0]}, still=["judge"])
    assert [(p.stream, p.sd, p.touches) for p in found.parts] == [("order", math.sqrt(2), True), ("judge", 0.0, False)]
    nothing = noise({}, still=["judge"])
    assert (nothing.sd, nothing.chance, nothing.detectable[3]) == (0.0, 0.0, 0.0)
    alone = noise({"order": [1.0], "sample": [1.0, 2.0]})
    assert math.isnan(alone.sd)
    assert math.isnan(alone.detectable[3])
    assert alone.parts[1].sd == pytest.approx(math.sqrt(0.5))
    with pytest.raises(ValueError, match="finite"):
        noise({"order": [1.0, math.nan]})
    with pytest.raises(ValueError, match="no stream"):
        noise({})
