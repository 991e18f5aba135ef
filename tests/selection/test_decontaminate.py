from __future__ import annotations

import random

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee.errors import DataError
from cuvee.rows import make_table
from selection.decontaminate import DecontaminateConfig, decontaminate
from selection.hygiene import full_text, words

BENCH = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."


def table(*pairs: tuple[str, str]) -> pa.Table:
    return make_table(
        "t",
        [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in pairs],
    )


def test_the_span_is_reported_in_the_row_s_own_characters() -> None:
    copied = "sold clips to 48 of her FRIENDS in April -- and then she sold half"
    t = table((f"Once, Maria {copied} a cake.", "yes"), ("something else entirely", "no"))
    kept, flagged = decontaminate(t, {"gsm8k": ["unrelated words here", BENCH]}, DecontaminateConfig(against=["gsm8k"]))
    assert kept.num_rows == 1
    row = flagged.to_pylist()[0]
    assert (row["span"], row["against"], row["item"], row["reason"]) == (copied, "gsm8k", 1, "overlap")


def test_twelve_words_of_a_long_text_are_no_overlap() -> None:
    part = " ".join(BENCH.split()[:12])
    config = DecontaminateConfig(against=["b"])
    assert decontaminate(table((part, "x")), {"b": [BENCH]}, config)[1].num_rows == 0
    part = " ".join(BENCH.split()[:13])
    assert decontaminate(table((part, "x")), {"b": [BENCH]}, config)[1].num_rows == 1


def test_a_short_text_counts_as_a_whole_and_a_very_short_one_not_at_all() -> None:
    config = DecontaminateConfig(against=["b"])
    against = {"b": ["What is the capital of France?", "Yes, it is."]}
    t = table(("Tell me: what is the capital of France", "Paris"), ("Is it? Yes, it is.", "ok"))
    _, flagged = decontaminate(t, against, config)
    assert flagged["span"].to_pylist() == ["what is the capital of France"]


def test_fields_action_and_several_tables() -> None:
    t = table(("a question", BENCH), (BENCH, "an answer"))
    both = {"a": [BENCH], "b": [BENCH]}
    assert decontaminate(t, both, DecontaminateConfig(against=["a"], fields="prompt"))[0].num_rows == 1
    assert decontaminate(t, both, DecontaminateConfig(against=["a"], fields="answer"))[0].num_rows == 1
    kept, flagged = decontaminate(t, both, DecontaminateConfig(against=["a", "b"], action="report"))
    assert kept.equals(t)
    assert flagged.num_rows == 4


@given(seed=st.integers(0, 10_000), n=st.integers(2, 5), alphabet=st.integers(2, 4))
@settings(max_examples=150, deadline=None)
def test_flagged_rows_are_those_that_a_plain_search_finds(seed: int, n: int, alphabet: int) -> None:
    draw = random.Random(seed)

    def text(most: int) -> str:
        return " ".join(draw.choices("abcd"[:alphabet], k=draw.randint(1, most)))

    config = DecontaminateConfig(against=["b"], n=n, min_words=draw.randint(1, n))
    bench = [text(8) for _ in range(3)]
    t = table(*((text(9), "end") for _ in range(6)))
    grams = set()
    for item in bench:
        w = words(item)
        length = min(len(w), n)
        if length >= config.min_words:
            grams |= {tuple(w[i : i + length]) for i in range(len(w) - length + 1)}

    def dirty(messages: list[dict[str, str]]) -> bool:
        w = words(full_text(messages))  # type: ignore[arg-type]
        return any(tuple(w[i : i + k]) in grams for k in range(1, n + 1) for i in range(len(w) - k + 1))

    kept, flagged = decontaminate(t, {"b": bench}, config)
    expected = {row for row, m in zip(t["id"].to_pylist(), t["messages"].to_pylist(), strict=True) if dirty(m)}
    assert set(flagged["id"].to_pylist()) == expected
    assert set(kept["id"].to_pylist()) == set(t["id"].to_pylist()) - expected
    for row in flagged.to_pylist():
        w = words(row["span"])
        assert any(tuple(w[i : i + k]) in grams for k in range(1, n + 1) for i in range(len(w) - k + 1))


def test_scripts_without_spaces_are_compared_by_character() -> None:
    text = "今天天气很好我们一起去公园散步吧"
    _, flagged = decontaminate(table((f"请看:{text}。", "好")), {"b": [text]}, DecontaminateConfig(against=["b"]))
    assert flagged["span"].to_pylist() == [text]


def test_short_forms_and_missing_texts() -> None:
    assert DecontaminateConfig.model_validate(["a", "b"]).against == ("a", "b")
    assert DecontaminateConfig.model_validate("a").against == ("a",)
    with pytest.raises(DataError, match="no text of 'a'"):
        decontaminate(table(("q", "a")), {}, DecontaminateConfig(against=["a"]))
    with pytest.raises(ValueError, match="min_words 9 is above n 3"):
        DecontaminateConfig(against=["a"], n=3, min_words=9)
