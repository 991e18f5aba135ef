"""`cuvee export`: the examples of a recipe's stages, or of a stored run's, for other trainers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee import rows
from services import exporting
from services import single_files as files
from services.single import Session
from services.single_training import Part
from services.steps.model import model_folder

if TYPE_CHECKING:
    import pyarrow as pa

KEPT = ["id", "target", "messages", "weight"]
CHUNK = 4096
MICRO_BATCH = 4
"""Rows of a forward pass when neither model nor recipe says."""


def export(session: Session, wanted: Sequence[Part], form: str, out: Path) -> list[dict[str, Any]]:
    """Write `<stage>.jsonl` for each stage and, but for `messages`, the settings that train on it."""
    session.run([part.arm.stages[part.stage].compose for part in wanted])
    found: list[dict[str, Any]] = []
    datasets: dict[Path, dict[str, str]] = {}
    for part in wanted:
        marks = Marks.of(examples(session, part))
        data = part.folder / f"{part.stage}.jsonl"
        records = examples(session, part)
        if form != "messages":
            records = (exporting.plain_messages(r, flags=marks.zero and form == "axolotl") for r in records)
        count = files.write_records(data, records)
        entry = {"arm": part.arm.arm.name, "stage": part.stage, "data": str(data), "rows": count}
        if make := exporting.FORMATS[form]:
            exported = make(described(session, part, count, marks, out))
            target = part.folder / f"{part.stage}.{form}.yaml"
            _write(target, exporting.settings_text(form, target.name, exported))
            entry |= {"settings": str(target), "different": list(exported.lost)}
            datasets.setdefault(part.folder, {})[part.stage] = data.name
        found.append(entry)
    if form == "llama-factory":
        for folder, named in datasets.items():
            _write(folder / "dataset_info.json", json.dumps(exporting.dataset_info(named), indent=1) + "\n")
    return found


@dataclass(frozen=True)
class Marks:
    """Whether the examples have messages of weight 0, and weights that only we know."""

    zero: bool
    fraction: bool

    @classmethod
    def of(cls, records: Iterator[dict[str, Any]]) -> Marks:
        zero = fraction = False
        for record in records:
            weights = [message.get("weight", 1.0) for message in record["messages"]]
            zero = zero or 0 in weights
            fraction = fraction or any(w not in (0, 1) for w in [*weights, record.get("weight", 1.0)])
        return cls(zero, fraction)


def described(session: Session, part: Part, count: int, marks: Marks, out: Path) -> exporting.Stage:
    """What a trainer has to be told about a stage."""
    recipe, name = part.arm.arm.document, part.stage
    stage, spec = recipe.stages[name], recipe.models[recipe.model_for(name)]
    lost = ["weights between 0 and 1 of rows and messages are not used"] if marks.fraction else []
    kept = [w for w in ("schedule", "optimiser") if stage.init in recipe.stages and getattr(stage, w) == "keep"]
    lost += [f"the {word} of the stage before is not kept" for word in kept]
    if spec.template or spec.template_args or spec.post_instruction:
        lost.append("the chat template is the tokenizer's own, not the recipe's")
    if stage.init in recipe.stages:
        model = stage.init
    else:
        model = exporting.base_model(spec) or os.path.relpath(_builtin(session, part, out), part.folder)
    micro = spec.micro_batch or recipe.execution.micro_batch or MICRO_BATCH
    seed = part.arm.arm.seeds["init"]
    settings, objective = recipe.train_for(name), recipe.objective_for(name)
    return exporting.Stage(
        name, model, f"{name}.jsonl", count, settings, objective, micro, seed, marks.zero, tuple(lost)
    )


def _builtin(session: Session, part: Part, out: Path) -> Path:
    """The built-in model as a folder that other trainers can read."""
    node = part.arm.base
    assert node is not None
    folder = out / "base"
    if not (folder / "config.json").exists():
        session.run([node])
        files.copy_model(model_folder(session.folder(node)), folder)
    return folder


def _write(path: Path, text: str) -> None:
    with files.whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def examples(session: Session, part: Part) -> Iterator[dict[str, Any]]:
    """The examples of a stage as conversations, in the order of its list: every epoch, every repeat.

    The list and the tables of its mix must be made.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    stage = part.arm.stages[part.stage]
    listed = pq.read_table(session.folder(stage.compose) / f"{part.stage}.parquet")
    tokens = {name: node for name, node in stage.train.inputs.items() if name.startswith("tokens.")}
    # The rows that were rendered for training, whatever brought them into the mix.
    tables = [rows.read(session.folder(node.inputs["rows"]) / "rows", KEPT) for _, node in sorted(tokens.items())]
    table = pa.concat_tables(tables)
    place = pc.index_in(_keys(listed), value_set=_keys(table).combine_chunks())
    for start in range(0, len(listed), CHUNK):
        here = listed.slice(start, CHUNK)
        taken = table.take(place.slice(start, CHUNK))
        for line, record in zip(here.to_pylist(), rows.records(taken), strict=True):
            yield {
                "id": line["id"],
                "target": line["target"],
                "source": line["source"],
                "epoch": line["epoch"],
                "messages": list(record["messages"]),
            } | ({} if record["weight"] is None else {"weight": record["weight"]})


def _keys(table: pa.Table) -> pa.ChunkedArray:
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.binary_join_element_wise(table["id"], pc.cast(table["target"], pa.string()), "/")
