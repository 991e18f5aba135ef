"""Steps between rows and training: token ids with roles, and the exact list of a stage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cuvee import rows
from cuvee.errors import DataError
from services.steps.base import Context, step
from services.steps.model import model_folder


@step("render", "1", "cuvee.chat", "cuvee.tokens", "cuvee.halves")
def render(context: Context) -> dict[str, Any]:
    """`tokens/`: ids and roles of each row under the chat template; rows that cannot be rendered are kept apart."""
    import pyarrow.compute as pc

    from cuvee.chat import Chat
    from cuvee.halves import halve
    from cuvee.tokens import tokenise

    chat = Chat.load(model_folder(context.inputs["model"]), **context.config["chat"])
    table = rows.read(context.inputs["rows"] / context.config.get("part", "rows"))
    if half := context.config.get("half"):
        table = halve(table, half, "what is held out")
    tokens, rejected = tokenise(table, chat)
    rows.write(tokens, context.out / "tokens")
    with (context.out / "rejected.jsonl").open("w") as file:
        for item in rejected:
            file.write(json.dumps(item.__dict__, ensure_ascii=False, default=str) + "\n")
    if tokens.num_rows == 0:
        first = rejected[0].reason if rejected else "the table is empty"
        raise DataError(f"no row can be rendered: {first}", field="template")
    lengths = pc.list_value_length(tokens["ids"])
    return {
        "rows": tokens.num_rows,
        "rejected": len(rejected),
        "tokens": pc.sum(lengths).as_py(),
        "longest": pc.max(lengths).as_py(),
        "template": chat.digest,
        "stop_ids": list(chat.stop_ids),
    }


@step("compose", "1", "training.mixture", "cuvee.amounts")
def compose(context: Context) -> dict[str, Any]:
    """`<stage>.parquet`: the exact list of the stage; `realised.json`: asked against realised.

    Rows whose prompt is held out anywhere in the recipe are left out and counted, whatever table brings them.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from cuvee.amounts import Amount
    from training.mixture import compose as mix

    config: Mapping[str, Any] = context.config
    seeds = config["seeds"]
    held: set[str] = set()
    for name, folder in sorted(context.inputs.items()):
        if name.startswith("held."):
            table = rows.read(folder / "held", ["messages"])
            held |= {rows.prompt_hash(record["messages"]) for record in rows.records(table)}
    lengths: dict[str, pa.Table] = {}
    excluded: dict[str, int] = {}
    for name in config["mix"]:
        tokens = rows.read(context.inputs[f"tokens.{name}"] / "tokens", ["id", "target", "source", "ids"])
        counts = pc.cast(pc.list_value_length(tokens["ids"]), pa.int32())
        table = tokens.drop_columns(["ids"]).append_column("tokens", counts)
        chosen = rows.read(context.inputs[f"rows.{name}"] / "rows", None)
        if "count" in chosen.column_names:
            place = pc.index_in(table["id"], value_set=chosen["id"].combine_chunks())
            table = table.append_column("count", chosen["count"].take(place))
        if held:
            bad = {
                r["id"]
                for r in rows.records(chosen.select(["id", "messages"]))
                if rows.prompt_hash(r["messages"]) in held
            }
            if bad:
                excluded[name] = len(bad)
                table = table.filter(pc.invert(pc.is_in(table["id"], pa.array(sorted(bad), pa.string()))))
        lengths[name] = table
    mixture = mix(
        config["stage"],
        {name: Amount.parse(amount) for name, amount in config["mix"].items()},
        lengths,
        epochs=config["epochs"],
        seed=seeds["order"],
        sample_seed=seeds["sample"],
        order=config["order"],
        max_len=config["max_len"],
        over_long=config["over_long"],
        minimum=config["minimum"],
    )
    pq.write_table(mixture.plan, context.out / f"{config['stage']}.parquet", compression="zstd")
    (context.out / "realised.json").write_text(json.dumps(mixture.realised, indent=1, default=str))
    return {
        "rows": mixture.plan.num_rows,
        "tokens": pc.sum(mixture.plan["tokens"]).as_py() or 0,
        "realised": mixture.realised,
        "unique": mixture.unique,
        "shared": mixture.shared,
        "excluded_as_held_out": excluded,
    }
