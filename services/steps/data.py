"""Tables: reading a source, joining tables, splitting off rows, and hygiene.

Every step here writes `rows/` (the table that goes on) and, where it takes rows away, `removed.parquet` with the id
and the reason.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee import rows
from cuvee.errors import DataError
from services.steps.base import Context, step

if TYPE_CHECKING:
    import pyarrow as pa


FOUND = "found.json"
"""In a decontaminate artifact: benchmark → the ids of its items that were found."""


def sizes(table: pa.Table) -> dict[str, Any]:
    """Figures of a table: rows, rows by source, characters (for token estimates)."""
    import pyarrow.compute as pc

    by_source = {item["values"]: item["counts"] for item in pc.value_counts(table["source"]).to_pylist()}
    contents = pc.struct_field(pc.list_flatten(table["messages"]), "content")
    return {
        "rows": table.num_rows,
        "sources": dict(sorted(by_source.items())),
        "characters": pc.sum(pc.utf8_length(contents)).as_py() or 0,
        "messages": len(contents),
    }


def write_removed(table: pa.Table, path: Path) -> None:
    """The rows that a step took away, with their reason."""
    import pyarrow.parquet as pq

    pq.write_table(table, path, compression="zstd")


def finish(context: Context, kept: pa.Table, removed: pa.Table | None = None, **more: Any) -> dict[str, Any]:
    """Write the table that goes on and what was removed; an empty table ends the run, since nothing can follow."""
    rows.write(kept, context.out / "rows")
    if removed is not None:
        write_removed(removed, context.out / "removed.parquet")
        more["removed"] = removed.num_rows
    if kept.num_rows == 0:
        raise DataError("no rows are left", field=context.key.split("-")[0], remedy="loosen this operation")
    return {**sizes(kept), **more}


def taken(folder: Path, ids: pa.Array) -> pa.Table:
    """The rows of a stored table with these ids, read part by part: the table may be larger than memory."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return pa.concat_tables(part.filter(pc.is_in(part["id"], value_set=ids)) for part in rows.stream(folder))


