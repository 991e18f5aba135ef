from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cuvee.errors import UserError
from evaluation.items import table
from evaluation.tasks import EvalOptions, compare_answers, equal_length, get, length_controlled, summarise
from evaluation.tasks.rating import Judging, grade, prefer
from tests.evaluation.doubles import Says


def answer_of(prompt: str, mark: str = "answer") -> str:
    return prompt.partition(f"<{mark}>\n")[2].partition(f"\n</{mark}>")[0]


def by_length(prompt: str) -> str:
    """A judge that likes the longer answer, whatever its place."""
    a, b = len(answer_of(prompt, "answer_A")), len(answer_of(prompt, "answer_B"))
    return "C" if a == b else "A" if a > b else "B"


def test_both_turns_are_asked_and_graded() -> None:
    task = get("chat")
    items = task.items()
    model = Says(lambda text: f"re: {text}", name="m")
    judge = Says(lambda prompt: "10" if answer_of(prompt).startswith("re: ") else "1", name="j")
    found = task.run(items, generate=model, judge=judge)
    turns = sum(len(item.meta["turns"]) for item in items)
    assert found.num_rows == turns > len(items)
    assert summarise(found)["chat"]["mean"] == 10.0
    assert judge.decodings[0].choices == tuple(str(i) for i in range(1, 11))
    second = next(r for r in model.requests if r.id == "writing-1/2")
    assert [m["role"] for m in second.messages] == ["user", "assistant", "user"]
    assert second.messages[1]["content"] == f"re: {second.messages[0]['content']}"
    row = next(r for r in found.to_pylist() if r["item"] == "writing-1/2")
    assert "assistant: re: " in row["prompt"]
    assert row["group"] == "writing"
    assert "self-judged" not in row["version"]
    assert "self-judged" in task.run(items[:1], generate=model, judge=model)["version"][0].as_py()


def test_failures_of_model_and_judge_have_no_score() -> None:
    task = get("chat")
    items = [item for item in task.items() if item.id == "writing-1"]
    rows = task.run(items, generate=Says(lambda text: None), judge=Says(lambda prompt: "5")).to_pylist()
    assert [r["score"] for r in rows] == [None, None]
    assert all(r["error"] == "out of luck" for r in rows)
    rows = task.run(items, generate=Says(lambda text: "x"), judge=Says(lambda prompt: "no idea")).to_pylist()
    assert all(r["score"] is None and "no grade" in r["error"] for r in rows)
    rows = task.run(items, generate=Says(lambda text: "x"), judge=Says(lambda prompt: None)).to_pylist()
    assert all(r["score"] is None and "the judge failed" in r["error"] for r in rows)
    with pytest.raises(UserError, match="conversation"):
        task.run(items, generate=Says(str), judge=Says(str), options=EvalOptions(chat=False))
    with pytest.raises(UserError, match="judge"):
        task.run(items, generate=Says(str))


def test_only_a_preference_in_both_orders_is_a_win() -> None:
    always_first = prefer(Says(lambda prompt: "A"), [("1", "q", "x", "y")])
    assert always_first["1"].score == 0.5
    assert "disagree" in always_first["1"].reason
    assert not always_first["1"].sure
    longer = prefer(Says(by_length), [("1", "q", "long one", "short"), ("2", "q", "a", "bbb"), ("3", "q", "a", "b")])
    assert [longer[k].score for k in "123"] == [1.0, 0.0, 0.5]
    unclear = prefer(Says(lambda prompt: "both"), [("1", "q", "x", "y")])
    assert unclear["1"].score is None
    assert prefer(Says(lambda prompt: None), [("1", "q", "x", "y")])["1"].score is None


def test_several_judgements_are_sampled_with_their_seeds_and_averaged() -> None:
    grades = iter("3579")
    judge = Says(lambda prompt: next(grades))
    found = grade(judge, [("1", "q", "a", "")], judging=Judging(4, seed=1))
    assert (found["1"].score, found["1"].reason) == (6.0, "mean of 3, 5, 7, 9")
    assert len({request.seed for request in judge.requests}) == 4
    assert {decoding.temperature for decoding in judge.decodings} == {1.0}
    other = Says(lambda prompt: "3")
    grade(other, [("1", "q", "a", "")], judging=Judging(4, seed=2))
    assert not {r.seed for r in other.requests} & {r.seed for r in judge.requests}
    said = iter(["A", "A", "what", "B"])  # a win of neither order, then no verdict
    assert prefer(Says(lambda prompt: next(said)), [("1", "q", "x", "y")], judging=Judging(2))["1"].score == 0.5
    once = Says(lambda prompt: "3")
    grade(once, [("1", "q", "a", "")])
    assert once.decodings[0].temperature == 0.0


