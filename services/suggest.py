"""What to try next, from what a stored run has found: arms of a search, or amounts of data by the laws of a sweep.

A proposal always says how sure it is. From a search come arms with the probability that they beat the best; from a
number that was varied (four values or more) comes the amount at which a score reaches a target, with its interval, and
whether the law could predict the largest amount when that was left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cuvee.errors import UserError, nearest
from services.report.sweep import points_of
from services.runs import find_run
from services.store import Store
from services.sweep import learn

REACH = 4.0
"""Times the largest amount that was tried, beyond which a law is not followed."""


def suggest(store: Store, word: str, targets: Sequence[str] = (), count: int = 3) -> dict[str, Any]:
    """Proposals from the run that `word` names; `targets` are METRIC=VALUE. UserError when it has nothing to go by."""
    name = find_run(store, word)
    manifest = store.runs()[name]
    wanted = dict(_target(text) for text in targets)
    found: dict[str, Any] = {"run": name, "arms": [], "budgets": [], "sure": ""}
    if search := manifest.get("search"):
        seed = int(manifest["recipe"].get("seed", 0))
        found |= learn.next_arms(search, learn.space_of(manifest["recipe"]), seed, count)
    budgets = list(_budgets(manifest, wanted))
    if unknown := sorted(set(wanted) - {b["metric"] for b in budgets}):
        known = {b["metric"] for b in _budgets(manifest, {})}
        remedy = nearest(unknown[0], known) or "a law needs four different amounts or more of one setting"
        raise UserError(f"no law is known of {unknown[0]}", remedy=remedy)
    found["budgets"] = budgets
    if not found["arms"] and not budgets:
        raise UserError(f"{name} has nothing to go by", remedy="run a search, or a grid with four amounts or more")
    return found


def _target(text: str) -> tuple[str, float]:
    metric, equals, value = text.partition("=")
    try:
        if equals and metric:
            return metric, float(value)
    except ValueError:
        pass
    raise UserError(f"--target {text}: not METRIC=VALUE", remedy="for example --target gold_loss.math=0.8")


def _budgets(manifest: Mapping[str, Any], wanted: Mapping[str, float]) -> Any:
    """The laws of the run: each with the amount at which it reaches its target.

    Without a target, it is half of what is left to the law's own limit.
    """
    for setting, metric, line, x, y in points_of(manifest):
        if wanted and metric not in wanted:
            continue
        found = learn.law(x, y, metric, setting)
        if found is None:
            continue
        law, last = found["fit"], max(x)
        now = float(law.at([last])[0])
        target = wanted.get(metric, (now + law.offset) / 2)
        amount, low, high, share = law.reach(target)
        yield {
            "setting": setting,
            "metric": metric,
            "line": line,
            "law": f"{law.offset:.4g} {'+' if law.scale >= 0 else '-'} {abs(law.scale):.4g} x^-{law.exponent:.3g}",
            "r2": law.r2,
            "tried": {"from": min(x), "to": last, "amounts": len(set(x))},
            "target": target,
            "amount": _finite(amount),
            "low": _finite(low),
            "high": _finite(high),
            "share": share,
            "check": found["check"],
            "sure": sure(found, amount, last, share),
        }


def sure(found: Mapping[str, Any], amount: float, last: float, share: float) -> str:
    """How far a law may be trusted for an amount, in words."""
    doubts = []
    check = found["check"]
    if check is None:
        doubts.append("too few amounts to leave one out")
    elif not check["inside"]:
        missed = f"{check['measured']:.4g}, not {check['predicted']:.4g}"
        doubts.append(f"it missed the largest amount when that was left out ({missed})")
    if found["r2"] < 0.5:
        doubts.append(f"it explains little (R² {found['r2']:.2f})")
    if not math.isfinite(amount):
        doubts.append("the fitted curve never reaches the target")
    elif amount > REACH * last:
        doubts.append(f"it is {amount / last:.0f} times more than was tried")
    if share < 0.9:
        doubts.append(f"{1 - share:.0%} of the resampled curves never reach it")
    if not doubts:
        return "sure as far as it goes: the largest amount was predicted from the others"
    return f"not sure: {'; '.join(doubts)}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def snippet(found: Mapping[str, Any]) -> str:
    """The proposed arms as they are written in a recipe."""
    import yaml

    arms = {f"next-{i}": arm["values"] for i, arm in enumerate(found["arms"], 1)}
    return yaml.safe_dump({"arms": {"add": arms}}, sort_keys=False) if arms else ""
