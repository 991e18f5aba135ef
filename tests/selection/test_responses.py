"""Policies on scripted answers: the double stands for the model, the judge is a plain comparison."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from cuvee import rows
from cuvee.errors import UserError
from cuvee.protocols import Case, Completion, Decoding, Label, Request, Scored, ScoreRequest, Verdict
from selection.responses import POLICIES, RespondConfig, composition, respond


class Scripted:
    """Answers by the user's question; a paraphrase request is one whose text mentions the guidance."""

    name = "scripted@1"

    def __init__(self, own: dict[str, list[str]], restated: dict[str, str] | None = None) -> None:
        self.own, self.restated = own, restated or {}
        self.requests: list[Request] = []
        self.fail: dict[str, int] = {}

    def __call__(self, requests: Iterable[Request], decoding: Decoding) -> Iterator[Completion]:
        for request in reversed(list(requests)):  # results may come in any order
            self.requests.append(request)
            text = request.messages[-1]["content"]
            known = {**self.own, **self.restated}
            question = next(line for line in text.split("\n") if line in known)
            if self.fail.get(question, 0) > 0:
                self.fail[question] -= 1
                yield Completion(request.id, request.draw, "", "failed", error="engine lost")
                continue
            answer = self.restated[question] if "for guidance" in text else self.own[question][request.draw]
            finish = "length" if answer.endswith("…") else "stop"
            yield Completion(request.id, request.draw, answer, finish, tokens=len(answer), logprob=-float(len(answer)))


class Contains:
    """Equivalent when the reference stands in the prediction; unsure on a word of its own."""

    name, version = "contains", "7"

    def __init__(self) -> None:
        self.cases: list[Case] = []

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        self.cases += cases
        return [
            Verdict(Label.UNSURE, "cannot tell")
            if "hmm" in c.prediction
            else Verdict(
                Label.EQUIVALENT if any(r in c.prediction for r in c.references) else Label.DIFFERENT,
                "looked",
                c.prediction,
                score=float(len(c.prediction)),
            )
            for c in cases
        ]


class Length:
    name = "scripted@1"

    def __call__(self, requests: Iterable[ScoreRequest]) -> Iterator[Scored]:
        for r in requests:
            assert r.last_only
            text = r.messages[-1]["content"]
            yield Scored(r.id, r.draw, -0.5 * len(text), len(text.split()))


def table(*pairs: tuple[str, str], source: str = "s") -> pa.Table:
    return rows.make_table(
        source,
        [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in pairs],
    )


def answers(result: pa.Table) -> dict[str, str]:
    return {r["messages"][0]["content"].split("\n")[0]: rows.answer_of(r["messages"]) for r in rows.records(result)}


FIVE = table(("q-own", "4"), ("q-para", "5"), ("q-gold", "6"), ("q-unsure", "7"), ("q-cut", "8"))
MODEL = {
    "q-own": ["it is 4"],
    "q-para": ["it is 9"],
    "q-gold": ["no idea"],
    "q-unsure": ["hmm 7"],
    "q-cut": ["8 and so on…"],
}
RESTATED = {
    "q-para": "five is 5",
    "q-gold": "seven",
    "q-unsure": "hmm 7",
    "q-cut": "the reference answer is 8",
    "q-own": "is 4 ok",
}


def run(policy: str, data: pa.Table = FIVE, model: Scripted | None = None, **settings: object) -> tuple[pa.Table, ...]:
    config = RespondConfig.model_validate({"policy": policy, "judge": "numeric", **settings})
    result = respond(data, config, generate=model or Scripted(MODEL, RESTATED), judge=Contains(), seed=3)
    return result.table, result.responses


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("gold", {"q-own": "4", "q-para": "5", "q-gold": "6", "q-unsure": "7", "q-cut": "8"}),
        ("ssr", {"q-own": "it is 4", "q-para": "5", "q-gold": "6", "q-unsure": "7", "q-cut": "8"}),
        ("sdft", {"q-own": "is 4 ok", "q-para": "five is 5", "q-gold": "6", "q-unsure": "7", "q-cut": "8"}),
        ("s3ft", {"q-own": "it is 4", "q-para": "five is 5", "q-gold": "6", "q-unsure": "7", "q-cut": "8"}),
        ("model_only", {"q-own": "it is 4"}),
    ],
)
def test_each_policy_takes_its_sources_in_order(policy: str, expected: dict[str, str]) -> None:
    result, _ = run(policy)
    assert answers(result) == expected
    assert result.schema == FIVE.schema
    assert set(result["id"].to_pylist()) <= set(FIVE["id"].to_pylist())


