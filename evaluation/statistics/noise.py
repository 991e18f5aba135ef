"""How much a score moves when nothing but seeds changes, by what the seeds move, and what that hides.

The design varies one stream of seeds at a time from a common first run, so each stream is a one-way layout and its
variance that of its runs. Variances of few runs are known badly: every standard deviation comes with its chi-squared
interval, and the one of all streams together with Satterthwaite's degrees of freedom (Biometrics Bulletin 2, 1946).
Streams are taken to add up; interactions between them are not seen by this design.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.statistics.intervals import check_level, finite
from evaluation.statistics.power import minimum_detectable


@dataclass(frozen=True)
class Part:
    """What one stream does. `runs` with different seeds of it; `touches` false: no seed of it can change the score.

    `low` and `high` bound `sd`; NaN where there are less than two runs. `share` is of the variance of all streams.
    """

    stream: str
    sd: float
    low: float
    high: float
    share: float
    runs: int
    touches: bool = True


@dataclass(frozen=True)
class Noise:
    """`sd` of one run when all streams vary, with its interval. `chance`: by how much two single runs of the same
    recipe differ in at most 1 - level of all cases. `detectable`: seeds in each arm → the smallest true difference
    between two arms that a paired t over these seeds finds with a power of 80%."""

    mean: float
    parts: tuple[Part, ...]
    sd: float
    low: float
    high: float
    chance: float
    detectable: Mapping[int, float]
    runs: int
    level: float


SEEDS = (3, 5, 10)
"""Numbers of seeds for which a detectable difference is told."""


def noise(
    series: Mapping[str, Sequence[float]],
    *,
    still: Sequence[str] = (),
    seeds: Sequence[int] = SEEDS,
    level: float = 0.95,
) -> Noise:
    """From stream → scores of the runs that differ in this stream alone, the common first run among each.

    `still` are the streams that cannot change the score, whose variance is exactly 0. A detectable difference takes
    the two arms as independent given the seeds, which is the cautious side: arms that share their seeds share noise.
    Raises ValueError without a series, or for scores that are not finite.
    """
    from scipy import stats

    check_level(level)
    if not series and not still:
        raise ValueError("no stream was varied")
    values = {stream: finite(scores) for stream, scores in series.items()}
    known = {stream: float(v.var(ddof=1)) for stream, v in values.items() if len(v) > 1}
    total = sum(known.values()) if len(known) == len(values) else math.nan
    parts = [_part(stream, v, total, level) for stream, v in values.items()]
    parts += [Part(stream, 0.0, 0.0, 0.0, 0.0, 0, touches=False) for stream in still]
    # Satterthwaite: the degrees of freedom of a sum of independent estimates.
    weight = sum(variance**2 / (len(values[stream]) - 1) for stream, variance in known.items())
    degrees = total**2 / weight if weight > 0 else math.nan
    sd = math.sqrt(total)
    low, high = _bounds(sd, degrees, level)
    first = next(iter(values.values()), None)
    several = [v if i == 0 else v[1:] for i, v in enumerate(values.values())]
    everything = np.concatenate(several) if several else np.array([])
    chance = math.nan if math.isnan(degrees) else float(stats.t.ppf((1 + level) / 2, degrees)) * math.sqrt(2) * sd
    return Noise(
        mean=float(everything.mean()) if first is not None and len(first) else math.nan,
        parts=tuple(parts),
        sd=sd,
        low=low,
        high=high,
        chance=0.0 if total == 0 else chance,
        detectable={n: math.nan if math.isnan(sd) else minimum_detectable(n, sd=math.sqrt(2) * sd) for n in seeds},
        runs=len(everything),
        level=level,
    )


def _part(stream: str, scores: np.ndarray, total: float, level: float) -> Part:
    if len(scores) < 2:
        return Part(stream, math.nan, math.nan, math.nan, math.nan, len(scores))
    sd = float(scores.std(ddof=1))
    share = sd**2 / total if total > 0 else math.nan
    return Part(stream, sd, *_bounds(sd, len(scores) - 1, level), share, len(scores))


def _bounds(sd: float, degrees: float, level: float) -> tuple[float, float]:
    """The chi-squared interval of a standard deviation."""
    from scipy import stats

    if sd == 0:
        return 0.0, 0.0
    if math.isnan(degrees):
        return math.nan, math.nan
    high, low = stats.chi2.ppf([(1 + level) / 2, (1 - level) / 2], degrees)
    return sd * math.sqrt(degrees / high), sd * math.sqrt(degrees / low)
