from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee.errors import DataError
from selection.vectors import CHUNK, Vectors, write_vectors


def ids_of(n: int) -> list[str]:
    return [f"{i:08d}" for i in range(n)]


def array_of(n: int, dim: int = 3) -> np.ndarray:
    return np.random.default_rng(n).normal(size=(n, dim)).astype(np.float32)


def test_written_in_any_blocks_reads_the_same(tmp_path: Path) -> None:
    n = 2 * CHUNK + 100
    array, ids = array_of(n), ids_of(n)
    cuts = [0, 5, CHUNK, CHUNK + 7, n]
    blocks = ((ids[a:b], array[a:b]) for a, b in itertools.pairwise(cuts))
    assert write_vectors(tmp_path / "v", blocks, dim=3, meta={"cuvee.embed": "x"}) == n
    vectors = Vectors.open(tmp_path / "v")
    assert (len(vectors), vectors.dim, vectors.meta["cuvee.embed"]) == (n, 3, "x")
    assert vectors.ids.to_pylist() == ids
    read = list(vectors.blocks())
    assert [(start, len(block)) for start, block in read] == [(0, CHUNK), (CHUNK, CHUNK), (2 * CHUNK, 100)]
    np.testing.assert_array_equal(np.concatenate([block for _, block in read]), array)
    np.testing.assert_array_equal(vectors.load(), array)
    metadata = pq.read_metadata(next((tmp_path / "v").glob("*.parquet")))
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [CHUNK, CHUNK, 100]


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(0, 2 * CHUNK + 50), max_size=5), group=st.integers(700, 2 * CHUNK))
def test_foreign_parts_and_row_groups_give_the_same_blocks(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], group: int
) -> None:
    n = 2 * CHUNK + 50
    array, folder = array_of(n), tmp_path_factory.mktemp("v")
    ids = pa.array(ids_of(n))
    bounds = sorted({0, n, *cuts})
    for part, (a, b) in enumerate(itertools.pairwise(bounds)):
        values = pa.FixedSizeListArray.from_arrays(pa.array(array[a:b].reshape(-1)), 3)
        table = pa.table({"id": ids[a:b], "embedding": values})
        pq.write_table(table, folder / f"part-{part:03d}.parquet", row_group_size=group)
    vectors, memory = Vectors.open(folder), Vectors.of(ids, array)
    for (i, mine), (j, theirs) in zip(vectors.blocks(), memory.blocks(), strict=True):
        assert i == j
        np.testing.assert_array_equal(mine, theirs)
    tail = list(vectors.blocks(CHUNK, 2 * CHUNK + 10))
    assert [(start, len(block)) for start, block in tail] == [(CHUNK, CHUNK), (2 * CHUNK, 10)]
    positions = np.random.default_rng(0).integers(0, n, 40)
    np.testing.assert_array_equal(vectors.take(positions), array[positions])


def test_memory_sorts_by_id_without_copying_sorted_arrays() -> None:
    array = array_of(4)
    shuffled = Vectors.of(["c", "a", "d", "b"], array)
    assert shuffled.ids.to_pylist() == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(shuffled.load(), array[[1, 3, 0, 2]])
    np.testing.assert_array_equal(shuffled.take([2, 0]), array[[0, 1]])
    assert shuffled.find(pa.array(["d", "x", "a"])).tolist() == [3, -1, 0]
    (_, block), *_ = Vectors.of(["a", "b", "c", "d"], array).blocks()
    assert np.shares_memory(block, array)


def test_faults_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no Parquet parts"):
        Vectors.open(tmp_path)
    write_vectors(tmp_path / "twice", iter([(["a", "b", "b"], array_of(3))]), dim=3)
    with pytest.raises(DataError, match="'b' is there twice"):
        _ = Vectors.open(tmp_path / "twice").ids
    write_vectors(tmp_path / "order", iter([(["b", "a"], array_of(2))]), dim=3)
    with pytest.raises(DataError, match="'b' comes before 'a'"):
        _ = Vectors.open(tmp_path / "order").ids
    with pytest.raises(DataError, match="dimension 4"):
        write_vectors(tmp_path / "dim", iter([(["a"], array_of(1))]), dim=4)
    with pytest.raises(DataError, match="2 ids"):
        Vectors.of(["a", "b"], array_of(3))
    pq.write_table(pa.table({"id": ["a"], "embedding": [[1.0, 2.0]]}), tmp_path / "list.parquet")
    with pytest.raises(DataError, match="fixed-size list"):
        Vectors.open(tmp_path)