def test_provenance_says_what_was_asked_and_decided() -> None:
    _, responses = run("s3ft")
    by = {r["own_answer"]: r for r in responses.to_pylist()}
    assert by["it is 4"] | {"chosen": "model", "own_verdict": "equivalent", "paraphrase": None} == by["it is 4"]
    assert by["it is 9"]["own_verdict"] == "different"
    assert by["it is 9"]["paraphrase_verdict"] == "equivalent"
    assert by["hmm 7"]["own_verdict"] == by["hmm 7"]["paraphrase_verdict"] == "unsure"
    cut = by["8 and so on…"]
    assert (cut["own_finish"], cut["own_verdict"]) == ("length", "rejected")
    assert "truncated" in cut["own_reason"]
    assert "reference answer" in cut["paraphrase_reason"]
    assert {(r["judge"], r["judge_version"], r["model"]) for r in by.values()} == {("contains", "7", "scripted@1")}
    assert composition(responses).to_pylist()[-1] == {
        "source": "all", "rows": 5, "model": 1, "paraphrase": 1, "gold": 3, "dropped": 0,
        "model_share": 0.2, "paraphrase_share": 0.2, "gold_share": 0.6, "unsure": 2, "rejected": 2, "failed": 0,
    }  # fmt: skip


def test_the_judge_sees_only_what_passed_the_gates() -> None:
    judge = Contains()
    model = Scripted(
        {"q": ["  "], "r": ["go go go go go go go go go go go go go go go go go go go go go go go go go go 4"]}
    )
    model.own["r"] = ["the sum is the sum of " * 12]
    config = RespondConfig(policy="ssr", judge="x")
    result = respond(table(("q", "1"), ("r", "2")), config, generate=model, judge=judge)
    assert judge.cases == []
    reasons = sorted(r["own_reason"] for r in result.responses.to_pylist())
    assert reasons[0] == "empty"
    assert reasons[1].startswith("loops")


def test_a_paraphrase_that_repeats_its_instruction_is_rejected() -> None:
    model = Scripted({"q": ["no"]}, {"q": "Keep every fact of the answer: 4"})
    config = RespondConfig(policy="s3ft", judge="x")
    (record,) = respond(table(("q", "4")), config, generate=model, judge=Contains()).responses.to_pylist()
    assert record["paraphrase_reason"] == "leaks: 'every fact of the answer'"
    assert record["chosen"] == "gold"


def test_a_failure_is_asked_once_more_then_falls_to_gold() -> None:
    model = Scripted({"once": ["1 yes"], "twice": ["2 yes"]}, {"twice": "2 again", "once": ""})
    model.fail = {"once": 1, "twice": 2}
    result, responses = run("ssr", table(("once", "1"), ("twice", "2")), model)
    assert answers(result) == {"once": "1 yes", "twice": "2"}
    failed = next(r for r in responses.to_pylist() if r["chosen"] == "gold")
    assert failed["own_verdict"] == "failed"
    assert failed["error"] == "own: engine lost"
    seeds = {(r.id, r.draw, r.seed) for r in model.requests}
    assert len(seeds) == 2  # asked again with the same seed


def test_a_generator_that_forgets_a_request_is_a_failure() -> None:
    class Silent(Scripted):
        def __call__(self, requests: Iterable[Request], decoding: Decoding) -> Iterator[Completion]:
            return iter(())

    result, responses = run("ssr", table(("q", "1")), Silent({}))
    assert answers(result) == {"q": "1"}
    assert responses["own_verdict"].to_pylist() == ["failed"]


def test_first_accepted_by_draw_order_and_likeliest() -> None:
    model = Scripted({"q": ["no", "a long 1", "1"]})
    settings = {"n": 3, "decoding": {"temperature": 0.7}}
    first, responses = run("ssr", table(("q", "1")), model, **settings)
    assert answers(first) == {"q": "a long 1"}
    record = responses.to_pylist()[0]
    assert (record["own_draw"], record["own_draws"], record["own_accepted"]) == (1, 3, 2)
    likeliest, _ = run("ssr", table(("q", "1")), model, pick="likeliest", **settings)
    assert answers(likeliest) == {"q": "1"}
    best, _ = run("best_of", table(("q", "1")), model, **settings)
    assert answers(best) == {"q": "a long 1"}
    assert len({r.seed for r in model.requests}) == 3


def test_rft_numbers_its_targets_and_keeps_gold() -> None:
    gold = "2+3=5 so 5"
    own = [
        "3+2=5 so 5",
        "2 + 3 = 5 and 5",
        "1+4=5 thus 5",
        "so 7",
        "2+2=5 gives 5",
        "1 + 4 = 5 which is 5, far from the rest",
    ]
    data = table(("q", gold))
    data = data.set_column(4, "references", pa.array([["5"]], pa.list_(pa.string())))
    model = Scripted({"q": own})
    result, responses = run("rft", data, model, n=6, decoding={"temperature": 0.7})
    assert result["target"].to_pylist() == [0, 1, 2]
    texts = [rows.answer_of(r["messages"]) for r in rows.records(result)]
    # Gold; the swapped sum; of the two with 1+4 the farther one. Not: gold's equation, wrong answer, wrong equation.
    assert texts == [gold, own[0], own[5]]
    assert responses["chosen"].to_pylist() == ["gold", "model", "model"]


