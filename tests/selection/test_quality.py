from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from cuvee import rows
from cuvee.errors import DataError, UserError
from cuvee.protocols import Completion, Decoding, Request, Scored, ScoreRequest
from selection.methods import SelectConfig, select
from selection.quality import SCORERS, ScoreConfig, add_scores, cosine
from selection.vectors import Vectors


def chat(*contents: str, meta: dict[str, Any] | None = None) -> dict[str, Any]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    return {"messages": turns, "meta": meta}


def table_of(*chats: dict[str, Any]) -> pa.Table:
    return rows.make_table("s", list(chats))


def column(table: pa.Table, name: str) -> dict[str, Any]:
    """By the text of the first turn."""
    firsts = [messages[0]["content"] for messages in table["messages"].to_pylist()]
    return dict(zip(firsts, table[name].to_pylist(), strict=True))


class FakeScore:
    """log p of an answer: -1 a character, halved when the prompt is there; answers "!" fail, "0" is certain."""

    name = "fake"

    def __call__(self, requests: Iterable[ScoreRequest]) -> Iterator[Scored]:
        for request in reversed(list(requests)):
            answer, prompt = rows.answer_of(request.messages), request.messages[0]["content"]
            assert request.last_only
            if answer == "!":
                yield Scored(request.id, request.draw, math.nan, 0, error="too long")
            else:
                loss = 0.0 if answer == "0" else len(answer) * (0.5 if prompt else 1.0)
                yield Scored(request.id, request.draw, -loss, tokens=2)


class FakeGenerate:
    """Quality is likely the first character of the answer, complexity that of the instruction; "x" is no grade."""

    name = "fake"

    def __call__(self, requests: Iterable[Request], decoding: Decoding) -> Iterator[Completion]:
        assert decoding.first_tokens == 20
        for request in reversed(list(requests)):
            text = request.messages[0]["content"]
            last = "Answer:" if "Answer:" in text else "Request:"
            said = text.split(last)[1].split("<<<")[1].strip()[0]
            failed = said == "!"
            likely = {said: math.log(0.5), f" {said}": math.log(0.25), "1": math.log(0.25), "The": math.log(0.1)}
            if not said.isdigit():
                likely = {"The": 0.0}
            yield Completion(request.id, request.draw, said, "failed" if failed else "stop", 1, None, "", likely)


def test_ratio_of_prompt_and_answer_and_its_nearness() -> None:
    def row(*texts: str) -> dict[str, Any]:
        return {"messages": [{"role": r, "content": t} for r, t in zip(("user", "assistant") * 2, texts, strict=False)]}

    table = rows.make_table("s", [row("abcdefgh", "ab"), row("ab", "abcd"), row("abc", "a", "ef", "b")])
    scored = add_scores(table, ScoreConfig.parse({"r": "ratio", "fit": {"ratio": {"near": 3}}}))
    found = dict(zip(scored["score.r"].to_pylist(), scored["score.fit"].to_pylist(), strict=True))
    # A conversation counts as a whole, its prompts and its answers joined by a newline: (3 + 1 + 2) / (1 + 1 + 1).
    assert found == {4.0: -1.0, 0.5: -2.5, 2.0: -1.0}


def test_a_setting_that_is_not_used_is_in_no_key() -> None:
    assert "near" not in ScoreConfig.parse("length").model_dump(mode="json")["scorers"]["length"]
    assert ScoreConfig.parse({"x": {"ratio": {"near": 3}}}).model_dump(mode="json")["scorers"]["x"]["near"] == 3
    dumped = ScoreConfig.parse({"x": {"ratio": {"near": 3}}})
    assert ScoreConfig.model_validate(dumped.model_dump(mode="json")) == dumped


def test_length_and_a_users_column() -> None:
    table = table_of(chat("a", "1234"), chat("b", "12"), chat("c", "é1", "d", "ünï"))
    scored = add_scores(table, ScoreConfig.parse({"long": "length"}))
    assert column(scored, "score.long") == {"a": 4, "b": 2, "c": 3}
    rated = table.append_column("stars", pa.array([5, None, 3]))
    scored = add_scores(rated, ScoreConfig.parse({"r": {"column": "stars"}}))
    assert scored["score.r"].to_pylist() == [5, None, 3]
    assert scored["unscored.r"].to_pylist() == [None, "absent", None]
    again = add_scores(scored, ScoreConfig.parse({"r": {"column": {"column": "stars"}}}))
    assert again.column_names == scored.column_names