def test_a_reference_is_shown_to_the_judge_where_there_is_one() -> None:
    judge = Says(lambda prompt: "3")
    grade(judge, [("1", "q", "a", "gold"), ("2", "q", "a", "")])
    shown = {request.id: request.messages[0]["content"] for request in judge.requests}
    assert answer_of(shown["1"], "reference") == "gold"
    assert "<reference>" not in shown["2"]


def test_alpaca_eval_compares_with_the_reference(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    rows = [{"instruction": f"Do {i}.", "output": "x" * i, "dataset": "d"} for i in (1, 9)]
    file.write_text(json.dumps(rows))
    options = EvalOptions(data={"alpaca_eval": str(file)})
    task = get("alpaca_eval")
    found = task.run(task.items(options), generate=Says(lambda t: "yyyy"), judge=Says(by_length), options=options)
    assert {r["reference"]: r["score"] for r in found.to_pylist()} == {"x": 1.0, "x" * 9: 0.0}
    assert summarise(found)["alpaca_eval"]["metric"] == "win_rate"


def test_two_models_are_compared_on_the_same_questions() -> None:
    task = get("chat")
    items = task.items()[:4]
    judge = Says(lambda prompt: "5")
    short, long = (task.run(items, generate=Says(lambda t, n=n: "word " * n), judge=judge) for n in (1, 3))
    found = compare_answers(short, long, Says(by_length))
    figures = summarise(found)["win_rate"]
    assert figures["mean"] == 1.0
    assert figures["metrics"]["length_controlled"]["mean"] == 1.0
    assert {row["item"] for row in found.to_pylist()} == {f"{item.id}/1" for item in items}
    silent = task.run(items, generate=Says(lambda t: None), judge=judge)
    assert {row["error"] for row in compare_answers(silent, long, Says(by_length)).to_pylist()} == {
        "a model gave no answer"
    }
    placed = summarise(compare_answers(short, long, Says(lambda prompt: "A")))["win_rate"]
    assert (placed["mean"], placed["low"], placed["unsure"]) == (0.5, None, 4)
    assert placed["metrics"]["length_controlled"]["low"] is None
    with pytest.raises(UserError, match="different questions"):
        compare_answers(short.slice(1), long, Says(by_length))


def outcomes(wins: np.ndarray, lengths: np.ndarray) -> pa.Table:
    return table(
        {
            "task": "w",
            "version": "1",
            "item": f"{i:03d}",
            "metric": "win_rate",
            "score": float(w),
            "prediction": "x" * (100 + int(n)),
            "reference": "x" * 100,
        }
        for i, (w, n) in enumerate(zip(wins, lengths, strict=True))
    )


def test_length_controlled_win_rate_takes_length_out() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 80, size=400)
    chance = 1 / (1 + np.exp(-3 * np.tanh(lengths / lengths.std())))  # at equal length no preference
    biased = outcomes(rng.random(400) < chance, lengths)
    plain = summarise(biased)["w"]["mean"]
    assert plain > 0.8
    assert length_controlled(biased) == pytest.approx(0.5, abs=0.12)
    fair = outcomes(rng.random(400) < 0.7, lengths - 40)
    assert length_controlled(fair) == pytest.approx(summarise(fair)["w"]["mean"], abs=0.05)
    interval = equal_length(biased, np.random.default_rng(1))
    assert interval.low < length_controlled(biased) == interval.mean < interval.high < plain
    same = outcomes(np.array([1, 0, 1]), np.zeros(3, dtype=int))
    assert length_controlled(same) == pytest.approx(2 / 3)


def test_mt_bench_reads_both_formats(tmp_path: Path) -> None:
    own = {"question_id": 81, "category": "writing", "turns": ["a", "b"], "reference": ["r"]}
    hub = {"prompt_id": 81, "category": "writing", "prompt": ["a", "b"], "reference": ["r"]}
    file = tmp_path / "q.jsonl"
    found = []
    for row in (own, hub):
        file.write_text(json.dumps(row))
        found.append(get("mt_bench").items(EvalOptions(data={"mt_bench": str(file)})))
    assert found[0] == found[1]
    assert found[0][0].id == "81"
