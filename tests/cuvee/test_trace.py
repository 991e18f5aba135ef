"""Whatever is done to a traced string, its text is what `str` gives and each run says where its characters are from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuvee.trace import Traced, concat, join

TEXT = st.text(alphabet="ab \n\t<>xß", max_size=12)
SPLITS: list[Callable[[str, str], Any]] = [
    lambda s, x: s.split(x),
    lambda s, x: s.split(),
    lambda s, x: s.split(None, 1),
    lambda s, x: s.rsplit(x, 1),
    lambda s, x: s.rsplit(None, 1),
    lambda s, x: s.splitlines(),
    lambda s, x: s.splitlines(True),
    lambda s, x: list(s.partition(x)),
    lambda s, x: list(s.rpartition(x)),
    lambda s, x: list(s),
]
CUTS: list[Callable[[str, str], Any]] = [
    lambda s, x: [s.strip()],
    lambda s, x: [s.strip(x)],
    lambda s, x: [s.lstrip(), s.rstrip()],
    lambda s, x: [s.lstrip(x), s.rstrip(x)],
    lambda s, x: [s.removeprefix(x), s.removesuffix(x)],
    lambda s, x: [s[1:], s[:-1], s[2:5], s[-3:], s[5:2]],
    lambda s, x: [s + x, x + s, s + s],
    lambda s, x: [s.join([x, s, x])],
    lambda s, x: [s.replace(x, "")],
    lambda s, x: [s.replace(x, "-", 1)],
    lambda s, x: [s.replace(x, "longer")],
    lambda s, x: [s.upper(), s.lower(), s.title(), s.capitalize(), s.swapcase(), s.casefold(), s.expandtabs(4)],
    lambda s, x: [s[::-1], s.zfill(20), s.center(30)],
]


@pytest.mark.parametrize("operation", [*SPLITS, *CUTS])
@given(text=TEXT, other=TEXT.filter(bool))
def test_the_text_is_that_of_str_and_unchanged_stretches_point_to_their_origin(
    operation: Callable[[str, str], list[str]], text: str, other: str
) -> None:
    expected, found = operation(text, other), operation(Traced.of(text, 3), other)
    assert [str.__str__(f) == e for f, e in zip(found, expected, strict=True)] == [True] * len(expected)
    for piece in found:
        for run in piece.runs if isinstance(piece, Traced) else ():
            assert run.turn == 3
            assert 0 <= run.a < run.b <= len(text)
            assert 0 <= run.start < run.stop <= len(piece)


@pytest.mark.parametrize("operation", [*SPLITS, *CUTS[:9]])
@given(text=TEXT, other=st.sampled_from(["-", "=+", "0"]))
def test_each_character_of_the_original_keeps_its_place(
    operation: Callable[[str, str], list[str]], text: str, other: str
) -> None:
    for piece in operation(Traced.of(text, 0), other):
        runs = piece.runs if isinstance(piece, Traced) else ()
        covered = [i for run in runs for i in range(run.start, run.stop)]
        assert covered == [i for i, char in enumerate(piece) if char not in other]
        for run in runs:
            assert "".join((piece,))[run.start : run.stop] == text[run.a : run.b]


def test_several_messages_in_one_text() -> None:
    text = concat(("[", Traced.of("ab", 0), "|", Traced.of("cd", 1).strip("d"), "]"))
    assert (text, [(r.start, r.stop, r.turn) for r in text.runs]) == ("[ab|c]", [(1, 3, 0), (4, 5, 1)])
    joined = join(", ", (Traced.of("x", 2), "y"))
    assert (joined, joined.runs) == ("x, y", Traced.of("x", 2).runs)


def test_the_sum_of_a_plain_and_a_traced_text_is_traced() -> None:
    """`'header' + content` is how most templates write; str has no reflected addition, so ours is asked."""
    assert isinstance("header" + Traced.of("x", 0), Traced)
    with pytest.raises(TypeError):
        Traced.of("x", 0) + 1
    with pytest.raises(IndexError):
        Traced.of("x", 0)[1]


def test_a_rewritten_stretch_is_not_divided() -> None:
    sharp = Traced.of("aß", 0).upper()
    assert sharp == "ASS"
    assert [(r.a, r.b) for r in sharp[1:].runs] == [(0, 2)]