def test_a_number_in_meta() -> None:
    table = table_of(
        chat("a", "1", meta={"q": 2.5}),
        chat("b", "1", meta={"q": "high"}),
        chat("c", "1"),
        chat("d", "1", meta={"q": True}),
    )
    scored = add_scores(table, ScoreConfig.parse({"mine": {"column": "q"}}))
    assert column(scored, "score.mine") == {"a": 2.5, "b": None, "c": None, "d": None}
    assert column(scored, "unscored.mine")["b"] == "'high' is not a finite number"
    with pytest.raises(DataError, match="no row has it"):
        add_scores(table, ScoreConfig.parse({"mine": {"column": "other"}}))
    with pytest.raises(UserError, match="names none"):
        add_scores(table, ScoreConfig.parse({"mine": "column"}))
    setting = SelectConfig(method="top", amount="1 rows", quality="mine", missing="exclude")
    chosen = select(scored, setting, rng_seed=0)
    assert scored.filter(chosen["selected"])["messages"][0].as_py()[0]["content"] == "a"


def test_perplexity_is_a_token() -> None:
    table = table_of(chat("a", "1234"), chat("b", "!"), chat("c", "0"))
    scored = add_scores(table, ScoreConfig.parse({"p": "perplexity"}), score=FakeScore())
    assert column(scored, "score.p") == {"a": pytest.approx(math.e), "b": None, "c": 1}
    assert column(scored, "unscored.p") == {"a": None, "b": "too long", "c": None}


def test_ifd_is_the_ratio_of_losses() -> None:
    table = table_of(chat("a", "1234"), chat("b", "!"), chat("c", "0"))
    scored = add_scores(table, ScoreConfig.parse({"i": "ifd"}), score=FakeScore())
    assert column(scored, "score.i") == {"a": 0.5, "b": None, "c": None}
    assert column(scored, "unscored.i")["c"] == "the answer is certain without its instruction"


def test_grades_are_expected_values() -> None:
    """3 with probability 3/4 (two spellings) and 1 with 1/4 is 2.5; a chat sums the products of its turns."""
    table = table_of(chat("3 a", "5 b"), chat("3 c", "5 d", "1 e", "3 f"), chat("x", "2"), chat("6", "!"))
    scored = add_scores(
        table, ScoreConfig.parse({"d": "deita", "q": "quality", "c": "complexity"}), generate=FakeGenerate()
    )
    assert column(scored, "score.q") == {"3 a": 4, "3 c": 6.5, "x": 1.75, "6": None}
    assert column(scored, "score.c") == {"3 a": 2.5, "3 c": 3.5, "x": None, "6": 4.75}
    assert column(scored, "score.d") == {"3 a": 10, "3 c": 12.5, "x": None, "6": None}
    assert "no grade" in column(scored, "unscored.d")["x"]
    assert column(scored, "unscored.d")["6"] == "the request failed"
    for turns, value in [("mean", 6.25), ("last", 2.5)]:
        again = add_scores(table, ScoreConfig.parse({"d": {"deita": {"turns": turns}}}), generate=FakeGenerate())
        assert column(again, "score.d")["3 c"] == value


def test_cosine_of_instruction_and_answer() -> None:
    ids = pa.chunked_array([pa.array(["a", "b", "c"])])
    left = Vectors.of(["c", "a", "b"], np.array([[0, 0], [3, 0], [1, 1]], np.float32))
    right = Vectors.of(ids, np.array([[2, 0], [1, -1], [1, 1]], np.float32))
    np.testing.assert_allclose(cosine(ids, left, right), [1, 0, 0], atol=1e-7)
    table = pa.table({"id": ids})
    both = {"instruction": left, "response": right}
    scored = add_scores(table, ScoreConfig.parse({"cosine": "cosine"}), vectors=both)
    np.testing.assert_allclose(scored["score.cosine"].to_numpy(), [1, 0, 0], atol=1e-7)
    with pytest.raises(UserError, match="embeddings of instruction and of response"):
        add_scores(table, ScoreConfig.parse("cosine"), vectors={"instruction": left})
    with pytest.raises(DataError, match="1 rows have no embedding"):
        cosine(pa.chunked_array([pa.array(["a", "x"])]), left, right)


