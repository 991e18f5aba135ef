"""The clusters of a pool in words: how large, how much was chosen of each, what their rows are about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from services.texts import cut

if TYPE_CHECKING:
    import pyarrow as pa

CLUSTERS = 300
"""Clusters in the table, the largest first."""
WORD = r"(?u)\b[^\W\d_]{3,}\b"
"""Three letters or more, of any alphabet."""


def table(selection: pa.Table, sample: pa.Table) -> dict[str, Any]:
    """The table of clusters, the largest first, and how many the choice reaches."""
    import pyarrow.compute as pc

    chosen = selection.append_column("one", pc.cast(selection["selected"], "int64"))
    wanted = [("id", "count"), ("one", "sum")]
    if "quality" in selection.column_names:
        wanted.append(("quality", "mean"))
    grouped = chosen.group_by("cluster").aggregate(wanted)
    grouped = grouped.sort_by([("id_count", "descending"), ("cluster", "ascending")])
    lines = [line for line in grouped.to_pylist() if line["cluster"] is not None]
    total = sum(line["id_count"] for line in lines)
    drawn = sum(line["one_sum"] for line in lines)
    texts = _texts(sample)
    words = keywords({cluster: [text for text, _, _ in found] for cluster, found in texts.items()})
    entries = [
        {
            "cluster": line["cluster"],
            "size": line["id_count"],
            "share": line["id_count"] / total,
            "chosen": line["one_sum"],
            "chosen_share": line["one_sum"] / drawn if drawn else 0.0,
            "quality": line.get("quality_mean"),
            "keywords": words.get(line["cluster"], []),
            "example": _example(texts.get(line["cluster"], [])),
        }
        for line in lines[:CLUSTERS]
    ]
    reached = sum(line["one_sum"] > 0 for line in lines)
    return {"clusters": entries, "cluster_count": len(lines), "reached": reached}


Member = tuple[str, bool, float]
"""Text, whether chosen, distance to the centre."""


def _texts(sample: pa.Table) -> dict[int, list[Member]]:
    found: dict[int, list[Member]] = {}
    columns = [sample["cluster"], sample["text"], sample["selected"]]
    distances = sample["distance"].to_pylist() if "distance" in sample.column_names else [0.0] * sample.num_rows
    for cluster, text, selected, distance in zip(*(c.to_pylist() for c in columns), distances, strict=True):
        if cluster is not None:
            found.setdefault(cluster, []).append((text[:1000], bool(selected), distance or 0.0))
    return found


def _example(members: list[Member]) -> str:
    """The chosen row that is nearest to the centre, else the nearest of the others."""
    if not members:
        return ""
    text, _, _ = min(members, key=lambda member: (not member[1], member[2], member[0]))
    return cut(text)


def keywords(texts: Mapping[int, list[str]], count: int = 5) -> dict[int, list[str]]:
    """The words of each cluster whose mean tf-idf over its rows exceeds that over all rows most; empty without words.

    A mean over rows, not one document a cluster: a word that every cluster has is told apart by how often it is there.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    names = list(texts)
    documents = [text for name in names for text in texts[name]]
    options: dict[str, Any] = {"stop_words": "english", "sublinear_tf": True, "max_features": 20_000}
    model = TfidfVectorizer(**options, **{"token_pattern": WORD})
    analyse = model.build_analyzer()
    if not any(analyse(document) for document in documents):
        return {}
    weights = model.fit_transform(documents)
    words = model.get_feature_names_out()
    everywhere = np.asarray(weights.mean(axis=0)).ravel() if len(names) > 1 else np.zeros(len(words))
    found, start = {}, 0
    for name in names:
        stop = start + len(texts[name])
        more = np.asarray(weights[start:stop].mean(axis=0)).ravel() - everywhere
        best = sorted(np.flatnonzero(more > 1e-12), key=lambda i: (-more[i], words[i]))[:count]
        found[name] = [str(words[i]) for i in best]
        start = stop
    return found
