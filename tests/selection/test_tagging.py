from __future__ import annotations

import pyarrow as pa
import pytest

from cuvee.rows import make_table
from selection.tagging import TagConfig, tag

CODE = [
    "Write a Python function that sorts a list.",
    "Why does this fail?\n```js\nlet x = 1\n```",
    "def add(a, b):\n    return a + b",
    "What does SELECT name FROM users WHERE id = 3 return?",
    "#include <stdio.h>",
]
MATH = [
    "Solve for x: 3x + 2 = 11",
    "What is the probability of two heads?",
    r"Show that $$\frac{1}{2} + \frac{1}{2} = 1$$",
    "Ana has 3 apples and eats one. How many apples are left?",
    "12 * 3 = 36",
]
NEITHER = [
    "Tell me about the snakes that live in my garden.",
    "Which class should I take this year?",
    "Import taxes rose from last year.",
    "Write a poem about the sea.",
    "How many people live in Paris?",
]


def table(texts: list[str], meta: list[dict[str, object]] | None = None) -> pa.Table:
    return make_table(
        "t",
        [
            {
                "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "ok"}],
                "meta": meta[i] if meta else None,
            }
            for i, text in enumerate(texts)
        ],
    )


def tagged(t: pa.Table, name: str) -> set[str]:
    return {
        m[0]["content"] for m, on in zip(t["messages"].to_pylist(), t[f"tag.{name}"].to_pylist(), strict=True) if on
    }


def test_code_and_math_are_told_from_the_rest() -> None:
    kept, gone = tag(table(CODE + MATH + NEITHER), TagConfig())
    assert tagged(kept, "code") == set(CODE)
    assert tagged(kept, "math") == set(MATH)
    assert gone.num_rows == 0


def test_rows_with_a_tag_can_be_dropped() -> None:
    kept, gone = tag(table(CODE + MATH + NEITHER), TagConfig(drop=("code", "math")))
    assert {m[0]["content"] for m in kept["messages"].to_pylist()} == set(NEITHER)
    assert gone["reason"].to_pylist().count("tag code") == len(CODE)
    assert gone.num_rows == len(CODE) + len(MATH)


def test_labels_of_the_data_are_matched_as_in_the_paper() -> None:
    labels = [{"tags": ["Code generation"]}, {"tags": "mathematics"}, {"tags": ["travel"]}, {}]
    t = table(["a", "b", "c", "d"], labels)  # type: ignore[arg-type]
    kept, _ = tag(t, TagConfig(labels="tags"))
    assert (tagged(kept, "code"), tagged(kept, "math")) == ({"a"}, {"b"})
    kept, _ = tag(t, TagConfig(labels="tags", tags=("travel",)))
    assert tagged(kept, "travel") == {"c"}


def test_own_patterns_and_a_second_pass() -> None:
    config = TagConfig(tags=("law",), patterns={"law": r"\b court \b"})
    kept, _ = tag(table(["the court decides", "courtship"]), config)
    kept, _ = tag(kept, config)
    assert tagged(kept, "law") == {"the court decides"}


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="no pattern for tag 'cod'"):
        TagConfig(tags=("cod",))
    with pytest.raises(ValueError, match="no regular expression"):
        TagConfig(tags=("a",), patterns={"a": "("})
    with pytest.raises(ValueError, match="none of the tags"):
        TagConfig(tags=("code",), drop=("math",))