def test_shards_are_repeated_only_when_open(tmp_path: Path) -> None:
    data = table(*((f"q{i}", str(i)) for i in range(10)))
    own = {f"q{i}": [f"is {i}" if i % 2 else "?"] for i in range(10)}
    config = RespondConfig(policy="ssr", judge="x")
    whole = respond(data, config, generate=Scripted(own), judge=Contains(), seed=1)

    class Dies(Scripted):
        def __call__(self, requests: Iterable[Request], decoding: Decoding) -> Iterator[Completion]:
            if self.requests:
                raise KeyboardInterrupt
            return super().__call__(requests, decoding)

    dies = Dies(own)
    seen: list[tuple[int, int | None]] = []
    with pytest.raises(KeyboardInterrupt):
        respond(data, config, generate=dies, judge=Contains(), seed=1, shards=tmp_path, shard_rows=4)
    again = Scripted(own)
    result = respond(
        data, config, generate=again, judge=Contains(), seed=1, shards=tmp_path, shard_rows=4,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert {r.id for r in dies.requests}.isdisjoint({r.id for r in again.requests})
    assert result.table == whole.table
    assert result.responses == whole.responses
    assert seen == [(4, 10), (8, 10), (10, 10)]


def test_row_order_and_shard_size_change_nothing() -> None:
    forward, first = run("s3ft")
    backward, second = run("s3ft", FIVE.take(list(range(FIVE.num_rows))[::-1]))
    assert forward == backward
    assert first == second


def test_prompt_sets_word_the_training_prompt_too(tmp_path: Path) -> None:
    model = Scripted({"q": ["[[BEGIN]]\n```python\ndef f(): return 1\n```\n[[DONE]] bye"]})
    data = rows.make_table(
        "m",
        [{
            "messages": [{"role": "system", "content": "sys"}, {"role": "user", "content": "q"},
                         {"role": "assistant", "content": "def f():\n    return 1"}],
            "references": ["return 1"], "tests": ["assert f() == 1"],
        }],
    )  # fmt: skip
    result, responses = run("ssr", data, model, prompts="s3ft/mbpp")
    messages = next(iter(rows.records(result)))["messages"]
    asked = model.requests[0].messages
    assert messages[:-1] == asked  # trained on exactly what was asked
    assert messages[0] == {"role": "system", "content": "sys"}
    assert "assert f() == 1" in messages[1]["content"]
    assert messages[-1]["content"] == "def f(): return 1"
    assert responses["prompts"].to_pylist() == ["s3ft/mbpp@1"]
    gold, _ = run("gold", data, prompts="s3ft/mbpp")
    assert next(iter(rows.records(gold)))["messages"][:-1] == asked  # so that arms differ in targets alone

    own = tmp_path / "mine.jinja"
    own.write_text("{# version: 3 #}\n{% block gold %}The answer is {{ gold }}.{% endblock %}")
    sentence, responses = run("gold", table(("q", "5")), prompts=str(own))
    assert answers(sentence) == {"q": "The answer is 5."}
    assert responses["prompts"][0].as_py().endswith("mine.jinja@3")


def test_log_probabilities_are_of_the_training_messages() -> None:
    config = RespondConfig(policy="s3ft", judge="x")
    result = respond(FIVE, config, generate=Scripted(MODEL, RESTATED), judge=Contains(), score=Length())
    record = next(r for r in result.responses.to_pylist() if r["own_answer"] == "it is 9")
    assert record["logprob_own"] == -0.5 * len("it is 9")
    assert record["logprob_paraphrase"] == -0.5 * len("five is 5")
    assert (record["logprob_gold"], record["tokens_gold"]) == (-0.5, 1)


def test_self_judging_is_marked() -> None:
    judge = Contains()
    judge.generators = ("scripted@1",)  # type: ignore[attr-defined]
    result = respond(FIVE, RespondConfig(policy="ssr", judge="x"), generate=Scripted(MODEL), judge=judge)
    assert set(result.responses["judge"].to_pylist()) == {"contains (self-judged)"}


def test_refusals_name_what_to_change() -> None:
    with pytest.raises(ValueError, match="name a judge"):
        RespondConfig(policy="s3ft")
    with pytest.raises(ValueError, match="greedy"):
        RespondConfig(policy="ssr", judge="x", n=4)
    with pytest.raises(ValueError, match="did you mean"):
        RespondConfig(policy="s3f", judge="x")
    assert RespondConfig.model_validate({"policy": "gold", "decoding": "greedy"}).decoding == Decoding()
    twice = pa.concat_tables([FIVE, FIVE])
    with pytest.raises(UserError, match="several targets"):
        run("ssr", twice)
    with pytest.raises(UserError, match="no prompt file"):
        run("ssr", prompts="s3ft/nope")
    assert set(POLICIES) == {"gold", "ssr", "sdft", "s3ft", "model_only", "rft", "best_of"}


def test_an_empty_table_stays_one() -> None:
    result, responses = run("s3ft", FIVE.slice(0, 0))
    assert result.num_rows == responses.num_rows == 0
    assert result.schema == FIVE.schema