def clustered(table: pa.Table, folder: Path) -> pa.Table:
    """The table with the columns `cluster` and `distance` of a cluster artifact."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    clusters = pq.read_table(folder / "clusters.parquet")
    place = pc.index_in(table["id"], value_set=clusters["id"].combine_chunks())
    for name in ("cluster", "distance"):
        table = table.append_column(name, clusters[name].take(place))
    return table


@step(
    "load",
    "1",
    "services.sources",
    "services.readers",
    "services.places",
    "services.pools",
    "services.wordproblems",
    "selection.pool",
    "cuvee.rows",
)
def load(context: Context) -> dict[str, Any]:
    """A source as a table; rows that cannot be used go to `rejected.jsonl` with file, line and reason."""
    from services.sources import Source, open_source

    source = Source.model_validate(context.execution["source"])
    loaded = open_source(context.config["name"], source, seed=int(context.config["seed"]))
    with (context.out / "rejected.jsonl").open("w") as file:
        for item in loaded.rejected:
            file.write(json.dumps(item, ensure_ascii=False) + "\n")
    return finish(context, loaded.table, rejected=len(loaded.rejected))


@step("merge", "1", "cuvee.rows")
def merge(context: Context) -> dict[str, Any]:
    """Several tables as one. A row that is in two of them stays once; columns that one lacks are null there."""
    import pyarrow as pa

    tables = [rows.read(folder / context.config["part"]) for _, folder in sorted(context.inputs.items())]
    joined = rows.sort(pa.concat_tables(tables, promote_options="default"))
    seen: set[tuple[str, int]] = set()
    keep = []
    for pair in zip(joined["id"].to_pylist(), joined["target"].to_pylist(), strict=True):
        keep.append(pair not in seen)
        seen.add(pair)
    return finish(context, joined.filter(pa.array(keep)), twice=keep.count(False))


@step("holdout", "1", "selection.holdout", "selection.near", "selection.hygiene", "cuvee.rows")
def holdout(context: Context) -> dict[str, Any]:
    """Rows split by their prompt: `rows/` goes on, `held/` is never trained on."""
    from selection.holdout import HoldoutConfig
    from selection.holdout import holdout as split

    config = HoldoutConfig.model_validate(context.config)
    kept, held = split(rows.read(context.inputs["rows"] / "rows"), config)
    rows.write(held, context.out / "held")
    return finish(context, kept, held=held.num_rows)


@step("dedup", "1", "selection.dedup", "selection.near", "selection.hygiene", "cuvee.rows")
def dedup(context: Context) -> dict[str, Any]:
    """Duplicates removed: exact, near, semantic, each counted."""
    from selection.dedup import DedupConfig
    from selection.dedup import dedup as remove
    from selection.vectors import Vectors

    vectors = Vectors.open(context.inputs["vectors"] / "vectors") if "vectors" in context.inputs else None
    table = rows.read(context.inputs["rows"] / "rows")
    kept, removed = remove(table, DedupConfig.model_validate(context.config), vectors)
    return finish(context, kept, removed)


@step("filter", "1", "selection.bounds", "selection.hygiene")
def bounds(context: Context) -> dict[str, Any]:
    """Rows inside length and language bounds."""
    from selection.bounds import BoundsConfig
    from selection.bounds import bounds as inside

    kept, removed = inside(rows.read(context.inputs["rows"] / "rows"), BoundsConfig.model_validate(context.config))
    return finish(context, kept, removed)


@step("decontaminate", "2", "selection.decontaminate", "selection.hygiene")
def decontaminate(context: Context) -> dict[str, Any]:
    """Rows that share spans with the named tables or tasks, removed and kept with the span that matched.

    `found.json` names the items of each task that were found.
    """
    from selection.decontaminate import DecontaminateConfig
    from selection.decontaminate import decontaminate as clean

    config = DecontaminateConfig.model_validate(context.config["options"])
    against = {name: _texts(name, context) for name in context.config["against"]}
    table = rows.read(context.inputs["rows"] / "rows")
    kept, flagged = clean(table, {name: list(texts.values()) for name, texts in against.items()}, config)
    ids = {name: list(texts) for name, texts in against.items()}
    found: dict[str, set[str]] = {}
    for hit in flagged.to_pylist():
        found.setdefault(hit["against"], set()).add(ids[hit["against"]][hit["item"]])
    (context.out / FOUND).write_text(json.dumps({name: sorted(hits) for name, hits in found.items()}))
    info = finish(context, kept, flagged)
    # A row may be flagged by several names, or only be reported.
    return {**info, "removed": table.num_rows - kept.num_rows, "flagged": flagged.num_rows}


def _texts(name: str, context: Context) -> dict[str, str]:
    """Texts by id of something that must not be trained on: another table of the recipe, or a task's items."""
    if f"against.{name}" in context.inputs:
        table = rows.read(context.inputs[f"against.{name}"] / "rows", ["id", "target", "messages"])
        return {
            f"{record['id']}#{record['target']}": " ".join(m["content"] for m in record["messages"])
            for record in rows.records(table)
        }
    from evaluation import tasks

    items = tasks.get(name).items(tasks.EvalOptions())
    return {item.id: " ".join((item.question, item.answer, *item.references, *item.contexts[:1])) for item in items}


@step("tag", "1", "selection.tagging", "selection.hygiene")
def tag(context: Context) -> dict[str, Any]:
    """Tags as columns; rows with an unwanted tag removed."""
    from selection.tagging import TagConfig
    from selection.tagging import tag as mark

    kept, removed = mark(rows.read(context.inputs["rows"] / "rows"), TagConfig.model_validate(context.config))
    return finish(context, kept, removed)


@step("sample", "1", "selection.sample", draws=True)
def sample(context: Context) -> dict[str, Any]:
    """A prefix of one seeded permutation per source, so that smaller samples lie inside larger ones."""
    from selection.sample import SampleConfig
    from selection.sample import sample as take

    table = rows.read(context.inputs["rows"] / "rows")
    config = SampleConfig.model_validate(context.config)
    return finish(context, take(table, config.amount, context.draw_seed()))


@step("corrupt", "1", "selection.corrupt", draws=True)
def corrupt(context: Context) -> dict[str, Any]:
    """Answers exchanged among rows, marked in the column `corrupted`."""
    import pyarrow.compute as pc

    from selection.corrupt import COLUMN, CorruptConfig
    from selection.corrupt import corrupt as exchange

    table = rows.read(context.inputs["rows"] / "rows")
    clusters = context.inputs.get("clusters")
    cluster = clustered(table, clusters)["cluster"] if clusters else None
    made, drawn = exchange(table, CorruptConfig.model_validate(context.config), context.draw_seed(), cluster)
    return finish(context, made, corrupted=pc.sum(made[COLUMN]).as_py() or 0, **drawn)
