"""Why a row was chosen, or was not: the figures that decided, in words.

Everything is read from the selection table, which holds the decision on every row. With the vectors, a greedy method's
nearest chosen row can be told as well.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cuvee.errors import DataError, UserError
from selection.methods import META
from selection.vectors import Vectors


def explain(selection: pa.Table, id: str, *, vectors: Vectors | None = None) -> str:
    """Sentences on the row `id`, which may be shortened to a prefix that only one row has.

    `selection`: of `methods.select`, or of iterative selection. Raises UserError for an id that is not there.
    """
    facts = json.loads((selection.schema.metadata or {}).get(META, b"{}"))
    if not facts:
        raise DataError("the table does not say how it was selected", remedy="give the table that select wrote")
    at = _find(selection, id)
    row = {name: selection[name][at].as_py() for name in selection.column_names}
    config = facts["config"]
    lines = [_verdict(row, config), *_reasons(selection, row, config, facts)]
    if vectors is not None and not row["selected"]:
        lines.append(_nearest(selection, row, vectors))
    return "\n".join(line for line in lines if line)


def _find(selection: pa.Table, id: str) -> int:
    found = np.flatnonzero(pc.starts_with(selection["id"], id).to_numpy())
    if len(found) == 1:
        return int(found[0])
    exact = pc.index(selection["id"], id).as_py()
    if exact >= 0:
        return int(exact)
    raise UserError(
        f"no row {id!r} in the pool" if not len(found) else f"{len(found)} rows begin with {id!r}",
        remedy="ids are in the column id of the selection",
    )


def _verdict(row: dict[str, Any], config: dict[str, Any]) -> str:
    word = "was chosen" if row["selected"] else "was not chosen"
    if row["selected"] and row["round"] > 0:
        word += f" in round {row['round']}"
    if row.get("count"):
        word += f", {row['count']} time{'s' if row['count'] > 1 else ''} (draws are with replacement)"
    method = config.get("method", "iterate")
    return f"Row {row['id']} of source {row['source']} {word} by {method}, amount {config['amount']}."


def _reasons(selection: pa.Table, row: dict[str, Any], config: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    method = config.get("method", "iterate")
    if row["quality"] is None and selection["quality"].null_count < len(selection):
        return [f"It has no score: {facts['excluded']} rows without one were excluded."]
    group = _candidates(selection, row, config)
    lines = [_source_rule(selection, row, config)]
    if method == "random":
        lines.append(f"Every one of {_rows(group)} had the same chance, {_taken(group)}.")
    elif method in ("top", "longest"):
        lines += [_rank(group, row, "quality", "its quality", highest=True), f"Of these {_taken(group)}, by rank."]
    elif method in ("km_closest", "km_random", "kmq", "iterate"):
        lines += _in_cluster(group, row, config, method)
    else:
        lines += _greedy(group, row, config, method)
    return lines


def _candidates(selection: pa.Table, row: dict[str, Any], config: dict[str, Any]) -> pa.Table:
    """The rows that this one competed with."""
    if selection["quality"].null_count < len(selection):
        selection = selection.filter(pc.is_valid(selection["quality"]))
    if config.get("by") == "source":
        selection = selection.filter(pc.equal(selection["source"], row["source"]))
    return selection


def _source_rule(selection: pa.Table, row: dict[str, Any], config: dict[str, Any]) -> str:
    here = selection.filter(pc.equal(selection["source"], row["source"]))
    if config.get("by") == "source":
        return f"The amount was taken from each source; {row['source']} has {_rows(here)}, {_taken(here)}."
    if config.get("min_per_source"):
        return f"At least {config['min_per_source']} rows of each source were asked; of {row['source']} {_taken(here)}."
    return ""


def _in_cluster(group: pa.Table, row: dict[str, Any], config: dict[str, Any], method: str) -> list[str]:
    cluster = group.filter(pc.equal(group["cluster"], row["cluster"]))
    lines = [f"Cluster {row['cluster']} has {_rows(cluster)} of {len(group)}, {_taken(cluster)}."]
    if method == "iterate":
        drawn = pc.value_counts(cluster.filter(cluster["selected"])["round"]).to_pylist()
        by_round = ", ".join(f"round {d['values']}: {d['counts']}" for d in sorted(drawn, key=lambda d: d["values"]))
        lines.append(f"The cluster gave {by_round or 'nothing'}." if row["round"] < 0 or by_round else "")
    else:
        share = "its share of the pool" if config.get("allocation") == "size" else "the same for every cluster"
        lines.append(f"The cluster's budget was {share}.")
    if method == "km_closest":
        return [*lines, _rank(cluster, row, "distance", "its distance to the centre", highest=False)]
    if row["quality"] is not None:
        lines.append(_rank(cluster, row, "quality", "its quality", highest=True))
    if row["weight"] is not None:
        of = "the round" if method == "iterate" else "its cluster"
        uniform = 1 / len(cluster)
        lines.append(
            f"A single draw of {of} took it with probability {row['weight']:.3g}; even odds in the cluster"
            f" are {uniform:.3g}."
        )
    if not row["selected"]:
        lines.append("The draw fell on others; another seed may take it." if _any(cluster) else "")
    return lines


def _greedy(group: pa.Table, row: dict[str, Any], config: dict[str, Any], method: str) -> list[str]:
    if method == "k_center":
        rule = "Each choice was the row farthest from all that were chosen before."
        return [rule, "" if row["selected"] else "When the budget was full, other rows had been farther away."]
    lines = [_rank(group, row, "quality", "its quality", highest=True)]
    if method == "deita":
        lines.append(
            f"Rows came by falling quality, unless their cosine with a kept row was above {config['threshold']}."
        )
        kept = group.filter(group["selected"])
        least = pc.min(kept["quality"]).as_py()
        if not row["selected"] and least is not None:
            near = row["quality"] > least
            lines.append(
                f"Rows of lower quality were kept (down to {least:.4g}), so it was too near to one that came before it."
                if near
                else f"The lowest quality kept is {least:.4g}: the budget was full before its turn, or it was too near."
            )
    elif method == "qdit":
        lines.append(f"Each choice had the largest {1 - config['alpha']:g} * coverage + {config['alpha']:g} * quality.")
    return lines


def _nearest(selection: pa.Table, row: dict[str, Any], vectors: Vectors) -> str:
    chosen = selection.filter(selection["selected"])["id"]
    place, own = vectors.find(chosen), vectors.find(pa.array([row["id"]]))
    if own[0] < 0 or not len(chosen):
        return ""
    rows, mine = vectors.take(place), vectors.take(own)[0]
    cosines = rows @ mine / np.maximum(np.linalg.norm(rows, axis=1) * np.linalg.norm(mine), 1e-30)
    best = int(cosines.argmax())
    return f"The nearest chosen row is {chosen[best].as_py()}, cosine {cosines[best]:.3f}."


def _rank(group: pa.Table, row: dict[str, Any], column: str, name: str, *, highest: bool) -> str:
    values, own = group[column].to_numpy(), row[column]
    before = int((values > own).sum() if highest else (values < own).sum())
    order = "highest" if highest else "lowest"
    return f"{name[0].upper()}{name[1:]}, {own:.4g}, is number {before + 1} of {len(values)} from the {order}."


def _rows(table: pa.Table) -> str:
    return f"{len(table)} row{'' if len(table) == 1 else 's'}"


def _taken(table: pa.Table) -> str:
    count = int(np.count_nonzero(table["selected"].to_numpy(zero_copy_only=False)))
    return f"{count} {'was' if count == 1 else 'were'} chosen"


def _any(table: pa.Table) -> bool:
    return bool(pc.any(table["selected"]).as_py())
