from __future__ import annotations

import pyarrow as pa
import pytest

from cuvee.rows import make_table
from selection.bounds import BoundsConfig, bounds, language_of

ENGLISH = "Please write a short story about a dog that lives near the sea with an old fisherman."
GERMAN = "Bitte schreibe eine kurze Geschichte über einen Hund, der mit einem alten Fischer am Meer lebt."


def table(*pairs: tuple[str, str]) -> pa.Table:
    return make_table(
        "t",
        [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in pairs],
    )


def answers(t: pa.Table) -> set[str]:
    return {m[-1]["content"] for m in t["messages"].to_pylist()}


def test_lengths_are_inclusive_and_reasons_say_the_figure() -> None:
    kept, gone = bounds(
        table(("abc", "x" * 5), ("abc", "x" * 4), ("ab", "x" * 5), ("abcdef", "x" * 5)),
        BoundsConfig(min_prompt=3, max_prompt=5, min_answer=5),
    )
    assert kept.num_rows == 1
    assert sorted(gone["reason"].to_pylist()) == [
        "answer of 4 characters, below 5",
        "prompt of 2 characters, below 3",
        "prompt of 6 characters, above 5",
    ]


def test_languages() -> None:
    t = table((ENGLISH, "en"), (GERMAN, "de"), ("1 + 1 = ?", "unsure"))
    assert answers(bounds(t, BoundsConfig(languages=("en",)))[0]) == {"en", "unsure"}
    kept, gone = bounds(t, BoundsConfig(languages=("en",), unsure="drop"))
    assert answers(kept) == {"en"}
    assert set(gone["reason"].to_pylist()) == {"language de", "language not certain"}


def test_the_language_of_a_text_does_not_depend_on_what_came_before() -> None:
    mixed = "Das ist the beginning eines longer Textes which nobody versteht at all, oder doch vielleicht ja."
    first = language_of(mixed)
    for text in (ENGLISH, GERMAN, ENGLISH):
        language_of(text)
        assert language_of(mixed) == first


def test_long_conversations() -> None:
    turns = [{"role": r, "content": "x"} for r in ("user", "assistant") * 3]
    t = make_table("t", [{"messages": turns}, {"messages": turns[:2]}])
    kept, gone = bounds(t, BoundsConfig(max_turns=4))
    assert kept.num_rows == 1
    assert gone["reason"].to_pylist() == ["conversation of 6 messages, above 4"]


def test_bounds_that_cannot_be_met_are_refused() -> None:
    with pytest.raises(ValueError, match="max_answer 2 is below min_answer 3"):
        BoundsConfig(min_answer=3, max_answer=2)
    with pytest.raises(ValueError, match="unknown languages"):
        BoundsConfig(languages=("english",))


def test_no_bounds_keep_everything() -> None:
    t = table(("a", "b"))
    kept, gone = bounds(t, BoundsConfig())
    assert kept.equals(t)
    assert gone.num_rows == 0