def test_every_target_of_a_row_is_scored() -> None:
    table = table_of(chat("a", "12"))
    second = table_of(chat("a", "1234")).set_column(0, table.schema.field("id"), table["id"])
    second = second.set_column(1, table.schema.field("target"), pa.array([1], pa.int32()))
    scored = add_scores(pa.concat_tables([table, second]), ScoreConfig.parse({"p": "perplexity"}), score=FakeScore())
    np.testing.assert_allclose(scored["score.p"].to_numpy(), [math.exp(0.5), math.exp(1)])


def test_how_scores_are_written() -> None:
    config = ScoreConfig.parse({"rel": "cosine", "ppl": {"perplexity": {"model": "m"}}, "d": {"deita": {"model": "m"}}})
    assert config.columns() == ("rel", "ppl", "d")
    assert config.needs() == {"vectors.instruction", "vectors.response", "score", "generate"}
    assert config.model_name() == "m"
    assert ScoreConfig.model_validate(config.model_dump(mode="json")) == config
    assert ScoreConfig.parse({"deita": "q"}) == ScoreConfig.parse({"q": "deita"})
    assert ScoreConfig.parse({"deita": {"model": "m"}}) == ScoreConfig.parse({"deita": {"deita": {"model": "m"}}})
    with pytest.raises(ValidationError, match="a map, not 'm'"):
        ScoreConfig.parse({"q": {"judge": "m"}})
    assert ScoreConfig.parse("length").columns() == ("length",)
    assert ScoreConfig.parse({"length": "length"}).columns() == ("length",)
    assert ScoreConfig.parse("length").model_name("base") is None
    assert ScoreConfig.parse("ifd").model_name("base") == "base"
    with pytest.raises(UserError, match="2 models in one step: a, b"):
        ScoreConfig.parse({"x": {"ifd": {"model": "a"}}, "y": {"ifd": {"model": "b"}}}).model_name()
    with pytest.raises(ValueError, match='did you mean "perplexity"'):
        ScoreConfig.parse({"x": "perplexty"})
    with pytest.raises(ValueError, match="modl"):
        ScoreConfig.parse({"x": {"perplexity": {"modl": "m"}}})
    assert {"length", "column", "cosine", "perplexity", "ifd", "quality", "complexity", "deita"} <= set(SCORERS)


@pytest.mark.parametrize("name", ["perplexity", "ifd", "deita"])
def test_a_missing_model_is_named(name: str) -> None:
    with pytest.raises(UserError, match="needs a model"):
        add_scores(table_of(chat("a", "b")), ScoreConfig.parse(name))


def test_progress_counts_to_the_total() -> None:
    seen: list[tuple[int, int | None]] = []
    table = table_of(chat("1", "2"), chat("3", "4", "5", "6"))
    config = ScoreConfig.parse("deita")
    add_scores(table, config, generate=FakeGenerate(), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 6) for i in range(1, 7)]


def test_judges_and_reward_models_grade_gold_answers() -> None:
    table = table_of(chat("a", "one"), chat("b", "three"), chat("c", "eleven"))
    seen: list[tuple[str, str, int]] = []

    def grade(kind: str, asked: Any, rubric: str) -> dict[str, float | None]:
        seen.append((kind, rubric, len(asked)))
        return {name: None if text == rows.answer_of(asked[0][1]) else float(len(text)) for name, _, text in asked}

    config = ScoreConfig.parse({"j": {"judge": {"rubric": "Is it short?"}}, "r": {"reward": {"model": "rm"}}})
    with pytest.raises(UserError, match="2 models"):
        config.model_name("m")
    scored = add_scores(table, config, grade=grade)
    assert seen == [("judge", "Is it short?", table.num_rows), ("reward", "", table.num_rows)]
    answers = [rows.answer_of(m) for m in table["messages"].to_pylist()]
    wanted = [None if text == answers[0] else float(len(text)) for text in answers]
    assert scored["score.j"].to_pylist() == scored["score.r"].to_pylist() == wanted
    assert scored["unscored.j"].to_pylist() == [None if w is not None else "the judge gave no grade" for w in wanted]
    with pytest.raises(UserError, match="needs a model"):
        add_scores(table, ScoreConfig.parse("judge"))
    with pytest.raises(ValidationError, match="names no reward model"):
        ScoreConfig.parse({"r": "reward"})
