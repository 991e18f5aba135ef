from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cuvee import rows
from cuvee.errors import DataError, UserError
from selection.clustering import Clustering, cluster
from selection.methods import META, SELECTORS, SelectConfig, clusters_of, columns_for, needs, select
from selection.vectors import Vectors

METHODS = ["random", "longest", "top", "km_closest", "km_random", "kmq", "k_center", "deita", "qdit"]


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def pool(n: int = 120, k: int = 6) -> tuple[pa.Table, Vectors, Clustering]:
    draw = np.random.default_rng(5)
    table = pa.concat_tables(
        [
            rows.make_table("a", [chat(f"q{i}", "x" * (i + 1)) for i in range(n // 4)]),
            rows.make_table("b", [chat(f"p{i}", "y" * (i + 1)) for i in range(n - n // 4)]),
        ]
    )
    table = rows.sort(table).append_column("score.good", pa.array(draw.random(n) + 0.1))
    vectors = Vectors.of(table["id"], draw.normal(size=(n, 8)).astype(np.float32))
    return table, vectors, cluster(vectors, k, rng=np.random.default_rng(0))


def config(method: str, amount: str = "30 rows", **more: Any) -> SelectConfig:
    return SelectConfig(method=method, amount=amount, quality=more.pop("quality", "good"), **more)


def chosen(selection: pa.Table) -> set[str]:
    return set(selection.filter(selection["selected"])["id"].to_pylist())


def test_the_registry_has_the_methods() -> None:
    assert set(METHODS) <= set(SELECTORS)
    with pytest.raises(UserError, match='did you mean "kmq"'):
        needs(config("kmqq"))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_decides_on_every_row_whatever_the_order(method: str) -> None:
    table, vectors, clustering = pool()
    setting = config(method, threshold=1.0)
    selection = select(table, setting, vectors=vectors, clustering=clustering, rng_seed=3)
    assert selection["id"].to_pylist() == table["id"].to_pylist()
    assert selection["row"].to_pylist() == list(range(120))
    assert selection["source"].to_pylist() == table["source"].to_pylist()
    assert len(chosen(selection)) == 30
    is_chosen = selection["selected"].to_numpy()
    assert (selection["round"].to_numpy() == np.where(is_chosen, 0, -1)).all()
    order = np.random.default_rng(1).permutation(120)
    again = select(table.take(pa.array(order)), setting, vectors=vectors, clustering=clustering, rng_seed=3)
    assert again.drop(["row"]).equals(selection.drop(["row"]))
    assert table.take(pa.array(order)).take(again["row"])["id"].equals(table["id"])
    assert json.loads(selection.schema.metadata[META])["drawn"] == 30


def test_needs_follow_the_config() -> None:
    assert needs(config("random")) == set()
    assert needs(config("kmq")) == {"embedding", "cluster", "quality"}
    assert needs(config("kmq", quality="length")) == {"embedding", "cluster"}
    assert needs(config("kmq", quality="cosine")) == {"embedding", "cluster", "cosine"}
    assert needs(config("k_center")) == {"embedding"}
    with pytest.raises(UserError, match="write quality: <name of a score>"):
        needs(config("kmq", quality=None))
    assert needs(config("longest", quality=None)) == set()
    assert needs(config("kmq", quality="cosine"), ["cosine"]) == {"embedding", "cluster", "quality"}
    assert needs(config("kmq", quality=None), ["deita"]) == {"embedding", "cluster", "quality"}
    with pytest.raises(UserError, match="the table has a, b"):
        needs(config("kmq", quality=None), ["b", "a"])


def test_kmq_by_size_and_equal() -> None:
    """Clusters of 60, 30 and 10: 20 rows are 12, 6, 2 by size, and 7, 7, 6 in equal parts."""
    table, vectors, _ = pool(100)
    labels = np.repeat([0, 1, 2], [60, 30, 10]).astype(np.int32)
    clustering = Clustering(np.zeros((3, 8), np.float32), labels, np.zeros(100, np.float32), 0.0, 1)
    for allocation, expected in [("size", [12, 6, 2]), ("equal", [7, 7, 6])]:
        setting = config("kmq", "20 rows", allocation=allocation)
        selection = select(table, setting, vectors=vectors, clustering=clustering, rng_seed=0)
        got = selection.filter(selection["selected"])["cluster"].to_numpy()
        assert np.bincount(got).tolist() == expected
        weight = selection["weight"].to_numpy()
        np.testing.assert_allclose(np.bincount(labels, weights=weight), [1, 1, 1])
        quality = table["score.good"].to_numpy()
        np.testing.assert_allclose(weight[:60], quality[:60] / quality[:60].sum())


def test_kmq_prefers_quality_and_km_random_does_not() -> None:
    table, vectors, clustering = pool()
    high = table["score.good"].to_numpy() > 0.6
    means = {}
    for method in ("kmq", "km_random"):
        got = np.zeros(120)
        for seed in range(60):
            setting = config(method, weighting="softmax", temperature=0.1)
            got += select(table, setting, vectors=vectors, clustering=clustering, rng_seed=seed)["selected"].to_numpy()
        means[method] = got[high].sum() / got.sum()
    assert means["kmq"] > 0.85
    assert abs(means["km_random"] - high.mean()) < 0.05


def test_closest_to_the_centre() -> None:
    table, vectors, clustering = pool()
    selection = select(table, config("km_closest"), vectors=vectors, clustering=clustering, rng_seed=0)
    is_chosen, label = selection["selected"].to_numpy(), clustering.assignment
    for j in range(6):
        inside, outside = is_chosen & (label == j), ~is_chosen & (label == j)
        assert clustering.distance[inside].max() <= clustering.distance[outside].min()


def test_longest_is_by_answer() -> None:
    table, _, _ = pool()
    selection = select(table, config("longest", "2 rows", quality=None), rng_seed=0)
    assert selection.filter(selection["selected"])["quality"].to_pylist() in ([89.0, 90.0], [90.0, 89.0])


def test_replacement_has_counts_that_sum_to_the_budget() -> None:
    table, vectors, clustering = pool()
    setting = config("kmq", "300 rows", replacement=True)
    selection = select(table, setting, vectors=vectors, clustering=clustering, rng_seed=0)
    count = selection["count"].to_numpy()
    assert count.sum() == 300
    assert ((count > 0) == selection["selected"].to_numpy()).all()
    per_cluster = np.bincount(clustering.assignment, weights=count)
    assert (abs(per_cluster - 300 * clustering.sizes / 120) < 1).all()
    with pytest.raises(ValueError, match="cannot draw with replacement"):
        config("k_center", replacement=True)


def test_by_source_takes_the_amount_from_each() -> None:
    table, vectors, clustering = pool()
    for amount, expected in [
        ("1/10", {"a": 3, "b": 9}),
        ("12 rows", {"a": 12, "b": 12}),
        ("40 rows", {"a": 30, "b": 40}),
    ]:
        setting = config("kmq", amount, by="source")
        selection = select(table, setting, vectors=vectors, clustering=clustering, rng_seed=0)
        sources = selection.filter(selection["selected"])["source"].to_pylist()
        assert {name: sources.count(name) for name in "ab"} == expected


@pytest.mark.parametrize("method", ["random", "kmq", "top", "k_center"])
def test_minimum_per_source(method: str) -> None:
    table, vectors, clustering = pool()
    setting = config(method, "24 rows", min_per_source=11)
    selection = select(table, setting, vectors=vectors, clustering=clustering, rng_seed=0)
    sources = selection.filter(selection["selected"])["source"].to_pylist()
    assert sorted(sources.count(name) for name in "ab") in ([11, 13], [12, 12])
    with pytest.raises(UserError, match="2 sources need 22 rows, the budget is 20"):
        select(table, config(method, "20 rows", min_per_source=11), vectors=vectors, clustering=clustering, rng_seed=0)


def test_adding_rows_keeps_the_order_among_the_old() -> None:
    """Noise is by id: of the old rows only some make room, none comes in."""
    table, _, _ = pool()
    few = table.filter(pa.compute.equal(table["source"], "b"))
    before = chosen(select(few, config("random"), rng_seed=1))
    after = chosen(select(table, config("random"), rng_seed=1))
    assert {i for i in after if i in set(few["id"].to_pylist())} <= before


def test_a_row_with_several_targets_is_one_candidate() -> None:
    table = rows.make_table("s", [chat(f"q{i}", f"a{i}") for i in range(4)])
    second = table.set_column(1, table.schema.field("target"), pa.array([1] * 4, pa.int32()))
    selection = select(pa.concat_tables([second, table]), config("random", "2 rows", quality=None), rng_seed=0)
    assert selection["id"].to_pylist() == table["id"].to_pylist()
    assert selection["row"].to_pylist() == [4, 5, 6, 7]


def test_bad_scores_are_named() -> None:
    table, vectors, clustering = pool()
    given = {"vectors": vectors, "clustering": clustering, "rng_seed": 0}
    values = table["score.good"].to_pylist()

    def with_scores(column: list[Any]) -> pa.Table:
        return table.drop(["score.good"]).append_column("score.good", pa.array(column))

    with pytest.raises(DataError, match=r"score\.other: no column"):
        select(table, config("kmq", quality="other"), **given)
    with pytest.raises(DataError, match="is string, not a number"):
        select(with_scores([str(v) for v in values]), config("kmq"), **given)
    for hole in (None, float("nan"), float("inf")):
        holes = with_scores([hole, *values[1:-1], hole])
        with pytest.raises(DataError, match="2 of 120 rows have no finite score"):
            select(holes, config("kmq"), **given)
        selection = select(holes, config("kmq", missing="exclude"), **given)
        assert selection["quality"].null_count == 2
        assert len(chosen(selection)) == 30
        assert not selection["selected"][0].as_py()
        assert json.loads(selection.schema.metadata[META])["excluded"] == 2
    with pytest.raises(DataError, match="negative"):
        select(with_scores([-1.0, *values[1:]]), config("kmq"), **given)
    zero = select(with_scores([0.0] * 120), config("kmq"), **given)
    assert len(chosen(zero)) == 30


def test_what_a_method_misses_is_named() -> None:
    table, vectors, clustering = pool()
    with pytest.raises(DataError, match="needs clusters"):
        select(table, config("km_random"), rng_seed=0)
    with pytest.raises(DataError, match="needs embeddings"):
        select(table, config("k_center"), rng_seed=0)
    short = Vectors.of(table["id"].slice(1), vectors.load()[1:])
    with pytest.raises(DataError, match="1 of 120 rows have no embedding"):
        select(table, config("k_center"), vectors=short, rng_seed=0)
    with pytest.raises(DataError, match="120 rows are clustered, the table has 119"):
        select(table.slice(1), config("km_random"), clustering=clustering, rng_seed=0)
    with_column = table.append_column("cluster", pa.array(clustering.assignment))
    select(with_column, config("km_random"), rng_seed=0)


def test_amounts() -> None:
    table, _, _ = pool()
    assert len(chosen(select(table, config("random", "1/3"), rng_seed=0))) == 40
    assert len(chosen(select(table, config("random", "120 rows"), rng_seed=0))) == 120
    with pytest.raises(UserError, match="500 rows asked of 120 rows"):
        select(table, config("random", "500 rows"), rng_seed=0)
    for amount, message in [("3M tokens", "rows or a fraction"), ("2x", "rows or a fraction"), ("1/500", "is none")]:
        with pytest.raises(UserError, match=message):
            select(table, config("random", amount), rng_seed=0)
    with pytest.raises(UserError, match="500 is not an amount"):
        config("random", 500)  # type: ignore[arg-type]
    assert config("random", "10%") == config("random", "1/10")
    assert clusters_of(config("kmq", "10000 rows"), 200_000) == 500
    assert clusters_of(config("kmq", "30 rows", clusters="auto"), 120) == "auto"
    assert clusters_of(config("kmq", "30 rows"), 120) == 2


@pytest.mark.parametrize(
    ("config", "columns", "wanted"),
    [
        ({"method": "random"}, [], ["id", "target", "source"]),
        ({"method": "kmq", "quality": "q"}, ["score.q", "score.other"], ["id", "target", "source", "score.q"]),
        ({"method": "longest"}, [], ["id", "target", "source", "messages"]),
        ({"method": "longest"}, ["score.length"], ["id", "target", "source", "score.length"]),
        ({"method": "top", "quality": "length"}, [], ["id", "target", "source", "messages"]),
    ],
)
def test_only_what_decides_is_read(config: dict[str, Any], columns: list[str], wanted: list[str]) -> None:
    stored = ["id", "target", "source", "messages", "references", "tests", "weight", "meta", *columns]
    assert columns_for(SelectConfig(amount="1 rows", **config), stored) == wanted
