"""What the data say about the choice of objective, before anything is trained.

Instruction Modelling (arXiv 2405.14394, section 4.2) helps under two conditions that can be read off the data: prompts
that are long beside their answers, and few rows. The paper fits a line to each, for the relative gain in AlpacaEval
1.0 of Llama-2-7B. The lines are repeated here as the paper's: they rest on a few data sets and one model, the second
was fitted at a ratio of about 10, and the base of the logarithm is not given (the natural one fits the second plot).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from cuvee.chat import ASSISTANT, ROLE_NAMES
from training.objective import KL, Objective, weighted_rows

MIXTURE = "all"
"""The name under which all sources together are listed."""


class Measured(NamedTuple):
    """A data set of the paper: rows, instruction/output ratio, relative gain of IM in AlpacaEval 1.0 (Tables 1, 5)."""

    name: str
    rows: int
    ratio: float
    gain: float


PAPER = (
    Measured("LIMA", 1_030, 0.0942, -0.004),
    Measured("Less MMLU Chat", 13_533, 26.33, 1.213),
    Measured("Less Tydiqa", 13_533, 5.862, 0.973),
    Measured("Less BBH ICL", 13_533, 3.265, 0.220),
    Measured("Alpagasus Dolly 3k", 2_996, 0.6439, 0.126),
    Measured("Alpagasus Dolly 9k", 9_229, 0.2965, 0.429),
    Measured("Alpagasus Alpaca 5k", 5_305, 0.5672, 0.198),
)


@dataclass(frozen=True)
class Advice:
    """Lengths are means in tokens; the ratio is that of the means, as in the paper's Table 5.

    `line_ratio` and `line_rows` are the paper's lines at this ratio and this number of rows: relative gains of IM over
    IT in percent. None where they are not defined.
    """

    source: str
    rows: int
    instruction: float
    output: float
    ratio: float
    line_ratio: float | None
    line_rows: float | None
    nearest: Measured

    def __str__(self) -> str:
        lines = f"{_percent(self.line_ratio)} by ratio, {_percent(self.line_rows)} by rows"
        return (
            f"{self.source}: {self.rows} rows, {self.instruction:.0f} instruction and {self.output:.0f} output tokens, "
            f"ratio {self.ratio:.2f}. Nearest in the paper: {self.nearest.name} (ratio {self.nearest.ratio:.2f}, "
            f"{self.nearest.rows} rows), where IM changed AlpacaEval 1.0 by {self.nearest.gain:+.1%}. "
            f"The paper's own lines, not ours: {lines}."
        )


def advise(tokens: pa.Table) -> list[Advice]:
    """One for each source, sorted, and one for the mixture; of a table of `cuvee.tokens.TOKENS_SCHEMA`.

    Instruction tokens are those of system, user and tool text; output tokens those of the assistant with end tokens.
    """
    sums: dict[str, np.ndarray] = {}
    for row in weighted_rows(tokens, Objective.parse("sft")):
        counts = np.bincount(row.roles, minlength=len(ROLE_NAMES))
        output = counts[ASSISTANT]
        sums.setdefault(row.source, np.zeros(3))[:] += (1, counts[1:].sum() - output, output)
    if not sums:
        return []
    total = np.sum(list(sums.values()), axis=0)
    return [_advice(source, *values) for source, values in [*sorted(sums.items()), (MIXTURE, total)]]


def _advice(source: str, rows: float, instruction: float, output: float) -> Advice:
    ratio = instruction / output if output else math.inf
    known = 0 < ratio < math.inf
    return Advice(
        source=source,
        rows=int(rows),
        instruction=float(instruction / rows),
        output=float(output / rows),
        ratio=float(ratio),
        line_ratio=18.85 * math.log(ratio) + 25.83 if known else None,
        line_rows=-39.37 * math.log(rows) + 431.74,
        nearest=min(PAPER, key=lambda m: abs(math.log(m.ratio) - (math.log(ratio) if known else math.inf))),
    )


def _percent(gain: float | None) -> str:
    return "none" if gain is None else f"{gain:+.0f} %"


def warnings(
    tokens: pa.Table, objective: Objective, *, stop_ids: Sequence[int], max_len: int | None = None
) -> list[str]:
    """What is likely to be a mistake: rows that train nothing, cut answers, answers trained without their end token.

    `tokens` of `cuvee.tokens.TOKENS_SCHEMA`, `stop_ids` of the `Chat`, rows cut at `max_len` tokens. With prompts in
    the loss, a row whose answer is cut off altogether still trains, on its prompt alone; under `sft` it trains nothing.
    """
    untrained = cut = unended = 0
    stops = np.asarray(stop_ids, np.int32)
    for row in weighted_rows(tokens, objective, max_len):
        answers = (row.roles == ASSISTANT) & (row.weights > 0)
        ended = row.turns[answers & np.isin(row.ids, stops)]
        cut_here = bool((row.cut == ASSISTANT).any())
        untrained += not row.weights.any()
        cut += cut_here
        unended += not cut_here and len(np.setdiff1d(row.turns[answers], ended)) > 0
    found = [
        (untrained, "train nothing: no token of them has a weight"),
        (cut, f"lose part of an answer at {max_len} tokens, so the model does not see it end"),
        (unended, "have an answer in the loss whose end token is not, so the model would not learn to stop"),
    ]
    lines = [f"{count} of {tokens.num_rows} rows {what}" for count, what in found if count]
    return lines + _penalty_warning(objective.kl)


def _penalty_warning(kl: KL | None) -> list[str]:
    if kl is None or kl.variant != "target":
        return []
    left = 1 - kl.weight
    return [
        f"the target-token penalty with weight {kl.weight:g} only scales the gradient by {left:g}: "
        + ("nothing is learnt" if left == 0 else "the loss rises" if left < 0 else "it is no penalty at all")
        + "; use variant full for a KL penalty"
    ]
