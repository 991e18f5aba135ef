"""Strategies of DMT (arXiv 2310.05492, section 3.5): which table is learnt in which stage.

A curriculum is an ordered map of stages, each a mix of tables with amounts. A strategy rearranges it, so that a sweep
over strategies needs one list of stages:

| strategy | stages |
|---|---|
| `dmt` | as written: specialised tables first, then the general ones with a fraction of the specialised replayed |
| `mixed_sequential` | as written, without the replays: a table stays only in the first stage that has it |
| `sequential` | one stage a table, in the order in which they first appear, each from the one before |
| `multi_task` | one stage with every table |

A table's amount is always that of its first appearance, because what comes later is a replay of it. Amounts of
nothing are left out, so that DMT with k = 0 is `mixed_sequential` and not merely like it. The paper orders the
sequential stages code, math, general; here that order is the one in which the tables are written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cuvee.amounts import Amount
from cuvee.errors import UserError

Strategy = Literal["multi_task", "sequential", "mixed_sequential", "dmt"]
Mixes = Mapping[str, Mapping[str, Amount]]

ALL = Amount.parse("all")


@dataclass(frozen=True)
class Explicit:
    """A stage as it is trained. `like` is the written stage whose other settings hold; `init` "" means as written."""

    name: str
    mix: dict[str, Amount]
    like: str
    init: str = ""


def dmt(special: Sequence[str], general: Sequence[str], k: Amount) -> dict[str, dict[str, Amount]]:
    """The two stages of DMT: `special` whole, then `general` whole with the fraction `k` of each special table.

    Raises UserError when k is no fraction between 0 and 1, or when a table is in both groups or a group is empty.
    """
    if k.kind != "fraction" or not 0 <= k.value <= 1:
        raise UserError(f"k is {k}, and must be a fraction between 0 and 1", remedy='write "none", "1/256" or "all"')
    if both := sorted(set(special) & set(general)):
        raise UserError(f"{', '.join(both)} cannot be special and general at once")
    if not special or not general:
        raise UserError("DMT needs at least one special and one general table")
    return {
        "special": dict.fromkeys(special, ALL),
        "general": dict.fromkeys(general, ALL) | dict.fromkeys(special, k),
    }


def arrange(stages: Mixes, strategy: Strategy = "dmt") -> list[Explicit]:
    """The stages to train, in order. Raises UserError when a stage would have nothing to train on."""
    written = {name: {t: a for t, a in mix.items() if a.value > 0} for name, mix in stages.items()}
    for name, mix in written.items():
        if not mix:
            raise UserError(f"stage {name} has nothing to train on: every amount is none")
    if strategy == "dmt" or not written:
        return [Explicit(name, mix, name) for name, mix in written.items()]
    first = {t: (name, a) for name, mix in reversed(written.items()) for t, a in reversed(mix.items())}
    order = list(dict.fromkeys(t for mix in written.values() for t in mix))
    if strategy == "multi_task":
        last = next(reversed(written))
        return [Explicit(last, {t: first[t][1] for t in order}, last, "base")]
    if strategy == "sequential":
        before = ["base", *order]
        return [Explicit(t, {t: first[t][1]}, first[t][0], before[i]) for i, t in enumerate(order)]
    fresh = {name: {t: a for t, a in mix.items() if first[t][0] == name} for name, mix in written.items()}
    return [Explicit(name, mix, name) for name, mix in fresh.items() if mix]
