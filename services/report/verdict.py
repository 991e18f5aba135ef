"""The verdict in a sentence or two, made from the results alone.

A change is called better or worse when its interval excludes 0, and with more than one task also when Holm's p over the
list is below 0.05: a list of twenty tasks always has one whose own interval excludes 0. What has no seeds beyond one is
a statement about these models, not about the method, and the sentence says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from services.report.sweep import final_point, is_loss
from services.results import CORRECTED
from services.texts import number, signed, signed_between

LEVEL = 0.05
NAMED = 3
"""Changes that a sentence names."""


def standing(change: Mapping[str, Any]) -> str:
    """`better` or `worse` (with `, not after correction` when only the task's own interval excludes 0), or neither."""
    low, high = change.get("low"), change.get("high")
    if low is None or high is None or low <= 0 <= high:
        return "no difference shown"
    up = low > 0
    word = "better" if up != is_loss(change["metric"]) else "worse"
    p = change.get("p_holm")
    return word if p is None or p < LEVEL else f"{word}, not after correction"


def verdict(
    manifest: Mapping[str, Any], results: Mapping[str, Any], unfinished: int, sweep: Mapping[str, Any] | None = None
) -> list[str]:
    """Sentences: declared contrasts, the best arms, largest changes, what was forgotten, and what is missing."""
    arms = manifest["arms"]
    said = []
    if results["contrasts"]:
        said.append(_contrasts(results["contrasts"]))
    if search := manifest.get("search"):
        said.append(_searched(search))
    if sweep and not search and (best := _best(sweep)):
        said.append(best)
    finals = {arm["name"]: final_point(arm) for arm in arms}
    last = [c for c in results["changes"] if finals.get(c["arm"]) == c["point"]]
    if last:
        said += _changes(last, several=len(arms) > 1)
    elif results["scores"]:
        said.append("There are scores, but nothing to compare: no model was measured both before and after.")
    else:
        said.append("Nothing was measured yet.")
    if results.get("noise"):
        said.append(_noise(results["noise"]))
    drops = [d for d in results["retention"] if finals.get(d["arm"]) == d["point"] and d["drop"] is not None]
    if drops:
        said.append(_retention(drops))
    if last and len({arm["seed"] for arm in arms}) < 2:
        said.append("One seed: this speaks of these models, not of the method.")
    if unfinished:
        are = "step is" if unfinished == 1 else "steps are"
        said.append(f"{unfinished} {are} not done, so this is a part of the run.")
    return said


def _searched(search: Mapping[str, Any]) -> str:
    counts = search["counts"]
    lost = "".join(f", {counts[word]} {word}" for word in ("stopped", "failed") if counts[word])
    tried = f"A search tried {len(search['arms'])} arms ({counts['finished']} finished{lost})"
    if not search["winner"]:
        return f"{tried}; it has no winner yet."
    scores = "; ".join(f"{name} {number(s['mean'])}" for name, s in search["winner"]["scores"].items())
    return f"{tried}. Best by validation rows: {search['winner']['arm']} ({scores})."


def _contrasts(contrasts: Sequence[Mapping[str, Any]]) -> str:
    kept = [c["verdict"] for c in contrasts if not c["verdict"].endswith(CORRECTED)]
    count = sum(word.startswith(("as expected", "within the margin", "different:")) for word in kept)
    if len(contrasts) == 1:
        return f"The declared contrast ({contrasts[0]['name']}): {contrasts[0]['verdict']}."
    return f"{count} of {len(contrasts)} declared contrasts came out as expected."


def _changes(changes: Sequence[Mapping[str, Any]], *, several: bool) -> list[str]:
    """The clear changes by size within their metric's interval, then how many were not clear."""
    said = []
    clear: dict[str, list[Mapping[str, Any]]] = {"better": [], "worse": []}
    for change in changes:
        if standing(change) in clear:
            clear[standing(change)].append(change)
    tasks = len({c["task"] for c in changes})
    over = f"{tasks} task{'s' if tasks > 1 else ''}" + (f" in {len({c['arm'] for c in changes})} arms" * several)
    for word, found in clear.items():
        if found:
            found.sort(key=_weight, reverse=True)
            # Seeds of an arm tell the same story: each is named once.
            first = {(c["task"], _variant(c["arm"])): c for c in reversed(found)}
            named = sorted(first.values(), key=_weight, reverse=True)[:NAMED]
            listed = "; ".join(_named(c, several) for c in named)
            more = f"; and {len(found) - len(named)} more" if len(found) > len(named) else ""
            said.append(f"{word.capitalize()} than base on {listed}{more}.")
    rest = len(changes) - sum(map(len, clear.values()))
    if rest == len(changes):
        said.append(f"No difference from base is shown on {over}.")
    elif rest:
        said.append(f"{rest} of {len(changes)} comparisons over {over} show no difference after correction.")
    return said


def _noise(found: Sequence[Mapping[str, Any]]) -> str:
    """The tasks' standard deviations over seeds, and the stream that does most."""
    known = [n for n in found if n["sd"] is not None][:NAMED]
    named = []
    for n in known:
        most = max((p for p in n["parts"] if p["share"]), key=lambda p: p["share"], default=None)
        named.append(f"{n['task']} {number(n['sd'])}" + (f" (mostly {most['stream']})" if most else ""))
    more = f"; and {len(found) - len(named)} more" if len(found) > len(named) else ""
    return f"Noise of seeds, as standard deviation: {'; '.join(named)}{more}." if named else "Noise of seeds: unknown."


def _variant(arm: str) -> str:
    return arm.rpartition(",seed=")[0] or arm


def _best(sweep: Mapping[str, Any]) -> str:
    """The best arm of each metric, by the mean over seeds."""
    found = []
    for metric in sweep["metrics"][:NAMED]:
        known = [v for v in sweep["variants"] if metric in v["mean"]]
        if len(known) > 1:
            pick = min if metric in sweep["lower"] else max
            value = pick(v["mean"][metric] for v in known)
            best = [v["name"] for v in known if math.isclose(v["mean"][metric], value, abs_tol=1e-9)]
            name = best[0] if len(best) == 1 else f"a tie of {len(best)}"
            found.append(f"{metric} {name} ({number(value)})")
    return f"Best arms by the mean over seeds: {'; '.join(found)}." if found else ""


def _weight(change: Mapping[str, Any]) -> float:
    """The difference in units of its interval's half width, so that nats and shares can be ordered."""
    return abs(change["difference"]) / max((change["high"] - change["low"]) / 2, 1e-12)


def _named(change: Mapping[str, Any], several: bool) -> str:
    who = f" ({change['arm']})" if several else ""
    unit = " nats per token" if change["metric"] == "loss" else ""
    interval = signed_between(change["low"], change["high"])
    return f"{change['task']}{who} {signed(change['difference'])}{unit} (95% interval {interval})"


def _retention(drops: Sequence[Mapping[str, Any]]) -> str:
    if len(drops) > 1:
        worst = max(drops, key=lambda d: d["drop"])
        least = min(drops, key=lambda d: d["drop"])
        return (
            f"Forgotten on the retention suite: from {signed(least['drop'])} ({least['arm']}) "
            f"to {signed(worst['drop'])} ({worst['arm']}) on average."
        )
    drop = drops[0]
    low, high = drop.get("low"), drop.get("high")
    if low is None or high is None:
        return f"Retention: mean drop {signed(drop['drop'])}."
    if low > 0:
        said = "the model forgot"
    elif high < 0:
        said = "the model gained there"
    else:
        said = "no forgetting shown"
    return f"Retention: {said}, mean drop {signed(drop['drop'])} (95% interval {signed_between(low, high)})."
