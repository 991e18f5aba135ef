from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee.errors import DataError, UserError
from selection import assign, clustering
from selection.clustering import ClusterConfig, Clustering, cluster, distinct, seeds
from selection.vectors import CHUNK, Vectors, write_vectors


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def blobs(n: int, k: int, dim: int = 8, spread: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(n + k)
    middle = draw.normal(size=(k, dim)) * 5
    label = draw.integers(0, k, n)
    return (middle[label] + spread * draw.normal(size=(n, dim))).astype(np.float32), label


def vectors_of(array: np.ndarray) -> Vectors:
    return Vectors.of([f"{i:08d}" for i in range(len(array))], array)


def same(a: Clustering, b: Clustering) -> bool:
    return (
        a.centres.tobytes() == b.centres.tobytes()
        and a.assignment.tobytes() == b.assignment.tobytes()
        and a.distance.tobytes() == b.distance.tobytes()
        and (a.inertia, a.history) == (b.inertia, b.history)
    )


def lloyd(array: np.ndarray, centres: np.ndarray, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """The textbook, in float64."""
    for _ in range(iterations):
        label = ((array[:, None] - centres[None]) ** 2).sum(-1).argmin(1)
        centres = np.stack([array[label == j].mean(0) for j in range(len(centres))])
    return centres, ((array[:, None] - centres[None]) ** 2).sum(-1).argmin(1)


def test_is_lloyds_algorithm() -> None:
    array, _ = blobs(3000, 12, spread=3.0)
    start = seeds(vectors_of(array), 12, rng())
    centres, label = lloyd(array.astype(np.float64), start.astype(np.float64), 6)
    mine = cluster(vectors_of(array), 12, rng=rng(), config=ClusterConfig(iterations=6, tolerance=0))
    np.testing.assert_allclose(mine.centres, centres, atol=1e-4)
    np.testing.assert_array_equal(mine.assignment, label)
    apart = np.linalg.norm(array - mine.centres[mine.assignment], axis=1)
    np.testing.assert_allclose(mine.distance, apart, rtol=1e-5, atol=1e-6)
    assert mine.inertia == pytest.approx((apart.astype(np.float64) ** 2).sum(), rel=1e-5)
    assert mine.sizes.sum() == 3000


def test_finds_separate_blobs_and_stops_early() -> None:
    array, label = blobs(2000, 5)
    found = cluster(vectors_of(array), 5, rng=rng(), config=ClusterConfig(restarts=8))
    pairs = set(zip(label.tolist(), found.assignment.tolist(), strict=True))
    assert len(pairs) == 5
    assert found.iterations < 50
    assert list(found.history) == sorted(found.history, reverse=True)


@settings(max_examples=12, deadline=None)
@given(
    n=st.integers(2 * CHUNK, 2 * CHUNK + 3000),
    threads=st.integers(1, 3),
    part=st.integers(500, 2 * CHUNK),
    k=st.just(9),
)
def test_same_bits_for_any_order_parts_and_threads(
    tmp_path_factory: pytest.TempPathFactory, n: int, threads: int, part: int, k: int
) -> None:
    array, _ = blobs(n, 20, spread=4.0)
    ids = np.array([f"{i:08d}" for i in range(n)])
    config = ClusterConfig(iterations=4, tolerance=0)
    first = cluster(Vectors.of(list(ids), array), k, rng=rng(), config=config, threads=1)
    order = np.random.default_rng(n).permutation(n)
    shuffled = Vectors.of(list(ids[order]), array[order])
    assert same(first, cluster(shuffled, k, rng=rng(), config=config, threads=threads))
    folder = tmp_path_factory.mktemp("v")
    for number, start in enumerate(range(0, n, part)):
        block = iter([(list(ids[start : start + part]), array[start : start + part])])
        write_vectors(folder / str(number), block, dim=8)
        (folder / str(number) / "part-00000.parquet").rename(folder / f"part-{number:05d}.parquet")
    with pytest.MonkeyPatch.context() as patch:
        for limit in (0, 2**30):
            patch.setattr(clustering, "IN_MEMORY", limit)
            assert same(first, cluster(Vectors.open(folder), k, rng=rng(), config=config, threads=threads))


def test_same_bits_when_sums_span_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups are part of the definition of the sum; threads are not."""
    monkeypatch.setattr(assign, "GROUP", CHUNK)
    array, _ = blobs(3 * CHUNK + 5, 20, spread=4.0)
    runs = [cluster(vectors_of(array), 9, rng=rng(), threads=threads) for threads in (1, 2, 5)]
    assert same(runs[0], runs[1])
    assert same(runs[0], runs[2])


def test_ray_workers_give_the_same_bits(tmp_path: Path, ray_session: None) -> None:
    n = assign.GROUP + CHUNK + 17
    array = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
    write_vectors(tmp_path / "v", iter([([f"{i:08d}" for i in range(n)], array)]), dim=4)
    vectors = Vectors.open(tmp_path / "v")
    config = ClusterConfig(iterations=3, tolerance=0)
    here = cluster(vectors, 16, rng=rng(), config=config)
    assert same(here, cluster(vectors, 16, rng=rng(), config=config, workers=assign.Workers(2)))
    with pytest.raises(UserError, match="in a folder"):
        cluster(vectors_of(array), 4, rng=rng(), workers=assign.Workers(2))


def test_torch_path_agrees() -> None:
    """The path of accelerators, run on the CPU device of torch."""
    array, _ = blobs(3000, 6, spread=1.0)
    nearest = assign._nearest_torch
    half = (array[:6].astype(np.float64) ** 2).sum(1).astype(np.float32) / 2
    label, best = nearest(array, array[:6], half, "cpu")
    mine, value = assign._nearest_cpu(array, array[:6], half, "cpu")
    np.testing.assert_array_equal(label, mine)
    np.testing.assert_allclose(best, value, rtol=1e-4, atol=1e-3)


def test_empty_clusters_get_the_farthest_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.concatenate([np.zeros((50, 2)), np.ones((50, 2)), [[9, 9], [9, 9], [30, 30]]]).astype(np.float32)
    array[:50, 0] += np.linspace(0, 0.1, 50)
    # Two centres that own nothing: both far from every row.
    start = np.array([[0, 0], [1, 1], [-99, -99], [-98, -99]], dtype=np.float32)
    monkeypatch.setattr(clustering, "seeds", lambda *_: start.copy())
    found = cluster(vectors_of(array), 4, rng=rng())
    assert (found.sizes > 0).all()
    assert sorted(found.sizes) == [1, 2, 50, 50]


@pytest.mark.parametrize("seeding", ["random", "k-means++"])
def test_fewer_distinct_rows_than_clusters(seeding: str) -> None:
    array = np.repeat(np.array([[1, 0], [0, 1], [-0.0, 1], [0, -1]], dtype=np.float32), [500, 3, 3, 1], axis=0)
    assert len(distinct(vectors_of(array))) == 3
    config = ClusterConfig(seeding=seeding)  # type: ignore[arg-type]
    found = cluster(vectors_of(array), 3, rng=rng(), config=config)
    assert sorted(found.sizes) == [1, 6, 500]
    assert found.inertia == pytest.approx(0, abs=1e-9)
    with pytest.raises(DataError, match="only 3 of the 507 vectors are distinct"):
        cluster(vectors_of(array), 4, rng=rng(), config=config)


def test_a_pool_in_which_every_row_is_the_same() -> None:
    array = np.ones((100, 5), dtype=np.float32)
    assert cluster(vectors_of(array), 1, rng=rng()).inertia == 0
    with pytest.raises(DataError, match="only 1 of the 100"):
        cluster(vectors_of(array), 2, rng=rng())


def test_bad_k_and_bad_numbers() -> None:
    array, _ = blobs(100, 3)
    with pytest.raises(DataError, match="101 clusters of 100 rows"):
        cluster(vectors_of(array), 101, rng=rng())
    with pytest.raises(UserError, match="0 clusters"):
        cluster(vectors_of(array), 0, rng=rng())
    assert sorted(cluster(vectors_of(array), 100, rng=rng()).sizes) == [1] * 100
    array[41, 1] = np.nan
    with pytest.raises(DataError, match="00000041 is not finite"):
        cluster(vectors_of(array), 3, rng=rng())


def test_a_seed_is_a_result() -> None:
    array, _ = blobs(500, 9, spread=3.0)
    runs = [cluster(vectors_of(array), 9, rng=np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])
