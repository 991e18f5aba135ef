"""Duplicates: exact, near and semantic, in this order, each only among the rows that are left.

Rows count as exact duplicates when their conversations are the same, whatever source they come from; near duplicates
share word 5-grams (MinHash); semantic duplicates have embeddings of high cosine, searched inside clusters where a
`cluster` column gives them (SemDeDup, Abbas et al. 2023), which makes the search linear in the clusters' sizes. The
row that stays is the one with the smallest id, so that the result does not depend on the order of the table.

Near duplicates are transitive (a like b, b like c: one stays); a semantic duplicate is always within the threshold of
the row that stays, because chains in an embedding space lead far away.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cuvee.config import Config
from cuvee.errors import DataError
from cuvee.rows import canonical
from selection.hygiene import conversations, full_text, removed
from selection.near import near_groups
from selection.vectors import Vectors

_TILE = 2048


class DedupConfig(Config):
    """Thresholds in (0, 1]; none skips that kind. `near` is a Jaccard similarity, `semantic` a cosine."""

    exact: bool = True
    near: float | None = Field(None, gt=0, le=1)
    semantic: float | None = Field(None, gt=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if value == "exact":
            return {}
        return {"near": 0.8} if value == "near" else value


def dedup(table: pa.Table, config: DedupConfig, vectors: Vectors | None = None) -> tuple[pa.Table, pa.Table]:
    """(kept, removed). `vectors` are for `semantic` only, found by id.

    Raises DataError when `semantic` is asked and a row has no vector, or one without a direction.
    """
    order = pc.sort_indices(table, sort_keys=[("id", "ascending"), ("target", "ascending")]).to_numpy()
    ids = table.column("id").to_numpy(zero_copy_only=False)
    gone: dict[int, dict[str, Any]] = {}
    left = order
    if config.exact:
        left = _drop(left, _exact(table, left), "exact duplicate", ids, gone)
    if config.near is not None:
        texts = [full_text(m) for m in conversations(table.take(pa.array(left)))]
        left = _drop(left, near_groups(texts, config.near), "near duplicate", ids, gone)
    if config.semantic is not None:
        array = _directions(vectors, table.column("id").take(pa.array(left)))
        cluster = table.column("cluster").to_numpy()[left] if "cluster" in table.column_names else np.zeros(left.size)
        left = _drop(left, _semantic(array, cluster, config.semantic), "semantic duplicate", ids, gone)
    stays = np.zeros(table.num_rows, dtype=bool)
    stays[left] = True
    return table.filter(pa.array(stays)), removed(table, gone)


def _drop(
    places: NDArray[np.int64],
    leader: NDArray[np.int64],
    reason: str,
    ids: NDArray[np.object_],
    gone: dict[int, dict[str, Any]],
) -> NDArray[np.int64]:
    """Keeps the leaders. `leader[i]` is the index in `places` of the row that stays for row i."""
    stays = leader == np.arange(places.size)
    for i in np.flatnonzero(~stays).tolist():
        gone[int(places[i])] = {"reason": reason, "stays": str(ids[places[leader[i]]])}
    return places[stays]


def _exact(table: pa.Table, places: NDArray[np.int64]) -> NDArray[np.int64]:
    first: dict[bytes, int] = {}
    leader = np.empty(places.size, np.int64)
    for i, messages in enumerate(conversations(table.take(pa.array(places)))):
        digest = hashlib.blake2b(canonical(messages).encode(), digest_size=16).digest()
        leader[i] = first.setdefault(digest, i)
    return leader


def _semantic(vectors: NDArray[np.float32], cluster: NDArray[Any], threshold: float) -> NDArray[np.int64]:
    """In each cluster, in the order of ids: a row follows the first kept row within the threshold.

    A tile of rows is compared with all kept ones at once, and among itself row by row.
    """
    leader = np.arange(len(vectors))
    for label in np.unique(cluster):
        members = np.flatnonzero(cluster == label)
        kept = np.empty(0, np.int64)
        for start in range(0, members.size, _TILE):
            tile = members[start : start + _TILE]
            block = vectors[tile]
            fresh = np.ones(tile.size, dtype=bool)
            for s in range(0, kept.size, _TILE):
                near = block @ vectors[kept[s : s + _TILE]].T >= threshold
                found = fresh & near.any(axis=1)
                leader[tile[found]] = kept[s + near[found].argmax(axis=1)]
                fresh &= ~found
            alike = block @ block.T >= threshold
            for i in range(tile.size):
                if fresh[i]:
                    after = np.flatnonzero(alike[i, i + 1 :] & fresh[i + 1 :]) + i + 1
                    leader[tile[after]] = tile[i]
                    fresh[after] = False
            kept = np.concatenate([kept, tile[fresh]])
    return leader


def _directions(vectors: Vectors | None, ids: pa.ChunkedArray) -> NDArray[np.float32]:
    """The vector of each id, scaled to length 1, shape (ids, dimension)."""
    if vectors is None:
        raise DataError("semantic duplicates need embeddings", remedy="put `embed` before `dedup`")
    places = vectors.find(ids)
    if (places < 0).any():
        raise DataError(
            f"{int((places < 0).sum())} of {len(ids)} rows have no embedding", remedy="embed the table anew"
        )
    array = vectors.take(places)
    length = np.linalg.norm(array, axis=1, keepdims=True)
    if not (np.isfinite(length) & (length > 0)).all():
        raise DataError("an embedding is zero or not finite", field="embedding")
    array /= length
    return array
