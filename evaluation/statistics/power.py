"""What a number of items or seeds can show, said before the run."""

from __future__ import annotations

import math

from evaluation.statistics.intervals import check_level


def minimum_detectable(
    n: int,
    *,
    sd: float | None = None,
    p: float | None = None,
    correlation: float = 0.0,
    power: float = 0.8,
    level: float = 0.95,
) -> float:
    """The smallest true difference that a two-sided paired t test over `n` pairs finds with the given power.

    Give `sd`, the spread of the differences by item or seed, or `p`, the accuracy expected of both models: then
    sd = sqrt(2 p (1 - p) (1 - correlation)), where correlation is that of the two models over items. It is high for
    a model and its fine-tuned child (0.5 to 0.8 is common); the default 0 is the cautious one. The unit is that of
    the metric. Infinite for n < 2. Power is that of the noncentral t distribution.
    """
    from scipy import optimize, stats

    check_level(level)
    if (sd is None) == (p is None):
        raise ValueError("give exactly one of sd and p")
    if not 1 - level < power < 1:
        raise ValueError(f"power {power} is not between {1 - level:g} and 1")
    if p is not None:
        if not (0 <= p <= 1 and -1 <= correlation <= 1):
            raise ValueError("p must be between 0 and 1, correlation between -1 and 1")
        sd = math.sqrt(2 * p * (1 - p) * (1 - correlation))
    assert sd is not None
    if sd < 0:
        raise ValueError("sd is negative")
    if n < 2:
        return math.inf
    critical = float(stats.t.ppf((1 + level) / 2, n - 1))

    def reached(effect: float) -> float:
        # The square of a noncentral t is a noncentral F; scipy's far tails of the former are NaN.
        return float(stats.ncf.sf(critical**2, 1, n - 1, effect**2 * n)) - power

    high = 1 / math.sqrt(n)
    while reached(high) < 0:
        high *= 2
    return float(optimize.brentq(reached, 0.0, high)) * sd
