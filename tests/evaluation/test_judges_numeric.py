"""The numeric judge against hand-labelled pairs, worked cases and properties."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee import rows
from cuvee.errors import RecipeError
from cuvee.protocols import Case, Label, Verdict
from evaluation.judges import JudgeConfig, answers, build, fits, words
from evaluation.judges.calibrate import calibrate, kappa
from evaluation.judges.numbers import find, fold

DATA = Path(__file__).parent / "data"
PAIRS = [json.loads(line) for line in (DATA / "numeric_pairs.jsonl").read_text().splitlines()]
LATER = [json.loads(line) for line in (DATA / "numeric_pairs_later.jsonl").read_text().splitlines()]


def judge(*pairs: tuple[str, str], **settings: object) -> list[Verdict]:
    cases = [Case(str(i), "", prediction, (reference,)) for i, (prediction, reference) in enumerate(pairs)]
    return build(JudgeConfig.parse({"numeric": settings}))(cases)


def test_it_agrees_with_the_hand_labelled_pairs() -> None:
    assert len(PAIRS) >= 200
    verdicts = judge(*((row["prediction"], row["reference"]) for row in PAIRS))
    wrong = [(row, verdict) for row, verdict in zip(PAIRS, verdicts, strict=True) if verdict.label != row["label"]]
    assert wrong == []
    assert min(Counter(row["label"] for row in PAIRS).values()) >= 5


@pytest.mark.parametrize(("number", "accuracy", "accepts"), [(1, 0.97, 0), (2, 0.88, 2)])
def test_it_keeps_what_it_reached_on_pairs_written_later(number: int, accuracy: float, accepts: int) -> None:
    """Labelled before the judge saw them (see benchmarks/judges.py); a wrong target costs more than a lost one."""
    rows = [row for row in LATER if row["set"] == number]
    assert len(rows) >= 100
    cases = [Case(str(i), "", row["prediction"], (row["reference"],)) for i, row in enumerate(rows)]
    found, _ = calibrate(build(JudgeConfig.parse("numeric")), cases, [row["label"] == "equivalent" for row in rows])
    assert found.accuracy_all >= accuracy
    assert found.false_accepts <= accepts


@given(
    st.text(alphabet="abc xyz,.=:*$-+/()\n0123456789", min_size=61, max_size=90),
    st.one_of(
        st.integers(0, 10**7).map(lambda n: f"{n:,}"),
        st.integers(0, 10**7).map(str),
        st.decimals(0, 10**5, places=2, allow_nan=False).map(str),
    ),
    st.sampled_from(
        [
            "",
            ".",
            "!",
            " apples",
            " hours",
            " cents",
            " dollars in all.",
            " km per hour",
            " per day",
            "%",
            " %",
            " k",
            "/2",
            " m",
            "**",
            " PM",
        ]
    ),
    st.sampled_from(
        [
            " is ",
            " = ",
            " $",
            " and ",
            ": ",
            " -",
            " 5 ",
            " 2 hours and ",
            " $3 and ",
            " 4 days in ",
            "=",
            "=$",
            " **",
            "x",
            " the ",
        ]
    ),
)
def test_the_short_way_to_a_last_number_reads_as_the_grammar_does(head: str, number: str, tail: str, link: str) -> None:
    text = head + link + number + tail
    short = answers._ending(text)
    if short is None:
        return
    last, start, _ = find(text[-70:])[-1]
    assert Fraction(short.digits) == last.value
    assert short.unit == ("%" if last.percent else last.unit)
    assert short.text.startswith(text[-70:][start:])


FEW = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
       "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")  # fmt: skip
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def spelled(n: int) -> str:
    """A whole number in English words."""
    if n < 20:
        return FEW[n]
    if n < 100:
        return f"{TENS[n // 10]}-{FEW[n % 10]}" if n % 10 else TENS[n // 10]
    for size, word, joint in ((10**6, "million", " "), (1000, "thousand", " "), (100, "hundred", " and ")):
        if n >= size:
            return f"{spelled(n // size)} {word}" + (joint + spelled(n % size) if n % size else "")
    raise AssertionError


@given(st.integers(0, 10**9 - 1))
def test_numbers_in_words_are_read_as_they_are_spelled(n: int) -> None:
    expected = [] if n == 1 else [n]
    assert [value for value, _, _ in words.find(f"There are {spelled(n)} left.")] == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [("three dozen", 36), ("a dozen eggs", 12), ("Half of them", Fraction(1, 2)), ("two thirds", Fraction(2, 3)),
     ("two and a half hours", Fraction(5, 2)), ("three quarters", Fraction(3, 4)), ("one hundred", 100), ("one", 1)],
)  # fmt: skip
def test_parts_and_dozens_in_words(text: str, value: Fraction) -> None:
    assert [found for found, _, _ in words.find(text)] == [value]


def test_words_that_are_no_number() -> None:
    for text in ("the third of them", "one of the two-three", "no one", "a thousandth", "tent", "someone"):
        assert words.find(text) == [], text
    assert judge(("The answer is eight. I needed 2 steps", "8"))[0].label == Label.EQUIVALENT
    assert judge(("It is not seven", "7"))[0].label == Label.DIFFERENT


@pytest.mark.parametrize(
    ("end", "gold"),
    [
        ("It will take her 120/24 = 5 hours to read all of the 120 pages that are left.", "5"),
        ("She will save $3 + $5 = $8 for 3 gallons of whole milk and 5 boxes of cereal.", "8"),
        ("The family has to eat 1340/80 = 16.75 bags, meaning that they will need to buy 17 bags.", "17"),
        ("That is 20 / 240 = 8.33 percent of the time, which rounds down to 8 when it is cut.", "8"),
        ("As x = 5 in this equation for Anna. She is thus 5 years older than Bob, who is 7.", "7"),
        ("In all they are 4 + 5 = 9 + 3 = 12 children and grown-ups who sit at the 2 tables.", "12"),
    ],
)
def test_the_result_of_a_last_equation_is_the_answer_unless_it_is_replaced(end: str, gold: str) -> None:
    assert judge((end, gold))[0].label == Label.EQUIVALENT


def test_times_ratios_and_composed_quantities() -> None:
    same = [("3 PM", "15:00"), ("at 3:45", "3:45 p.m."), ("12:30 AM", "0:30"), ("2 h 30 min", "150 minutes"),
            ("4 dollars and 5 cents", "4.05"), ("6:8", "3:4"), ("0.1\\overline{6}", "1/6"), ("10 m/s", "36 km/h"),
            ("90 kilometers per hour", "90 km/h"), ("3/4 is 3:4", "0.75"), ("7 pm", "7")]  # fmt: skip
    assert [p for p, v in zip(same, judge(*same), strict=True) if v.label != Label.EQUIVALENT] == []
    other = [("3 PM", "3 AM"), ("3:45 PM", "4:45 PM"), ("15:45", "3:40 PM"), ("3:4", "4:3"), ("2 hours, 3 km", "2"),
             ("60 km/h", "60 m/s"), ("$85", "85%"), ("The answer is not 8", "8"), ("1:2:3", "1:2:4")]  # fmt: skip
    assert [p for p, v in zip(other, judge(*other), strict=True) if v.label == Label.EQUIVALENT] == []


def test_rules_apply_in_their_order() -> None:
    text = "The answer is 1.\n#### 2\n\\boxed{3}\n4"
    assert judge((text, "1"))[0].label == Label.EQUIVALENT
    for rules, gold in ((["hash", "sentence"], "2"), (["boxed"], "3"), (["last"], "4")):
        assert judge((text, gold), rules=rules)[0].label == Label.EQUIVALENT
    assert judge(("8 is it", "8"), rules=["sentence"])[0].label == Label.DIFFERENT  # the form was required
    assert judge(("Resultat: 8; Probe 9", "8"), pattern=r"Resultat:\s*([\d.]+)")[0].label == Label.EQUIVALENT
    with pytest.raises(RecipeError, match="one group"):
        JudgeConfig.parse({"numeric": {"pattern": "a"}})


def test_tolerance_is_the_recipes() -> None:
    assert judge(("9.81", "9.8"), relative=0.01)[0].label == Label.EQUIVALENT
    assert judge(("9.81", "9.8"))[0].label == Label.DIFFERENT
    assert judge(("33.333", "33.33"), rounded=False)[0].label == Label.DIFFERENT


def test_any_of_several_golds_is_enough() -> None:
    numeric = build(JudgeConfig.parse("numeric"))
    assert numeric([Case("a", "", "7", ("8", "7"))])[0].label == Label.EQUIVALENT
    assert numeric([Case("a", "", "x+1", ("1+x", "7"))])[0].label == Label.EQUIVALENT
    assert numeric([Case("a", "", "7", ())])[0].label == Label.UNSURE


def test_what_math_verify_cannot_finish_is_unsure() -> None:
    slow = "\\boxed{" + "+".join(f"x^{{{i}}}" for i in range(2, 40)) + "=" + "(1+x)^{{{2000}}}!}"
    verdict = judge((slow, "\\boxed{\\sin(x)^{100000}+\\cos(y)^{100000}}"), limit_s=0.01)[0]
    assert verdict.label == Label.UNSURE
    assert judge(("\\sqrt{2}", "\\sqrt{3}"), symbolic=False)[0].label == Label.UNSURE


def test_a_source_without_numbers_does_not_fit() -> None:
    def table(answer: str) -> object:
        turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]
        return rows.make_table("s", [{"messages": turns}])

    config = JudgeConfig.parse("numeric")
    assert fits(config, table("#### 5")) is None  # type: ignore[arg-type]
    assert "needs numbers" in str(fits(config, table("a poem")))  # type: ignore[arg-type]
    assert "needs references" in str(fits(config, {"tests"}))
    assert fits(config, {"references"}) is None


@given(st.integers(-(10**12), 10**12))
def test_forms_of_one_number_are_equivalent(n: int) -> None:
    forms = [f"{n}", f"{n:,}", f"{n}.0", f"The answer is {n:,}.", f"\\boxed{{{n}}}", f"so\n#### {n}", f"{n / 1:.2f}"]
    assert {v.label for v in judge(*((form, str(n)) for form in forms))} == {Label.EQUIVALENT}
    assert {v.label for v in judge(*((form, str(n + 1)) for form in forms))} == {Label.DIFFERENT}


@given(st.fractions(min_value=-1000, max_value=1000, max_denominator=500))
def test_fractions_are_read_exactly(value: Fraction) -> None:
    for text in (f"{value.numerator}/{value.denominator}", f"\\frac{{{value.numerator}}}{{{value.denominator}}}"):
        assert find(text)[0][0].value == value


@given(st.text(max_size=80), st.text(max_size=40))
@settings(max_examples=300)
def test_no_text_raises(prediction: str, reference: str) -> None:
    (verdict,) = judge((prediction, reference), symbolic=False)
    assert verdict.label in Label
    assert verdict.reason


@given(st.text(alphabet="0123456789.,/$%€-+^{}\\frac boxedx10kM½², ", max_size=40))
@settings(max_examples=500)
def test_no_number_like_text_raises(text: str) -> None:
    find(fold(text))
    judge((text, text), symbolic=False)


def test_calibration_counts_what_costs_differently() -> None:
    cases = [
        Case(str(i), "", p, (r,))
        for i, (p, r) in enumerate([("1", "1"), ("2", "1"), ("1", "1"), ("3 or 4", ""), ("5", "5")])
    ]
    found, verdicts = calibrate(build(JudgeConfig.parse("numeric")), cases, [True, False, False, True, True])
    assert [v.label for v in verdicts][3] == Label.UNSURE
    assert (found.rows, found.decided, found.false_accepts, found.false_rejects) == (5, 4, 1, 0)
    assert found.accuracy == 0.75
    assert found.accuracy_all == 0.6
    # By hand: agreed 3/4; judge says yes 3/4, people 2/4; chance 3/8 + 1/8 = 1/2; (3/4 - 1/2) / (1 - 1/2) = 1/2.
    assert found.kappa == pytest.approx(0.5)


def test_kappa_against_scikit_learn() -> None:
    from sklearn.metrics import cohen_kappa_score

    pairs = [(i % 3 == 0, i % 5 < 2) for i in range(60)]
    assert kappa(pairs) == pytest.approx(cohen_kappa_score([a for a, _ in pairs], [b for _, b in pairs]))
    assert kappa([(True, True)]) == 1.0
