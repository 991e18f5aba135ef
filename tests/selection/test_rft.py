from __future__ import annotations

import itertools

import pytest

from selection import rft


def test_marks_are_the_equations_where_there_are_any() -> None:
    text = "48/2 = <<48/2=24>>24 and 48+24 = <<48 + 24=72>>72"
    assert rft.key(text) == ("48/2=24", "48+24=72")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("He pays 3 * $4 = $12.", ("3*$4=12",)),
        ("(2 + 3) x 4 = 20", ("(2+3)x4=20",)),
        ("1,000 / 4 = 250 each", ("1,000/4=250",)),
        ("so x = 5", ()),
        ("no numbers", ()),
    ],
)
def test_equations_in_prose(text: str, key: tuple[str, ...]) -> None:
    assert rft.key(text) == key


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("<<48/2=24>>", ""),
        ("<<10/3=3.333>>", ""),
        ("<<10/3=3.3>>", "10/3=3.3"),
        ("10 / 3 = 3.3", ""),
        ("10 / 3 = 3.2", "10/3=3.2"),
        ("2 + 2 = 5", "2+2=5"),
        ("20% * 50 = 10", ""),
        ("<<x+1=4>>", "x+1=4"),
        ("<<1/0=1>>", "1/0=1"),
        ("<<9**9**9=1>>", "9**9**9=1"),
    ],
)
def test_wrong_equations(text: str, wrong: str) -> None:
    assert rft.wrong_equation(text) == wrong


def test_one_solution_a_key_and_the_farthest_wins() -> None:
    gold = "a <<1+1=2>> b"
    solutions = ["x <<1 + 1=2>>", "p <<2*1=2>>", "p <<2*1=2>> quite another text", "q <<4-2=2>>"]
    assert rft.distinct(gold, solutions) == [2, 3]


def test_the_kept_keys_do_not_depend_on_order() -> None:
    solutions = ["<<1+3=4>> a", "<<2+2=4>> b", "<<2+2=4>> bb", "<<5-1=4>> c"]
    keys = {
        frozenset(rft.key(order[i]) for i in rft.distinct("<<4*1=4>>", order))
        for order in itertools.permutations(solutions)
    }
    assert len(keys) == 1
