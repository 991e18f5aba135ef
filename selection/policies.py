"""Policies: an order of preference over the sources of a target.

| policy       | order                     | what it is                                     |
|--------------|---------------------------|------------------------------------------------|
| `gold`       | gold                      | plain fine-tuning                              |
| `ssr`        | model, gold               | SSR, 2409.04787                                |
| `sdft`       | paraphrase, gold          | SDFT, 2402.13669                               |
| `s3ft`       | model, paraphrase, gold   | S3FT                                           |
| `model_only` | model                     | fewer rows: those without an accepted answer go |
| `rft`        | gold and all of the model | RFT, 2308.01825: several targets, see `rft.py` |
| `best_of`    | model, gold               | the sample with the judge's highest score      |

Of n samples the first accepted by draw order is taken, not the likeliest, since the likeliest of many raises the share
of short answers; `pick: likeliest` says otherwise. Only `equivalent` is accepted: a judge's failure is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cuvee.errors import UserError
from cuvee.registry import Registry
from selection import rft
from selection.candidates import Candidate, Item

Chosen = Literal["model", "paraphrase", "gold"]


@dataclass(frozen=True)
class Policy:
    """`order`: sources by preference. `pick`: which of the model's accepted samples; `all` makes several targets."""

    order: tuple[Chosen, ...]
    pick: Literal["first", "all", "best"] = "first"


POLICIES: Registry[Policy] = Registry("policy")
POLICIES.register("gold")(Policy(("gold",)))
POLICIES.register("ssr")(Policy(("model", "gold")))
POLICIES.register("sdft")(Policy(("paraphrase", "gold")))
POLICIES.register("s3ft")(Policy(("model", "paraphrase", "gold")))
POLICIES.register("model_only")(Policy(("model",)))
POLICIES.register("rft")(Policy(("model", "gold"), pick="all"))
POLICIES.register("best_of")(Policy(("model", "gold"), pick="best"))


def picks(item: Item, own: Sequence[Candidate], policy: Policy, likeliest: bool) -> list[Candidate]:
    """The model's samples that become targets, in draw order."""
    if policy.pick == "best":
        decided = [c for c in own if c.decision in ("equivalent", "different")]
        scores = {c.draw: c.score for c in decided if c.score is not None}
        if len(scores) < len(decided):
            raise UserError(
                "the judge gives no scores to choose the best by", remedy="use a judge with a score: reward"
            )
        return [max(decided, key=lambda c: (scores[c.draw], -c.draw))] if decided else []
    accepted = [c for c in own if c.accepted]
    if policy.pick == "all":
        sound = [c for c in accepted if not rft.wrong_equation(c.text)]
        return [sound[i] for i in rft.distinct(item.gold, [c.text for c in sound])]
    if likeliest and accepted:
        known = {c.draw: c.logprob for c in accepted if c.logprob is not None}
        if len(known) < len(accepted):
            raise UserError("the model tells no log-probabilities to pick the likeliest by", remedy="set pick: first")
        return [max(accepted, key=lambda c: (known[c.draw], -c.draw))]
    return accepted[:1]


def choices(
    item: Item, picked: Sequence[Candidate], paraphrase: Candidate | None, policy: Policy
) -> list[tuple[Chosen | None, str | None, Candidate | None]]:
    """(source, text, the own sample to show) of each target; a row without any has one entry without text."""
    if policy.pick == "all":
        return [("gold", item.gold, None), *(("model", c.text, c) for c in picked)]
    for source in policy.order:
        if source == "model" and picked:
            return [("model", picked[0].text, picked[0])]
        if source == "paraphrase" and paraphrase is not None and paraphrase.accepted:
            return [("paraphrase", paraphrase.text, None)]
        if source == "gold":
            return [("gold", item.gold, None)]
    return [(None, None, None)]
