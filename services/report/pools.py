"""What a selection did with its pool: the map, the clusters, coverage, and the weights of each round.

Ids are hashes, so the first rows of a table are a random sample of it; the map and the words of the clusters are made
from such samples, and everything that is counted is counted over all rows. Chosen rows are drawn apart from the rest,
as a fair sample of a large pool would show hardly any.

The projection is the first two principal components of the sample. It keeps the large directions and is the same every
time; unlike t-SNE or UMAP it does not make clusters where there are none. The share of variance that it shows is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from services.report import clusters
from services.report.artifacts import Artifacts
from services.texts import cut

if TYPE_CHECKING:
    import pyarrow as pa

POINTS = 2000
"""Points of one map, at most; all maps of a report share `ALL_POINTS`."""
ALL_POINTS = 8000
MAPS = 12
CHOSEN = 0.4
"""Share of a map's points that are chosen rows, at most."""
READ = 10_000
"""Rows of a pool whose text is read for the words of its clusters."""


def pools(artifacts: Artifacts) -> Iterator[dict[str, Any]]:
    """One entry a finished selection, in the order of the graph."""
    found = [*_selections(artifacts), *_iterations(artifacts)]
    points = min(POINTS, ALL_POINTS // max(1, min(MAPS, len(found))))
    for number, entry in enumerate(found):
        key, inputs = entry["key"], entry.pop("inputs")
        info = artifacts.info(key)
        method = info.get("method", "iterative")
        entry |= {"method": method, "chosen": info.get("rows"), "pool": None, "rounds": _rounds(info), "choice": None}
        if inputs.get("clusters"):
            entry["choice"] = artifacts.info(inputs["clusters"]).get("choice")
        selection = artifacts.attempt(f"selection of {entry['label']}", _selection, artifacts, key)
        if selection is None:
            continue
        entry |= {"pool": selection.num_rows, "quality": _quality(selection)}
        sample = artifacts.attempt(f"rows of {entry['label']}", _sample, artifacts, key, inputs["rows"], selection)
        if sample is not None:
            if "cluster" in selection.column_names:
                entry |= clusters.table(selection, sample)
            if inputs.get("vectors") and number < MAPS:
                what = f"map of {entry['label']}"
                entry["map"] = artifacts.attempt(what, _map, artifacts, inputs["vectors"], sample, points)
        yield entry


def _selections(artifacts: Artifacts) -> Iterator[dict[str, Any]]:
    for key, node in artifacts.nodes.items():
        if node["step"] == "select" and key in artifacts.finished:
            yield {"label": node["label"], "key": key, "inputs": node["inputs"]}


def _iterations(artifacts: Artifacts) -> Iterator[dict[str, Any]]:
    """The last finished round of each iterative selection, with the inputs of its first step."""
    nodes = artifacts.nodes
    done = [k for k, n in nodes.items() if n["step"] == "iterate_propose" and k in artifacts.finished]
    continued = {key for last in done for key in list(_rounds_before(nodes, last))[1:]}
    for key in done:
        if key not in continued:
            first = nodes[list(_rounds_before(nodes, key))[-1]]["inputs"]["before"]
            yield {"label": nodes[key]["label"], "key": key, "inputs": nodes[first]["inputs"]}


def _rounds_before(nodes: Mapping[str, Mapping[str, Any]], key: str) -> Iterator[str]:
    """This round's choice, and those of the rounds before it."""
    yield key
    before = nodes[key]["inputs"]["before"]
    if nodes[before]["step"] == "iterate_update":
        yield from _rounds_before(nodes, nodes[before]["inputs"]["proposed"])


def _rounds(info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Weights of the clusters in each round."""
    wanted = ("round", "cluster", "size", "available", "weight", "drawn", "scored", "difference")
    return [{name: line.get(name) for name in wanted} for line in info.get("weights") or []]


def _selection(artifacts: Artifacts, key: str) -> pa.Table:
    return artifacts.table(key, "selection.parquet", ["id", "cluster", "distance", "quality", "selected"])


def _quality(selection: pa.Table) -> dict[str, float | None] | None:
    """Mean of the score that decided, over the pool and over what was chosen."""
    import pyarrow.compute as pc

    if "quality" not in selection.column_names or selection["quality"].null_count == selection.num_rows:
        return None
    chosen = selection.filter(selection["selected"])
    return {"pool": pc.mean(selection["quality"]).as_py(), "chosen": pc.mean(chosen["quality"]).as_py()}


def _sample(artifacts: Artifacts, key: str, source: str, selection: pa.Table) -> pa.Table:
    """id, text, and the selection's columns of sampled rows, those of the chosen first."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from selection.text import texts

    parts = []
    for owner, count in ((key, POINTS), (source, READ)):
        table = _head(artifacts, owner, count)
        parts.append(pa.table({"id": table["id"], "text": texts(table["messages"], "instruction")}))
    both = pa.concat_tables(parts)
    first = np.unique(np.asarray(both["id"].to_numpy(zero_copy_only=False), dtype=str), return_index=True)[1]
    both = both.take(pa.array(np.sort(first)))
    place = pc.index_in(both["id"], value_set=selection["id"].combine_chunks())
    known = both.filter(pc.is_valid(place))
    facts = selection.drop_columns(["id"]).take(pc.drop_null(place))
    for name in facts.column_names:
        known = known.append_column(name, facts[name])
    return known


def _head(artifacts: Artifacts, key: str, count: int) -> pa.Table:
    import pyarrow.dataset as pads

    parts = sorted(str(p) for p in artifacts.folder(key, "rows").glob("*.parquet"))
    return pads.dataset(parts).head(count, columns=["id", "messages"])


def _map(artifacts: Artifacts, key: str, sample: pa.Table, points: int) -> dict[str, Any] | None:
    """Points with x, y, whether chosen, cluster, quality, and the beginning of the text."""
    import pyarrow as pa

    from selection.vectors import Vectors

    vectors = Vectors.open(artifacts.folder(key, "vectors"))
    chosen = np.asarray(sample["selected"].to_numpy(zero_copy_only=False), dtype=bool)
    few = np.flatnonzero(chosen)[: int(points * CHOSEN)]
    rest = np.flatnonzero(~chosen)[: points - len(few)]
    drawn = sample.take(pa.array(np.concatenate([rest, few])))
    positions = vectors.find(drawn["id"])
    drawn = drawn.filter(pa.array(positions >= 0))
    if drawn.num_rows < 3:
        return None
    where, share = project(vectors.take(positions[positions >= 0]).astype(np.float64))
    records = drawn.drop_columns(["id"]).to_pylist()
    return {
        "x": [round(float(v), 3) for v in where[:, 0]],
        "y": [round(float(v), 3) for v in where[:, 1]],
        "selected": [bool(r["selected"]) for r in records],
        "cluster": [r.get("cluster") for r in records],
        "quality": [r.get("quality") for r in records],
        "text": [cut(r["text"]) for r in records],
        "variance": share,
    }


def project(vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """(n, d) vectors on their first two principal components, (n, 2), and the share of variance that these have.

    The sign of a component is free; the largest loading of each is made positive, so that the map does not flip.
    """
    centred = vectors - vectors.mean(axis=0)
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    axes = directions[:2]
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
    total = float((values**2).sum())
    where = centred @ axes.T
    if where.shape[1] < 2:
        where = np.column_stack([where, np.zeros(len(where))])
    return where, float((values[:2] ** 2).sum()) / total if total else 0.0
