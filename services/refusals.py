"""What a run would refuse later, told by `cuvee plan` as far as finished steps let it know.

Amounts are checked where the size of a table is exact, lengths where the model is at hand. What is only estimated is
not judged; the steps themselves refuse it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.amounts import Amount
from services.figures import EXACT, Figures, base_of

if TYPE_CHECKING:
    from services.graph import Node
    from services.plan import Plan


def refusals(plan: Plan, known: Figures) -> list[str]:
    """A line for each fault, in the order of the arms."""
    found: dict[str, None] = {}
    for arm in plan.arms:
        for stage, parts in arm.stages.items():
            found |= dict.fromkeys(_amounts(parts.compose, stage, known))
            if fault := _length(parts.train, stage, known):
                found[fault] = None
    return list(found)


def _amounts(compose: Node, stage: str, known: Figures) -> list[str]:
    found = []
    for table, asked in compose.config["mix"].items():
        size, amount = known.rows(compose.inputs[f"tokens.{table}"]), Amount.parse(asked)
        if size.value is None or size.certainty != EXACT or amount.kind == "tokens" or not amount.value:
            continue
        place, rows = f"stage {stage}, table {table}", amount.rows_of(size.value)
        if amount.kind == "rows" and rows > size.value:
            found.append(f'{place}: {amount} asked, {size.value} there (repeat the table, as "2x")')
        if rows == 0 and not compose.config["minimum"]:
            found.append(
                f"{place}: {amount} of {size.value} rows is less than one row (raise the amount, or set `minimum`)"
            )
    return found


def _length(train: Node, stage: str, known: Figures) -> str:
    config = known.model_config(base_of(train).key)
    if config is None:
        return ""
    longest, asked = config.get("text_config", config).get("max_position_embeddings"), train.config["train"]["max_len"]
    if longest and asked > longest:
        return f"stage {stage}: max_len {asked} is above the model's {longest} positions (set max_len to {longest})"
    return ""
