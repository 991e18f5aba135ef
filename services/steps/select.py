"""Steps of selection: vectors, clusters, scores, the choice itself."""

from __future__ import annotations

import json
from typing import Any

from cuvee import rows
from cuvee.rng import stream
from services.steps.base import Context, step
from services.steps.data import clustered, finish, taken, write_removed
from services.steps.grades import grade


@step("embed", "2", "selection.embedding", "selection.vectors", "selection.text")
def embed(context: Context) -> dict[str, Any]:
    """`vectors/`: one unit vector a row, sorted by id, with a digest of each text."""
    from selection.embedding import EmbedConfig
    from selection.embedding import embed as encode
    from selection.vectors import Vectors
    from services.steps.model import model_folder

    encode(
        rows.read(context.inputs["rows"] / "rows", ["id", "target", "messages"]),
        model_folder(context.inputs["encoder"]),
        EmbedConfig.model_validate(context.config),
        out=context.out / "vectors",
        work=context.work,
        reuse=context.runtime.vectors_like(context),
        resources=context.runtime.embedding(context),
        progress=context.progress,
    )
    vectors = Vectors.open(context.out / "vectors")
    settings = json.dumps(dict(context.config), sort_keys=True)
    return {"rows": len(vectors), "dimensions": vectors.dim, "encoder": context.config["encoder"], "settings": settings}


@step("cluster", "1", "selection.clustering", "selection.choose_k", "selection.vectors", draws=True)
def cluster(context: Context) -> dict[str, Any]:
    """`clusters.parquet` (id, cluster, distance) and `centres.npy`; with `k: auto` the table of tried values."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from selection.clustering import ClusterConfig
    from selection.clustering import cluster as lloyd
    from selection.methods import SelectConfig, clusters_of
    from selection.vectors import Vectors

    vectors = Vectors.open(context.inputs["vectors"] / "vectors")
    ids = pa.chunked_array([rows.read(context.inputs["rows"] / "rows", ["id"])["id"].unique()])
    if len(ids) < len(vectors):
        # The table has lost rows since it was embedded.
        vectors = Vectors.of(ids, vectors.take(vectors.find(ids)))
    settings = dict(context.config)
    info: dict[str, Any] = {"rows": len(vectors)}
    if isinstance(settings["k"], dict):
        settings["k"] = clusters_of(SelectConfig.model_validate(settings["k"]["clusters_of"]), len(vectors))
    config = ClusterConfig.model_validate(settings)
    k = config.k
    if k == "auto":
        from selection.choose_k import choose_k

        chosen = choose_k(vectors, config, seed=context.draw_seed())
        k = chosen.k
        (context.out / "choice.json").write_text(json.dumps(chosen.record()))
        info["choice"] = chosen.record()

    def report(update: int, inertia: float) -> None:
        context.progress(update, config.iterations)

    workers = context.runtime.assigning(context) if vectors.folder is not None else None
    result = lloyd(
        vectors, int(k), rng=stream(context.draw_seed(), "cluster"), config=config, workers=workers, progress=report
    )
    pq.write_table(
        pa.table({"id": vectors.ids, "cluster": result.assignment, "distance": result.distance}),
        context.out / "clusters.parquet",
    )
    np.save(context.out / "centres.npy", result.centres)
    return {**info, "k": int(k), "inertia": float(result.inertia), "iterations": result.iterations}


@step(
    "select",
    "1",
    "selection.methods",
    "selection.sampling",
    "selection.greedy",
    "selection.candidates",
    "selection.vectors",
    draws=True,
)
def select(context: Context) -> dict[str, Any]:
    """`rows/`: the chosen rows. `selection.parquet`: every row with the figures that decided."""
    import pyarrow.compute as pc

    from selection.methods import SelectConfig, columns_for
    from selection.methods import select as choose
    from selection.vectors import Vectors

    pool, config = context.inputs["rows"] / "rows", SelectConfig.model_validate(context.config)
    table = rows.read(pool, columns_for(config, rows.columns_of(pool)))
    if "clusters" in context.inputs:
        table = clustered(table, context.inputs["clusters"])
    selection = choose(
        table,
        config,
        vectors=Vectors.open(context.inputs["vectors"] / "vectors") if "vectors" in context.inputs else None,
        rng_seed=context.draw_seed(),
    )
    write_removed(selection, context.out / "selection.parquet")
    chosen = selection.filter(selection["selected"])
    ids = chosen["id"].combine_chunks()
    kept = taken(pool, ids)
    if "clusters" in context.inputs:
        kept = clustered(kept, context.inputs["clusters"])
    if "count" in chosen.column_names:
        kept = kept.append_column("count", chosen["count"].take(pc.index_in(kept["id"], value_set=ids)))
    return finish(context, kept, pool=table.num_rows, method=context.config["method"])


@step("score", "1", "selection.quality", "services.steps.grades", "evaluation.tasks.rating", kind="engine")
def score(context: Context) -> dict[str, Any]:
    """The table with one more column `score.<name>` a scorer."""
    from selection.quality import ScoreConfig, add_scores
    from selection.vectors import Vectors

    config = ScoreConfig.model_validate(context.config["scorers"])
    engine = context.runtime.engine_for(context, "model") if {"score", "generate"} & config.needs() else None
    vectors = {
        name.removeprefix("vectors."): Vectors.open(folder / "vectors")
        for name, folder in context.inputs.items()
        if name.startswith("vectors.")
    }
    table = add_scores(
        rows.read(context.inputs["rows"] / "rows"),
        config,
        generate=engine.generate if engine else None,
        score=engine.score if engine else None,
        grade=lambda kind, asked, rubric: grade(context, kind, asked, model="model", rubric=rubric),
        vectors=vectors,
        progress=context.progress,
    )
    return finish(context, table)
