from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from cuvee.errors import DataError
from cuvee.rows import make_table
from selection.dedup import DedupConfig, dedup
from selection.hygiene import words
from selection.near import near_groups
from selection.vectors import Vectors


def table(pairs: list[tuple[str, str]], source: str = "t") -> pa.Table:
    return make_table(
        source,
        [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in pairs],
    )


def test_exact_duplicates_leave_the_smallest_id_also_across_sources() -> None:
    both = pa.concat_tables([table([("q", "a"), ("q", "a"), ("q", "b")]), table([("q ", "a")], "u")])
    kept, gone = dedup(both, DedupConfig())
    same = sorted(
        i for i, m in zip(both["id"].to_pylist(), both["messages"].to_pylist(), strict=True) if m[1]["content"] == "a"
    )
    assert kept.num_rows == 2
    assert gone.column("stays").to_pylist() == [same[0]] * 2
    assert sorted(gone.column("id").to_pylist()) == same[1:]
    assert set(gone.column("reason").to_pylist()) == {"exact duplicate"}


def jaccard(a: str, b: str) -> float:
    x, y = ({tuple(w[i : i + 5]) for i in range(max(len(w) - 4, 1))} for w in (words(a), words(b)))
    return len(x & y) / len(x | y)


def test_near_groups_agree_with_the_true_jaccard_similarity() -> None:
    draw = random.Random(0)
    vocabulary = [f"w{i}" for i in range(5000)]
    base = [[draw.choice(vocabulary) for _ in range(200)] for _ in range(40)]
    texts = []
    for text in base:
        few, many = list(text), list(text)
        few[draw.randrange(200)] = "changed"  # 5 of 196 grams: similarity about 0.95
        for i in range(0, 200, 8):  # most grams
            many[i] = f"other{draw.random()}"
        texts += [" ".join(t) for t in (text, few, many)]
    group = near_groups(texts, 0.8)
    for i in range(len(texts)):
        for j in range(i):
            assert (group[i] == group[j]) == (jaccard(texts[i], texts[j]) >= 0.8)


def test_near_groups_do_not_depend_on_order() -> None:
    draw = random.Random(1)
    texts = [" ".join(draw.choices("abcdefgh", k=12)) for _ in range(300)]
    texts += [t + " x" for t in texts[:80]] + ["", " ", "one", "one"]
    order = list(range(len(texts)))
    draw.shuffle(order)

    def groups(places: list[int]) -> set[frozenset[int]]:
        found: dict[int, set[int]] = {}
        for place, number in zip(places, near_groups([texts[p] for p in places], 0.6), strict=True):
            found.setdefault(int(number), set()).add(place)
        return {frozenset(g) for g in found.values()}

    assert groups(order) == groups(sorted(order))


def test_numbers_keep_word_problems_of_one_template_apart() -> None:
    texts = [
        f"Ana buys {a} apples and then {b} more at {c} cents each, how many has she?"
        for a, b, c in [(3, 4, 5), (6, 7, 8), (9, 10, 11)]
    ]
    assert len(set(near_groups(texts, 0.8))) == 3


def unit(rows: list[list[float]]) -> np.ndarray:
    v = np.asarray(rows, np.float32)
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def test_semantic_duplicates_are_within_the_threshold_of_the_row_that_stays() -> None:
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(30, 16))
    vectors = unit((np.repeat(centres, 10, axis=0) + 0.15 * draw.normal(size=(300, 16))).tolist())
    t = table([(f"q{i}", "a") for i in range(300)])
    known = Vectors.of(t["id"], 3 * vectors)  # lengths do not matter
    kept, gone = dedup(t, DedupConfig(semantic=0.95), known)
    place = {row: i for i, row in enumerate(t["id"].to_pylist())}
    inside = [place[i] for i in kept["id"].to_pylist()]
    similar = vectors[inside] @ vectors[inside].T
    assert (similar[~np.eye(len(inside), dtype=bool)] < 0.95).all()
    for row, stays in zip(gone["id"].to_pylist(), gone["stays"].to_pylist(), strict=True):
        assert stays in set(kept["id"].to_pylist())
        assert vectors[place[row]] @ vectors[place[stays]] >= 0.95
    order = draw.permutation(300)
    again, _ = dedup(t.take(pa.array(order)), DedupConfig(semantic=0.95), known)
    assert set(again["id"].to_pylist()) == set(kept["id"].to_pylist())


def test_semantic_duplicates_are_searched_inside_clusters() -> None:
    t = table([("a", "x"), ("b", "x"), ("c", "x")])
    vectors = Vectors.of(t["id"], unit([[1, 0], [1, 0], [1, 0]]))
    t = t.append_column("cluster", pa.array([0, 0, 1], pa.int32()))
    assert dedup(t, DedupConfig(semantic=0.9), vectors)[0].num_rows == 2


def test_semantic_needs_good_vectors() -> None:
    t = table([("a", "x"), ("b", "x")])
    with pytest.raises(DataError, match="need embeddings"):
        dedup(t, DedupConfig(semantic=0.9))
    with pytest.raises(DataError, match="zero or not finite"):
        dedup(t, DedupConfig(semantic=0.9), Vectors.of(t["id"], np.asarray([[1, 0], [np.nan, 0]])))
    with pytest.raises(DataError, match="1 of 2 rows have no embedding"):
        dedup(t, DedupConfig(semantic=0.9), Vectors.of(t["id"][:1], unit([[1, 0]])))


def test_every_row_the_same() -> None:
    kept, gone = dedup(table([("q", "a")] * 5), DedupConfig(near=0.8))
    assert (kept.num_rows, gone.num_rows) == (1, 4)


def test_an_empty_table() -> None:
    kept, gone = dedup(table([]), DedupConfig(near=0.8))
    assert (kept.num_rows, gone.num_rows) == (0, 0)
