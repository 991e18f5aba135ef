from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cuvee import rows
from cuvee.errors import DataError
from selection.corrupt import CorruptConfig, corrupt


def table_of(sizes: dict[str, int]) -> pa.Table:
    made = [
        rows.make_table(
            source,
            [
                {
                    "messages": [
                        {"role": "user", "content": f"question {source} {i}"},
                        {"role": "assistant", "content": f"answer {source} {i}"},
                    ],
                    "tests": [f"test {source} {i}"],
                }
                for i in range(size)
            ],
        )
        for source, size in sizes.items()
    ]
    return rows.sort(pa.concat_tables(made))


def answers(table: pa.Table) -> list[str]:
    return [rows.answer_of(m) for m in table["messages"].to_pylist()]


@given(
    a=st.integers(2, 30), b=st.integers(2, 30), share=st.sampled_from(["1/2", "2/5", "all"]), seed=st.integers(0, 99)
)
def test_answers_are_exchanged_inside_a_source(a: int, b: int, share: str, seed: int) -> None:
    table = table_of({"a": a, "b": b})
    config = CorruptConfig.model_validate(share)
    counts = {name: config.amount.rows_of(size) for name, size in (("a", a), ("b", b))}
    if max(counts.values()) < 2:
        with pytest.raises(DataError, match="two rows"):
            corrupt(table, config, seed)
        return
    made, drawn = corrupt(table, config, seed)
    expected = {name: count for name, count in counts.items() if count > 1}
    assert drawn == {"groups": sorted(expected)}
    assert made["id"] == table["id"]
    bad = made["corrupted"].to_numpy(zero_copy_only=False)
    assert Counter(np.array(made["source"].to_pylist())[bad].tolist()) == expected
    before, after = answers(table), answers(made)
    for row, source in enumerate(made["source"].to_pylist()):
        assert (before[row] != after[row]) == bad[row]
        assert after[row].startswith(f"answer {source} ")
        assert made["messages"][row].as_py()[0] == table["messages"][row].as_py()[0]
        # what belongs to the answer came with it
        assert made["references"][row].as_py() == [after[row]]
        assert made["tests"][row].as_py() == [after[row].replace("answer", "test")]
    assert sorted(before) == sorted(after)


def test_the_order_of_the_table_makes_no_difference_and_the_seed_does() -> None:
    table = table_of({"a": 20, "b": 20})
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(40)))
    config = CorruptConfig.model_validate("1/2")
    one, two = corrupt(table, config, 0)[0], rows.sort(corrupt(shuffled, config, 0)[0])
    assert one.equals(two)
    assert answers(corrupt(table, config, 1)[0]) != answers(one)


def test_some_clusters_are_corrupted_whole() -> None:
    table = table_of({"a": 24})
    cluster = pa.array(np.arange(24) % 4, pa.int32())
    config = CorruptConfig(within="cluster", groups=2)
    made, drawn = corrupt(table, config, 0, cluster)
    bad = made["corrupted"].to_numpy(zero_copy_only=False)
    assert bad.tolist() == [c in drawn["groups"] for c in cluster.to_pylist()]
    assert len(drawn["groups"]) == 2
    place = {text: c for text, c in zip(answers(table), cluster.to_pylist(), strict=True)}
    assert [place[text] for text in answers(made)] == cluster.to_pylist()
    with pytest.raises(DataError, match="5 groups to corrupt, 4"):
        corrupt(table, CorruptConfig(within="cluster", groups=5), 0, cluster)
    with pytest.raises(DataError, match="write cluster before"):
        corrupt(table, config, 0)


def test_a_row_whose_new_answer_reads_the_same_is_not_corrupted() -> None:
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "yes"}]
    made, _ = corrupt(rows.make_table("s", [{"messages": talk}] * 3), CorruptConfig(), 0)
    assert made["corrupted"].to_pylist() == [False] * 3


def test_an_amount_is_a_fraction() -> None:
    with pytest.raises(ValidationError, match="write a fraction"):
        CorruptConfig.model_validate("10 rows")
