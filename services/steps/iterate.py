"""The steps of one round of iterative selection (Diversify and Conquer, arXiv 2409.11378, Algorithm 1).

`init` → (`propose` → render, list, train → `answer` → `grade` → `update`) for each round. The science is pure
(`selection.iterative`); a round that was killed goes on at its open step.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee import rows
from cuvee.protocols import Decoding, Request
from cuvee.rng import stream_seed
from services.steps.base import Context, step
from services.steps.data import clustered, finish, taken
from services.steps.grades import grade

if TYPE_CHECKING:
    import pyarrow as pa

SCIENCE = ("selection.iterative", "selection.methods", "selection.sampling", "selection.candidates")


@step("iterate_init", "1", *SCIENCE)
def iterate_init(context: Context) -> dict[str, Any]:
    """`selection.parquet` (no row chosen) and `state.parquet` (weights of round 1)."""
    from selection.iterative import IterateConfig, init
    from selection.methods import columns_for
    from selection.vectors import Vectors

    pool, config = context.inputs["rows"] / "rows", IterateConfig.model_validate(context.config)
    table = rows.read(pool, columns_for(config.selection(), rows.columns_of(pool)))
    table = clustered(table, context.inputs["clusters"])
    vectors = Vectors.open(context.inputs["vectors"] / "vectors")
    selection, state = init(table, config, vectors=vectors)
    write_state(context.out, selection, state)
    return {"pool": selection.num_rows}


@step("iterate_propose", "1", *SCIENCE, draws=True)
def iterate_propose(context: Context) -> dict[str, Any]:
    """`rows/`: all rows chosen so far, with those of this round."""
    from selection.iterative import IterateConfig, propose

    selection, state = read_state(context.inputs["before"])
    config = IterateConfig.model_validate(context.config["iterate"])
    selection, state = propose(selection, state, config, seed=context.draw_seed())
    write_state(context.out, selection, state)
    chosen = selection.filter(selection["selected"])["id"].combine_chunks()
    return finish(context, taken(context.inputs["rows"] / "rows", chosen), weights=weights_of(state))


@step("iterate_answer", "1", "selection.responses", kind="engine", draws=True)
def iterate_answer(context: Context) -> dict[str, Any]:
    """`answers.parquet`: what the round's model says to the prompts of its rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    engine = context.runtime.engine_for(context, "model")
    table = rows.read(context.inputs["rows"] / "rows", ["id", "target", "messages"])
    records = [r for r in rows.records(table) if r["target"] == 0]
    draws = int(context.config["n"])
    requests = [
        Request(r["id"], rows.prompt_of(r["messages"]), draw=d, seed=stream_seed(context.draw_seed(), r["id"], d))
        for r in records
        for d in range(draws)
    ]
    found = []
    for answer in engine.generate(requests, Decoding.model_validate(context.config["decoding"])):
        found.append({"id": answer.id, "draw": answer.draw, "answer": answer.text, "finish": answer.finish})
        context.progress(len(found), len(requests))
    schema = pa.schema([("id", pa.string()), ("draw", pa.int32()), ("answer", pa.string()), ("finish", pa.string())])
    found.sort(key=lambda record: (str(record["id"]), int(str(record["draw"]))))
    pq.write_table(pa.Table.from_pylist(found, schema=schema), context.out / "answers.parquet", compression="zstd")
    return {"rows": len(found), "failed": sum(record["finish"] == "failed" for record in found)}


@step(
    "iterate_grade",
    "1",
    "services.steps.grades",
    "selection.iterative",
    "selection.quality",
    "selection.embedding",
    "evaluation.tasks.rating",
    kind="engine",
)
def iterate_grade(context: Context) -> dict[str, Any]:
    """`differences.parquet`: score of the gold answer minus score of the model's, for every answer that came."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from selection.iterative import differences

    table = rows.read(context.inputs["rows"] / "rows", ["id", "target", "messages"])
    records = {r["id"]: r for r in rows.records(table) if r["target"] == 0}
    answers = pq.read_table(context.inputs["answers"] / "answers.parquet").to_pylist()
    asked = [(f"{a['id']}:{a['draw']}", a["id"], a["answer"]) for a in answers if a["finish"] != "failed"]
    asked += [(f"{key}:gold", key, rows.answer_of(record["messages"])) for key, record in records.items()]
    talks = [(name, records[key]["messages"], text) for name, key, text in asked]
    scores = grade(context, context.config["scorer"], talks, model="grader")
    gold = pa.table({"id": list(records), "score": [scores[f"{key}:gold"] for key in records]})
    generated = [(key, scores[name]) for name, key, _ in asked if not name.endswith(":gold")]
    made = pa.table(
        {
            "id": pa.array([k for k, _ in generated], pa.string()),
            "score": pa.array([s for _, s in generated], pa.float64()),
        }
    )
    pq.write_table(differences(gold, made), context.out / "differences.parquet", compression="zstd")
    return {"rows": len(generated), "unscored": sum(score is None for score in scores.values())}


@step("iterate_update", "1", *SCIENCE)
def iterate_update(context: Context) -> dict[str, Any]:
    """The weights of the next round from the differences of this one."""
    import pyarrow.parquet as pq

    from selection.iterative import IterateConfig, update

    selection, state = read_state(context.inputs["proposed"])
    found = pq.read_table(context.inputs["graded"] / "differences.parquet")
    state = update(selection, state, found, IterateConfig.model_validate(context.config))
    write_state(context.out, selection, state)
    return {"weights": weights_of(state)}


def write_state(folder: Path, selection: pa.Table, state: pa.Table) -> None:
    """What a round hands to the next."""
    import pyarrow.parquet as pq

    pq.write_table(selection, folder / "selection.parquet", compression="zstd")
    pq.write_table(state, folder / "state.parquet", compression="zstd")


def read_state(folder: Path) -> tuple[pa.Table, pa.Table]:
    """(selection, state) of a round."""
    import pyarrow.parquet as pq

    return pq.read_table(folder / "selection.parquet"), pq.read_table(folder / "state.parquet")


def weights_of(state: pa.Table) -> list[dict[str, Any]]:
    """The state as plain records, for plans and reports."""
    return list(state.to_pylist())
