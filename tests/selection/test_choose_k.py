from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import silhouette_samples

from cuvee.errors import DataError
from selection import choose_k as module
from selection.choose_k import choose_k, elbow, silhouettes
from selection.clustering import ClusterConfig
from selection.vectors import CHUNK, Vectors


def blobs(n: int, k: int, dim: int = 6, spread: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(k)
    label = draw.integers(0, k, n)
    middle = 6 * draw.normal(size=(k, dim))
    return (middle[label] + spread * draw.normal(size=(n, dim))).astype(np.float32), label.astype(np.int32)


def vectors_of(array: np.ndarray) -> Vectors:
    return Vectors.of([f"{i:08d}" for i in range(len(array))], array)


def test_silhouettes_are_those_of_scikit_learn() -> None:
    array, label = blobs(700, 5, spread=4)
    other = np.random.default_rng(0).integers(0, 40, 700).astype(np.int32)
    other[other == 7] = 8  # an empty cluster
    other[3] = 40  # a row alone in its cluster
    positions = np.array([0, 3, 5, 400, 699, 256])
    mine = silhouettes(vectors_of(array), [label, other], positions)
    for labels, values in zip((label, other), mine, strict=True):
        np.testing.assert_allclose(values, silhouette_samples(array, labels)[positions], atol=1e-4)
    assert mine[1][1] == 0


def test_silhouettes_over_several_blocks_and_tiles() -> None:
    array, label = blobs(CHUNK + 300, 4, dim=3, spread=2)
    positions = np.arange(0, CHUNK + 300, 27)
    (values,) = silhouettes(vectors_of(array), [label], positions)
    sample = np.random.default_rng(0).choice(len(positions), 12, replace=False)
    exact = array.astype(np.float64)
    for i in sample:
        apart = np.linalg.norm(exact - exact[positions[i]], axis=1)
        means = [apart[label == j].sum() / ((label == j).sum() - (label[positions[i]] == j)) for j in range(4)]
        own = means.pop(label[positions[i]])
        assert values[i] == pytest.approx((min(means) - own) / max(min(means), own), abs=1e-4)


def test_separate_blobs_are_counted() -> None:
    array, _ = blobs(1200, 8)
    choice = choose_k(vectors_of(array), ClusterConfig(k="auto", restarts=5, candidates=(2, 4, 8, 16, 32)), seed=1)
    assert choice.k == 8
    assert choice.elbow in (4, 8)
    assert [t.k for t in choice.tried] == [2, 4, 8, 16, 32]
    assert "weak guide" in choice.reason
    assert json.loads(json.dumps(choice.record()))["tried"][2]["silhouette"] > 0.7
    again = choose_k(vectors_of(array), ClusterConfig(k="auto", restarts=5, candidates=(32, 16, 8, 4, 2)), seed=1)
    assert again == choice


def test_candidates_follow_the_pool() -> None:
    array, _ = blobs(320, 3, spread=3)
    assert [t.k for t in choose_k(vectors_of(array), ClusterConfig(k="auto"), seed=0).tried] == [4, 8, 16]
    few = np.repeat(array[:3], 100, axis=0)
    choice = choose_k(vectors_of(few), ClusterConfig(k="auto", candidates=(2, 3, 4)), seed=0)
    assert [t.k for t in choice.tried] == [2, 3]
    with pytest.raises(DataError, match="only 1 rows are distinct"):
        choose_k(vectors_of(np.ones((50, 2), np.float32)), ClusterConfig(k="auto"), seed=0)


def test_a_large_pool_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POOL", 400)
    array, _ = blobs(1000, 4)
    choice = choose_k(vectors_of(array), ClusterConfig(k="auto", candidates=(2, 4), restarts=4, sample=100), seed=0)
    assert (choice.rows, choice.sample, choice.k, choice.elbow) == (400, 100, 4, None)


def test_elbow_by_hand() -> None:
    assert elbow([1, 2, 4, 8, 16], [100, 20, 15, 12, 10]) == 2
    assert elbow([1, 2], [100, 20]) is None
    assert elbow([1, 2, 4], [5, 5, 5]) is None
