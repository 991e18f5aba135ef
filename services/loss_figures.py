"""What of a stage's tokens carries loss, and what the data say about the choice of objective; for `cuvee plan`.

It is read from rendered tables, so a plan has it once their `tokens` are made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from services.figures import Figures

if TYPE_CHECKING:
    import pyarrow as pa

    from services.plan import Plan, StagePlan


def loss_figures(plan: Plan, known: Figures) -> list[dict[str, Any]]:
    """For each table of a stage, under each objective: shares by source and role, warnings, and advice.

    `shares` as in `training.objective.trained_share`. `mixture` is the advice for the rows of the stage's list, where
    that is made; it is with the first of the stage's tables.
    """
    from cuvee import rows
    from training import advice
    from training import objective as objectives

    found: dict[str, dict[str, Any]] = {}
    lists: set[str] = set()
    for arm in plan.arms:
        for stage, parts in arm.stages.items():
            spec = arm.arm.document.objective_for(stage)
            max_len = arm.arm.document.train_for(stage).max_len
            for name, node in parts.train.inputs.items():
                key = f"{node.key} {spec.model_dump_json()} {max_len}"
                info = known.info(node)
                if not name.startswith("tokens.") or info is None or key in found:
                    continue
                table = rows.read(known.store.local(node.key) / "tokens")
                found[key] = {
                    "arm": arm.arm.name,
                    "stage": stage,
                    "table": name.removeprefix("tokens."),
                    "objective": spec.preset,
                    "shares": objectives.trained_share(table, spec, max_len).to_pylist(),
                    "warnings": advice.warnings(table, spec, stop_ids=info["stop_ids"], max_len=max_len),
                    "advice": [str(line) for line in advice.advise(table)],
                }
                if parts.compose.key not in lists and known.info(parts.compose) is not None:
                    lists.add(parts.compose.key)
                    found[key]["mixture"] = str(advice.advise(_listed(parts, known))[-1])
    return list(found.values())


def _listed(parts: StagePlan, known: Figures) -> pa.Table:
    """The tokens of the rows of a stage's list, each once."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from cuvee import rows

    stage = parts.compose.config["stage"]
    wanted = pc.unique(pq.read_table(known.store.local(parts.compose.key) / f"{stage}.parquet", columns=["id"])["id"])
    tables = [
        rows.read(known.store.local(node.key) / "tokens")
        for name, node in parts.train.inputs.items()
        if name.startswith("tokens.")
    ]
    return pa.concat_tables([table.filter(pc.is_in(table["id"], value_set=wanted)) for table in tables])


def by_source(shares: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry a source: `tokens`, `trained` of them, and `roles`, the part of each role in the weight of the loss."""
    found: dict[str, dict[str, Any]] = {}
    for line in shares:
        entry = found.setdefault(line["source"], {"source": line["source"], "tokens": 0, "trained": 0, "roles": {}})
        entry["tokens"] += line["tokens"]
        entry["trained"] += line["trained"]
        if line["weight"]:
            entry["roles"][line["role"]] = line["weight"]
    for entry in found.values():
        total = sum(entry["roles"].values())
        entry["roles"] = {role: weight / total for role, weight in sorted(entry["roles"].items(), key=lambda x: -x[1])}
    return list(found.values())
