"""Win rates: a model's answers against another's, in the manner of AlpacaEval.

Judges like long answers, so the rate is also told at equal length (Dubois et al., 2404.04475): a logistic regression of
the preference on the standardised difference in length, through tanh, read off at no difference. Their third term, the
difficulty of each instruction, is fitted over many models and left out here, where there is one pair.
"""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cuvee.errors import UserError
from cuvee.protocols import Generate
from evaluation.items import table
from evaluation.statistics.intervals import Floats, Interval, quantiles
from evaluation.tasks import rating


def compare_answers(
    a: pa.Table, b: pa.Table, judge: Generate, task: str = "win_rate", *, judging: rating.Judging = rating.ONCE
) -> pa.Table:
    """Answers of `b` judged against those of `a` (items of a chat task): 1 is a win of `b`, in both orders.

    First turns alone, since later ones answer to conversations that differ. Raises UserError when the two have
    different items.
    """
    left, right = ({row["item"]: row for row in t.filter(t["main"]).to_pylist()} for t in (a, b))
    if left.keys() != right.keys():
        raise UserError("the two models answered different questions", remedy="evaluate both with the same limit")
    keys = [key for key in sorted(left) if key.endswith("/1")]
    cases = [
        (key, right[key]["prompt"], right[key]["prediction"], left[key]["prediction"])
        for key in keys
        if left[key]["prediction"] and right[key]["prediction"]
    ]
    missing = rating.Rated(None, "a model gave no answer")
    decided = dict.fromkeys(keys, missing) | rating.prefer(judge, cases, judging=judging)
    times = f" times={judging.times}" if judging.times > 1 else ""
    return table(
        {
            "task": task,
            "version": f"2 judge={judge.name}@rating-{rating.VERSION}{times}",
            "item": key,
            "group": right[key]["group"],
            "metric": "win_rate",
            "score": decided[key].score,
            "prompt": right[key]["prompt"],
            "prediction": right[key]["prediction"],
            "reference": left[key]["prediction"],
            "verdict": None if decided[key].sure else "unsure",
            "reason": decided[key].reason,
            "error": decided[key].reason if decided[key].score is None else "",
        }
        for key in keys
    )


def length_controlled(items: pa.Table) -> float:
    """The win rate at equal length, from items with metric `win_rate` (prediction against reference), 0 to 1.

    NaN without scores. When all answers are as long as their references it is the plain win rate.
    """
    return _at_equal_length(*_outcomes(items))


def equal_length(items: pa.Table, rng: np.random.Generator, *, level: float = 0.95, resamples: int = 400) -> Interval:
    """`length_controlled` with a percentile interval: a bootstrap over items, the regression fitted to each draw."""
    score, difference = _outcomes(items)
    n = len(score)
    if n < 2:
        return Interval(_at_equal_length(score, difference), math.nan, math.nan, n, level, "none: fewer than two items")
    drawn = [rng.integers(n, size=n) for _ in range(resamples)]
    if np.ptp(score) == 0:
        return Interval(float(score[0]), math.nan, math.nan, n, level, "none: all scores alike")
    low, high = quantiles(np.array([_at_equal_length(score[d], difference[d]) for d in drawn]), level)
    return Interval(_at_equal_length(score, difference), low, high, n, level, "bootstrap")


def _outcomes(items: pa.Table) -> tuple[Floats, Floats]:
    """Scores, and characters by which the answer is longer than the other one."""
    rows = items.filter((pc.field("metric") == "win_rate") & pc.field("score").is_valid())
    pairs = zip(rows["prediction"].to_pylist(), rows["reference"].to_pylist(), strict=True)
    lengths = np.array([len(a or "") - len(b or "") for a, b in pairs], dtype=np.float64)
    return rows["score"].to_numpy().astype(np.float64), lengths


def _at_equal_length(score: Floats, difference: Floats) -> float:
    from sklearn.linear_model import LogisticRegression

    if not len(score):
        return math.nan
    spread = difference.std()
    if spread == 0 or score.min() == score.max():
        return float(score.mean())
    # Half a win is half of each outcome. The two rows of an item share its weight.
    x = np.tanh(difference / spread)[:, None]
    model = LogisticRegression(C=10.0).fit(
        np.vstack([x, x]), np.repeat([1, 0], len(x)), sample_weight=np.concatenate([score, 1 - score])
    )
    return float(model.predict_proba(np.zeros((1, 1)))[0, 1])
