from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from cuvee import rows
from cuvee.errors import DataError, UserError
from selection.clustering import cluster
from selection.explain import explain
from selection.iterative import IterateConfig, init, propose
from selection.methods import SELECTORS, SelectConfig, select
from selection.vectors import Vectors


def pool() -> tuple[pa.Table, Vectors, Any]:
    chats = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}]}
        for i in range(60)
    ]
    table = rows.sort(pa.concat_tables([rows.make_table("a", chats[:20]), rows.make_table("b", chats[20:])]))
    draw = np.random.default_rng(0)
    table = table.append_column("score.q", pa.array(draw.random(60)))
    vectors = Vectors.of(table["id"], draw.normal(size=(60, 4)).astype(np.float32))
    return table, vectors, cluster(vectors, 3, rng=np.random.default_rng(0))


def chosen(method: str, **more: Any) -> pa.Table:
    table, vectors, clustering = pool()
    setting = SelectConfig(method=method, amount="12 rows", quality="q", **more)
    return select(table, setting, vectors=vectors, clustering=clustering, rng_seed=0)


def a_row(selection: pa.Table, selected: bool) -> str:
    return selection.filter(pc.equal(selection["selected"], selected))["id"][0].as_py()


@pytest.mark.parametrize("method", sorted(SELECTORS))
@pytest.mark.parametrize("selected", [True, False])
def test_every_method_has_words_for_both_fates(method: str, selected: bool) -> None:
    selection = chosen(method)
    words = explain(selection, a_row(selection, selected))
    assert f"{'was' if selected else 'was not'} chosen by {method}, amount 12 rows." in words
    assert len(words.splitlines()) > 1


def test_figures_of_kmq() -> None:
    selection = chosen("kmq")
    row = next(r for r in selection.to_pylist() if not r["selected"])
    mates = [r for r in selection.to_pylist() if r["cluster"] == row["cluster"]]
    rank = 1 + sum(r["quality"] > row["quality"] for r in mates)
    words = explain(selection, row["id"])
    taken = sum(r["selected"] for r in mates)
    assert f"Cluster {row['cluster']} has {len(mates)} rows of 60, {taken} were chosen." in words
    assert f"is number {rank} of {len(mates)} from the highest" in words
    assert f"probability {row['weight']:.3g}" in words


def test_deita_says_which_of_two_reasons() -> None:
    selection = chosen("deita", threshold=0.0)
    kept = [r["quality"] for r in selection.to_pylist() if r["selected"]]
    near = next(r for r in selection.to_pylist() if not r["selected"] and r["quality"] > min(kept))
    _, vectors, _ = pool()
    words = explain(selection, near["id"], vectors=vectors)
    assert "too near to one that came before it" in words
    assert float(words.rsplit("cosine ", 1)[1].rstrip(".")) > 0


def test_rounds_sources_and_counts() -> None:
    table, vectors, clustering = pool()
    setting = IterateConfig(amount="9 rows", rounds=3, quality="q")
    selection, state = init(table, setting, vectors=vectors, clustering=clustering)
    selection, state = propose(selection, state, setting, seed=0)
    assert "was chosen in round 1 by iterate" in explain(selection, a_row(selection, True))
    by_source = chosen("random", by="source")
    assert "b has 40 rows, 12 were chosen" in explain(
        by_source, by_source.filter(pc.equal(by_source["source"], "b"))["id"][0].as_py()
    )
    often = chosen("kmq", replacement=True)
    assert "with replacement" in explain(often, a_row(often, True))
    assert "At least 5 rows of each source" in explain(chosen("top", min_per_source=5), table["id"][0].as_py())


def test_excluded_rows_and_unknown_ids() -> None:
    table, vectors, clustering = pool()
    holes = table.set_column(table.schema.get_field_index("score.q"), "score.q", pa.array([None, *[1.0] * 59]))
    setting = SelectConfig(method="kmq", amount="12 rows", quality="q", missing="exclude")
    selection = select(holes, setting, vectors=vectors, clustering=clustering, rng_seed=0)
    first = table["id"][0].as_py()
    assert "It has no score: 1 rows without one were excluded." in explain(selection, first)
    assert explain(selection, first[:12]) == explain(selection, first)
    with pytest.raises(UserError, match="60 rows begin with ''"):
        explain(selection, "")
    with pytest.raises(UserError, match="no row 'zz'"):
        explain(selection, "zz")
    with pytest.raises(DataError, match="does not say how"):
        explain(table, first)
