"""kMQ's draw on a million rows in 1,024 clusters, against the loops that people write.

    python benchmarks/sampling.py

`released`: as in the released code of arXiv 2409.11378, equal floors and numpy's choice with a softmax in each cluster;
`pandas`: groupby and sample with weights in each cluster. All draw 10% with weights by quality and no replacement.
"""

from __future__ import annotations

import numpy as np
from side_by_side import clocks, compare, finish, machine, since

ROWS, K, BUDGET = 1_000_000, 1024, 100_000


def pool() -> tuple[list[str], np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    shares = np.arange(1, K + 1) ** -0.5
    cluster = draw.choice(K, ROWS, p=shares / shares.sum())
    return [f"{i:032x}" for i in range(ROWS)], cluster.astype(np.int32), draw.random(ROWS)


def cuvee() -> None:
    import pyarrow as pa

    from selection.methods import SelectConfig, select

    ids, cluster, quality = pool()
    columns = {"id": ids, "source": pa.array(["s"] * ROWS), "cluster": cluster, "score.q": quality}
    table = pa.table(columns)
    config = SelectConfig(method="kmq", amount=f"{BUDGET} rows", quality="q")
    begin = clocks()
    chosen = select(table, config, rng_seed=0)
    finish(**since(begin), drawn=int(np.count_nonzero(chosen["selected"].to_numpy())))


def draw_only() -> None:
    import pyarrow as pa

    from selection.sampling import allocate, draw_groups, log_weights, uniforms

    ids, cluster, quality = pool()
    column = pa.array(ids)
    begin = clocks()
    counts = allocate(np.bincount(cluster, minlength=K), BUDGET)
    rows = draw_groups(log_weights(quality), cluster, counts, uniforms(column, 0))
    finish(**since(begin), drawn=len(rows))


def released() -> None:
    _, cluster, quality = pool()
    begin = clocks()
    rng, rows = np.random.default_rng(0), []
    for j in range(K):
        members = np.flatnonzero(cluster == j)
        powers = np.exp(quality[members])
        size = min(BUDGET // K, len(members))
        rows.append(rng.choice(members, size, replace=False, p=powers / powers.sum()))
    finish(**since(begin), drawn=sum(map(len, rows)))


def pandas() -> None:
    import pandas as pd

    _, cluster, quality = pool()
    begin = clocks()
    frame = pd.DataFrame({"cluster": cluster, "quality": quality})
    chosen = frame.groupby("cluster").sample(frac=BUDGET / ROWS, weights=frame["quality"], random_state=0)
    finish(**since(begin), drawn=len(chosen))


CONTENDERS = {"cuvee select": cuvee, "cuvee draw alone": draw_only, "released": released, "pandas": pandas}


def head(rounds: int) -> list[str]:
    return [
        machine("numpy", "pandas", "pyarrow"),
        f"{ROWS:,} rows in {K:,} clusters, {BUDGET:,} to draw. `cuvee select` also sorts by id, checks, and writes the",
        f"decision on every row. Best of {rounds} rounds.",
    ]


if __name__ == "__main__":
    compare(__file__, CONTENDERS, head)
