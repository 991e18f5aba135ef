"""Steps of selection: vectors, clusters, scores, the choice itself."""

from __future__ import annotations

import json
from typing import Any

from cuvee import rows
from cuvee.rng import stream
from services.steps.base import Context, step
from services.steps.data import finish, write_removed


@step("embed", "1", "selection.embedding", "selection.vectors")
def embed(context: Context) -> dict[str, Any]:
    """`vectors/`: one unit vector a row, sorted by id."""
    from selection.embedding import EmbedConfig
    from selection.embedding import embed as encode
    from selection.vectors import Vectors
    from services.steps.model import model_folder

    context.runtime.ray()
    encode(
        rows.read(context.inputs["rows"] / "rows"),
        model_folder(context.inputs["encoder"]),
        EmbedConfig.model_validate(context.config),
        out=context.out / "vectors",
        work=context.work,
        reuse=context.runtime.vectors_like(context),
        resources=context.runtime.resources("embed"),
        progress=context.progress,
    )
    vectors = Vectors(context.out / "vectors")
    settings = json.dumps(dict(context.config), sort_keys=True)
    return {"rows": len(vectors), "dimensions": vectors.dim, "encoder": context.config["encoder"], "config": settings}


@step("cluster", "1", "selection.clustering", "selection.choose_k", "selection.vectors", draws=True)
def cluster(context: Context) -> dict[str, Any]:
    """`clusters.parquet` (id, cluster, distance) and `centres.npy`; with `k: auto` the table of tried values."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from selection.choose_k import choose_k
    from selection.clustering import ClusterConfig
    from selection.clustering import cluster as lloyd
    from selection.vectors import Vectors

    config = ClusterConfig.model_validate(context.config)
    table = rows.read(context.inputs["rows"] / "rows", ["id"])
    vectors = Vectors(context.inputs["vectors"] / "vectors").subset(table["id"].to_pylist())
    info: dict[str, Any] = {"rows": len(vectors)}
    k = config.k
    if k == "auto":
        chosen = choose_k(vectors, config, seed=context.draw_seed())
        k = chosen.k
        (context.out / "choice.json").write_text(json.dumps(chosen.record()))
        info["choice"] = chosen.record()
    result = lloyd(vectors, int(k), rng=stream(context.draw_seed(), "cluster"), config=config)
    pq.write_table(
        pa.table({"id": vectors.ids, "cluster": result.assignment, "distance": result.distance}),
        context.out / "clusters.parquet",
    )
    np.save(context.out / "centres.npy", result.centres)
    return {**info, "k": int(k), "inertia": float(result.inertia), "iterations": result.iterations}


@step("select", "1", "selection.methods", "selection.sampling", "selection.greedy", "selection.quality", draws=True)
def select(context: Context) -> dict[str, Any]:
    """`rows/`: the chosen rows. `selection.parquet`: every row with the figures that decided."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from selection.clustering import Clustering
    from selection.methods import SelectConfig
    from selection.methods import select as choose
    from selection.vectors import Vectors

    table = rows.read(context.inputs["rows"] / "rows")
    ids = table["id"].to_pylist()
    vectors = Vectors(context.inputs["vectors"] / "vectors").subset(ids) if "vectors" in context.inputs else None
    clustering = None
    if "clusters" in context.inputs:
        folder = context.inputs["clusters"]
        found = pq.read_table(folder / "clusters.parquet")
        place = {row: i for i, row in enumerate(found["id"].to_pylist())}
        take = np.array([place[row] for row in ids])
        clustering = Clustering(
            centres=np.load(folder / "centres.npy"),
            assignment=found["cluster"].to_numpy()[take],
            distance=found["distance"].to_numpy()[take],
            inertia=0.0,
            iterations=0,
        )
    selection = choose(
        table,
        SelectConfig.model_validate(context.config),
        vectors=vectors,
        clustering=clustering,
        rng_seed=context.draw_seed(),
    )
    write_removed(selection, context.out / "selection.parquet")
    chosen = pa.array(selection["selected"].to_pylist())
    return finish(context, table.filter(chosen), pool=table.num_rows, method=context.config["method"])


@step("score", "1", "selection.quality", kind="engine")
def score(context: Context) -> dict[str, Any]:
    """The table with one more column `score.<name>` a scorer."""
    from selection.quality import ScoreConfig, add_scores
    from selection.vectors import Vectors

    engine = context.runtime.engine_for(context, "model") if "model" in context.inputs else None
    vectors = Vectors(context.inputs["vectors"] / "vectors") if "vectors" in context.inputs else None
    table = add_scores(
        rows.read(context.inputs["rows"] / "rows"),
        ScoreConfig.model_validate(context.config),
        generate=engine.generate if engine else None,
        score=engine.score if engine else None,
        vectors=vectors,
        progress=context.progress,
    )
    return finish(context, table)
