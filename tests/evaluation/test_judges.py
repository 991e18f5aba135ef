"""Judges of text, choices, code, by models and in tiers; recipe forms; files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuvee import rows
from cuvee.errors import DataError, RecipeError, UserError
from cuvee.protocols import Case, Completion, Decoding, Judge, Label, Request
from evaluation.judges import JUDGES, JudgeConfig, build, fits
from evaluation.judges.calibrate import calibrate, labelled, store
from evaluation.judges.files import judge_file
from evaluation.judges.programs import called, extract
from evaluation.judges.text import f1, rouge_l, tokens

E, D, U = Label.EQUIVALENT, Label.DIFFERENT, Label.UNSURE


def one(form: object, prediction: str, *references: str, prompt: str = "", **more: object) -> Label:
    judge = build(JudgeConfig.parse(form))
    return judge([Case("a", prompt, prediction, references, **more)])[0].label  # type: ignore[arg-type]


# Recipe forms


def test_forms_of_a_recipe_are_read() -> None:
    assert JudgeConfig.parse("numeric") == JudgeConfig.parse({"numeric": {}}) == JudgeConfig.parse({"judge": "numeric"})
    assert JudgeConfig.parse({"llm": "m"}).model_names() == {"m"}
    assert JudgeConfig.parse({"judge": {"llm": "m"}}).kind == "llm"
    assert JudgeConfig.parse({"judge": {"model": "gpt4", "scale": [1, 10]}}).kind == "rating"
    tiers = JudgeConfig.parse({"tiers": ["numeric", {"llm": {"model": "m", "both_orders": False}}, {"llm": "n"}]})
    assert tiers.model_names() == {"m", "n"}
    for config in (tiers, JudgeConfig.parse({"text": "contains"}), JudgeConfig.parse("code")):
        assert JudgeConfig.parse(json.loads(config.model_dump_json())) == config
    assert set(JUDGES) == {"choice", "code", "llm", "numeric", "rating", "reward", "text", "tiers"}


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("numerik", "numeric"),
        ({"text": "contain"}, "contains"),
        ({"numeric": {"tolerance": 1}}, "tolerance"),
        ({"llm": {}}, "model"),
        ({"numeric": 3}, "mapping"),
        ({"numeric": {}, "llm": "m"}, "one name"),
        ({"tiers": ["numeric"]}, "2"),
        (7, "judge"),
    ],
)
def test_wrong_forms_say_what_is_wrong(form: object, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        JudgeConfig.parse(form)


def table(tests: Sequence[str] = (), references: Sequence[str] = ("gold",)) -> object:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    return rows.make_table("s", [{"messages": turns, "tests": list(tests), "references": list(references)}])


def test_a_judge_that_does_not_fit_says_why() -> None:
    code = JudgeConfig.parse("code")
    assert "0 of 1 rows" in str(fits(code, table()))  # type: ignore[arg-type]
    assert fits(code, table(["assert f() == 1"])) is None  # type: ignore[arg-type]
    assert "do not compile" in str(fits(code, table(["assert f( =="])))  # type: ignore[arg-type]
    assert fits(code, {"references"}) is not None
    assert fits(JudgeConfig.parse("text"), table()) is None  # type: ignore[arg-type]
    both = JudgeConfig.parse({"tiers": ["code", "text"]})
    assert fits(both, table()) is None  # type: ignore[arg-type]
    assert "code" in str(fits(JudgeConfig.parse({"tiers": ["code", "numeric"]}), table()))  # type: ignore[arg-type]


def test_a_missing_model_is_named() -> None:
    with pytest.raises(UserError, match="'m'"):
        build(JudgeConfig.parse({"llm": "m"}))


# Text


@pytest.mark.parametrize(
    ("form", "prediction", "gold", "label"),
    [
        ("text", "The Eiffel Tower.", "eiffel tower", E),
        ("text", "Eiffel towers", "eiffel tower", D),
        ("text", "  ", "x", D),
        ("text", "U.S.", "US", E),
        ("text", "3.5", "35", D),
        ("text", "-5", "5", D),
        ("text", "1,000", "1000", E),
        ("text", "ＡＢＣ", "abc", E),
        ("text", "The A", "the a", E),
        ("text", "東京", "京東", D),
        ({"text": "contains"}, "It was built in 1889 in Paris.", "1889", E),
        ({"text": "contains"}, "It was built in 18890.", "1889", D),
        ({"text": "contains"}, "答えは東京です", "東京", E),
        ({"text": "contains"}, "Perhaps " + ", ".join(str(year) for year in range(1880, 1900)), "1889", D),
        ({"text": {"method": "contains", "max_words": 3}}, "it was in 1889", "1889", D),
        ({"text": {"method": "f1", "threshold": 0.5}}, "big red car", "red car", E),
        ({"text": {"method": "f1", "threshold": 0.9}}, "big red car", "red car", D),
        ({"text": {"method": "rouge_l", "threshold": 0.6}}, "police kill the gunman", "police killed the gunman", E),
        ({"text": {"method": "rouge_l", "threshold": 0.6}}, "gunman the killed police", "police killed the gunman", D),
    ],
)  # fmt: skip
def test_text(form: object, prediction: str, gold: str, label: Label) -> None:
    assert one(form, prediction, gold) == label


def test_text_takes_the_best_of_several_golds() -> None:
    assert one("text", "b", "a", "b") == E
    assert one("text", "b") == U
    assert one("text", "b", "...") == U


def test_f1_by_hand_and_rouge_against_the_library() -> None:
    assert f1(tokens("x b b"), tokens("b b c d")) == pytest.approx(2 * 2 / 7)
    from rouge_score.rouge_scorer import RougeScorer

    a, b = "the quick brown fox jumps over it", "quick fox jumps high over it now"
    expected = RougeScorer(["rougeL"]).score(b, a)["rougeL"].fmeasure
    assert rouge_l(a.split(), b.split()) == pytest.approx(expected)


@given(st.text(max_size=60), st.text(max_size=60))
def test_text_never_raises_and_a_text_equals_itself(a: str, b: str) -> None:
    for method in ("exact", "contains", "f1"):
        one({"text": method}, a, b)
    assert one("text", a, a) == (E if tokens(a) else U)


# Choice

PROMPT = "Which is a fruit?\nA. a red car\nB) an apple\n(C) car\nD: none of these"


@pytest.mark.parametrize(
    ("prediction", "gold", "label"),
    [
        ("B", "B", E),
        ("b", "B", E),
        ("(B)", "B", E),
        ("B.", "B", E),
        ("B) an apple", "an apple", E),
        ("The answer is B.", "B", E),
        ("The answer is **(B)**", "B", E),
        ("The correct option is C", "B", D),
        ("\\boxed{B}", "B", E),
        ("\\boxed{\\text{B}}", "B", E),
        ("An apple, of course.", "B", E),
        ("I think it is a red car", "A", E),
        ("I think it is a car", "A", D),
        ("A dog is not a fruit.", "A", D),
        ("A or B", "B", U),
        ("The answer is A or B.", "B", U),
        ("The answer is A and B.", "A", U),
        ("It may be an apple or none of these", "B", U),
        ("Option A is wrong. Therefore the answer is B.", "B", E),
        ("No idea", "B", D),
        ("", "B", D),
        ("B", "Z", U),
    ],
)
def test_choice(prediction: str, gold: str, label: Label) -> None:
    assert one("choice", prediction, gold, prompt=PROMPT) == label


def test_choices_of_meta_come_first() -> None:
    assert one("choice", "blue", "B", meta={"choices": ["red", "blue"]}) == E
    assert one("choice", "blue", "B") == U


# Code


@pytest.mark.parametrize(
    ("prediction", "shape"),
    [
        ("```python\ndef f(x):\n    return x\n```", "fenced"),
        ("First:\n```\nprint(1)\n```\nThen:\n```py\ndef f(x): return x\n```\nDone", "fenced"),
        ("def f(x): return x", "code"),
        ("Sure, here it is:\n\nimport math\n\ndef f(x):\n    return x\n\nThis returns x.", "chat"),
        ("[[BEGIN]]\ndef f(x):\n    return x\n[[DONE]]\nbye", "code"),
        ("~~~\ndef f(x): return x\n~~~", "fenced"),
        ("```python\ndef f(x):\n    return x", "fenced"),
    ],
)
def test_programs_are_found(prediction: str, shape: str) -> None:
    found = extract(prediction, names={"f"})
    assert found.shape == shape
    space: dict[str, object] = {}
    exec(found.text, space)
    assert space["f"](3) == 3  # type: ignore[operator]


def test_completions_are_joined_with_their_prompt() -> None:
    prompt = 'import math\n\ndef half(x):\n    return x / 2\n\ndef f(x):\n    """Twice x."""\n'
    for prediction in ("    return 2 * x\n\nprint('more')\nif:", "return 2 * x", "```python\n    return 2 * x\n```"):
        space: dict[str, object] = {}
        exec(extract(prediction, prompt=prompt, names={"f"}).text, space)
        assert space["f"](3) == 6  # type: ignore[operator]
    again = extract("def f(x):\n    return 2 * half(2 * x)", prompt=prompt, names={"f"})
    space = {}
    exec(again.text, space)
    assert space["f"](3) == 6.0  # type: ignore[operator]


def test_names_that_tests_call() -> None:
    assert called(["import math\nassert math.isclose(f(1), g(2))", "v = 1\nassert h(v)"]) == {"f", "g", "h"}


def test_code_runs_the_rows_tests() -> None:
    good, bad = "```python\ndef f(x):\n    return x + 1\n```", "def f(x): return x"
    tests = ("assert f(1) == 2", "assert f(2) == 3")
    check = ("def check(candidate):\n    assert candidate(1) == 2\n",)
    human = {"tests": check, "meta": {"entry_point": "f"}}
    assert one("code", good, tests=tests) == E
    assert one("code", bad, tests=tests) == D
    assert one("code", "no code here at all", tests=tests) == D
    assert one("code", "", tests=tests) == D
    assert one("code", good) == U
    assert one("code", good, tests=("assert f(",)) == U
    assert one("code", good, **human) == E
    assert one("code", bad, **human) == D
    assert one("code", "    return x + 1", prompt="def f(x):\n", **human) == E
    assert one("code", good, tests=("assert math.floor(f(1)) == 2",), meta={"test_setup_code": "import math"}) == E
    assert one({"code": {"limits": {"cpu_s": 1}}}, "def f(x):\n    while True: pass", tests=tests) == D


# Models


class Says:
    """Answers by a function of the prompt and the order."""

    def __init__(self, answer: object, name: str = "m@1") -> None:
        self.name, self.answer = name, answer
        self.decodings: list[Decoding] = []

    def __call__(self, requests: Iterable[Request], decoding: Decoding) -> Iterator[Completion]:
        self.decodings.append(decoding)
        for r in requests:
            word = self.answer(r.messages[-1]["content"], r.draw) if callable(self.answer) else self.answer
            if word is None:
                yield Completion(r.id, r.draw, "", "failed", error="too long")
            elif isinstance(word, dict):
                yield Completion(r.id, r.draw, "1", "stop", first_token_logprobs=word)
            else:
                yield Completion(r.id, r.draw, str(word), "stop")


def asked(answer: object, *references: str, form: object = None) -> Judge:
    return build(JudgeConfig.parse(form or {"llm": "m"}), generate={"m": Says(answer)})


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("same", E),
        ("different", D),
        ("unsure", U),
        ("Same.", E),
        ("not the same", U),
        ("incorrect", U),
        ("", U),
        (None, U),
        (lambda text, draw: "same" if draw == 0 else "different", U),
        (lambda text, draw: "same" if draw == 0 else "unsure", U),
    ],
)
def test_llm_accepts_only_what_both_orders_say(answer: object, label: Label) -> None:
    (verdict,) = asked(answer)([Case("a", "q", "p", ("g",))])
    assert verdict.label == label


def test_llm_is_constrained_and_asks_in_both_orders() -> None:
    seen: list[str] = []
    model = Says(lambda text, draw: seen.append(text) or "same")
    judge = build(JudgeConfig.parse({"llm": "m"}), generate={"m": model})
    judge([Case("a", "question?", "mine", ("gold",))])
    assert model.decodings[0].choices == ("same", "different", "unsure")
    first, second = seen
    assert first.index("gold") < first.index("mine")
    assert second.index("mine") < second.index("gold")
    assert judge.name == "llm:m"
    assert judge.version == "1/equivalence@1"
    assert judge.generators == ("m@1",)  # type: ignore[attr-defined]


def test_llm_with_several_golds() -> None:
    judge = asked(lambda text, draw: "same" if "g2" in text else "different")
    assert judge([Case("a", "q", "p", ("g1", "g2"))])[0].label == E
    judge = asked(lambda text, draw: "unsure" if "g2" in text else "different")
    assert judge([Case("a", "q", "p", ("g1", "g2"))])[0].label == U
    assert judge([Case("a", "q", "p", ())])[0].label == U
    assert judge([]) == []


def test_a_recipe_may_bring_its_own_words(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text(
        "{# {version: 4, words: {A: equivalent, B: different, C: unsure}} #}\n"
        "{% block user %}{{ prediction }}{% endblock %}"
    )
    judge = asked("B", form={"llm": {"model": "m", "prompt": str(path)}})
    assert judge([Case("a", "q", "p", ("g",))])[0].label == D
    assert judge.version.endswith("mine.jinja@4")
    path.write_text("{# {version: 4, words: {A: equivalent}} #}{% block user %}x{% endblock %}")
    with pytest.raises(RecipeError, match="cover"):
        asked("A", form={"llm": {"model": "m", "prompt": str(path)}})


def test_rating_takes_the_expected_score() -> None:
    import math

    form = {"rating": {"model": "m", "scale": [1, 5]}}
    expected = asked({"4": math.log(0.5), "5": math.log(0.5)}, form=form)([Case("a", "q", "p", ())])[0]
    assert (expected.label, expected.score) == (E, pytest.approx(4.5))
    assert asked("2", form=form)([Case("a", "q", "p", ())])[0].label == D
    ten = asked("10", form={"judge": {"model": "m", "scale": [1, 10]}})([Case("a", "q", "p", ())])[0]
    assert (ten.label, ten.score) == (E, 10.0)
    assert asked("eleven", form=form)([Case("a", "q", "p", ())])[0].label == U


def test_tiers_ask_the_next_only_about_the_rest() -> None:
    model = Says("same")
    seen: list[int] = []
    count = Says(lambda text, draw: seen.append(draw) or "same")
    judge = build(JudgeConfig.parse({"tiers": ["numeric", {"llm": "m"}]}), generate={"m": count})
    cases = [Case("a", "", "5", ("5",)), Case("b", "", "6", ("5",)), Case("c", "", "five", ("fünf",))]
    assert [v.label for v in judge(cases)] == [E, D, E]
    assert len(seen) == 2  # one case, two orders
    assert judge(cases)[2].reason.startswith("llm:m: ")
    assert judge.name == "tiers(numeric, llm:m)"
    rescue = JudgeConfig.parse({"tiers": {"judges": ["numeric", {"llm": "m"}], "next_on": "not_equivalent"}})
    assert [v.label for v in build(rescue, generate={"m": model})(cases)] == [E, E, E]


def test_reward_margin() -> None:
    def reward(pairs: Sequence[tuple[str, str]]) -> list[float]:
        return [float(len(answer)) for _, answer in pairs]

    judge = build(JudgeConfig.parse({"reward": {"model": "rm", "margin": 1}}), reward={"rm": reward})
    cases = [Case("a", "q", "long", ("x", "xx")), Case("b", "q", "xx", ("x", "xx")), Case("c", "q", "x", ())]
    verdicts = judge(cases)
    assert [(v.label, v.score) for v in verdicts] == [(E, 2.0), (D, 0.0), (U, None)]


@pytest.mark.timeout(120)
def test_a_sequence_classifier_gives_rewards(tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from evaluation.judges.reward import sequence_classifier

    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reward = sequence_classifier(str(tmp_path), batch=2)
    pairs = [("How many?", "The answer is 5."), ("How many?", "6"), ("q", "a longer answer of many apples")]
    found = reward(pairs)
    for (prompt, answer), score in zip(pairs, found, strict=True):  # alone, without padding
        text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.inference_mode():
            hidden = model.model(ids).last_hidden_state
            expected = model.score(hidden)[0, -1, 0].item()
        assert score == pytest.approx(expected, abs=1e-4)


# Files


def test_a_file_is_judged_and_written_back(tmp_path: Path) -> None:
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    given_rows = [
        {"prompt": "q", "prediction": "5", "reference": "5", "extra": 1},
        {"prompt": "q", "prediction": "5", "reference": ["6", "7"]},
        {"prompt": "q", "prediction": "5"},
    ]
    path.write_text("\n".join(map(json.dumps, given_rows)) + "\n\n")
    counts = judge_file(path, build(JudgeConfig.parse("numeric")), out)
    assert counts == {"equivalent": 1, "different": 1, "unsure": 1}
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["verdict"] for row in written] == ["equivalent", "different", "unsure"]
    assert written[0]["extra"] == 1
    assert written[2]["reason"] == "no answer in the reference"


@pytest.mark.parametrize(
    ("line", "words"),
    [("{", "in.jsonl:2: not JSON"), ("[]", "in.jsonl:2: a row"), ('{"prediction": 3}', "prediction: must be text"),
     ('{"prediction": "a", "tests": {}}', "tests: must be text")],
)  # fmt: skip
def test_a_bad_file_says_where(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"prediction": "5", "reference": "5"}\n' + line + "\n")
    with pytest.raises(DataError, match=words):
        judge_file(path, build(JudgeConfig.parse("numeric")), tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_containment_against_hand_labelled_answers() -> None:
    """Answers in other words are missed, and what holds the gold and denies it is taken: that is what it costs."""
    cases, labels = labelled(Path(__file__).parent / "data/text_pairs.jsonl")
    found, _ = calibrate(build(JudgeConfig.parse({"text": "contains"})), cases, labels)
    assert (found.rows, found.decided) == (60, 60)
    assert found.accuracy >= 0.76
    assert found.false_accepts <= 2


def test_calibration_from_a_file_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "labelled.jsonl"
    lines = [("5", "5", "equivalent"), ("5", "6", "different"), ("5", "5", "wrong"), ("5", "6", False)]
    path.write_text("".join(json.dumps({"prediction": p, "reference": r, "label": w}) + "\n" for p, r, w in lines))
    found, _ = calibrate(build(JudgeConfig.parse("numeric")), *labelled(path))
    assert (found.accuracy, found.false_accepts) == (0.75, 1)
    stored = json.loads(store(found, tmp_path / "judges").read_text())
    assert (stored["judge"], stored["kappa"]) == ("numeric", pytest.approx(0.5))
    asked = store(replace(found, models=("org/a@1",)), tmp_path / "judges")
    assert asked != store(replace(found, models=("org/b@1",)), tmp_path / "judges")  # one judge, two models
    path.write_text('{"prediction": "5", "reference": "5", "label": "maybe"}\n')
    with pytest.raises(DataError, match="label"):
        labelled(path)
