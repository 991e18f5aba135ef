from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from cuvee.protocols import Scored, ScoreRequest
from cuvee.rows import make_table
from evaluation.items import summarise
from evaluation.statistics import compare
from evaluation.tasks import gold_loss
from tests.evaluation.doubles import HFScore


def rows(source: str, answers: list[str]) -> pa.Table:
    return make_table(
        source,
        [
            {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": a}]}
            for i, a in enumerate(answers)
        ],
    )


class ByWord:
    """A nat and a half for each word of the last turn; some texts fail in different ways."""

    name = "by word"

    def __call__(self, requests: Iterable[ScoreRequest]) -> Iterator[Scored]:
        for r in requests:
            assert r.last_only
            text = r.messages[-1]["content"]
            n = len(text.split())
            if text == "lost":
                continue
            yield Scored(
                r.id, r.draw, -1.5 * n, 0 if text == "none" else n,
                truncated=text == "long", error="died" if text == "dead" else "",
            )  # fmt: skip


def test_loss_is_per_token_and_a_task_a_source() -> None:
    table = pa.concat_tables([rows("math", ["a b c", "d"]), rows("chat", ["e f"])])
    found = gold_loss(table, score=ByWord())
    assert set(found["task"].to_pylist()) == {"gold_loss/math", "gold_loss/chat"}
    math = summarise(found)["gold_loss/math"]
    assert (math["metric"], math["mean"], math["n"]) == ("loss", pytest.approx(1.5), 2)
    assert sorted(found["tokens"].to_pylist()) == [1, 2, 3]
    assert set(found["item"].to_pylist()) == set(table["id"].to_pylist())


def test_texts_without_a_loss_are_counted_with_the_reason() -> None:
    found = gold_loss(rows("s", ["ok", "lost", "none", "long", "dead"]), score=ByWord())
    reasons = {r["reference"]: r["error"] for r in found.to_pylist()}
    assert reasons == {
        "ok": "",
        "lost": "no score came back",
        "none": "no tokens to score",
        "long": "longer than the context",
        "dead": "died",
    }
    assert summarise(found)["gold_loss/s"]["errors"] == 4


def test_loss_agrees_with_transformers(tiny_model: Path) -> None:
    import torch

    table = rows("s", ["three apples", "a b c d"])
    model = HFScore(tiny_model)
    found = {r["item"]: r for r in gold_loss(table, score=model).to_pylist()}
    for record in table.to_pylist():
        prompt, answer = record["messages"]
        text = model.tokenizer.apply_chat_template([prompt], tokenize=False, add_generation_prompt=True)
        before, after = model.tokenizer(text)["input_ids"], model.tokenizer(answer["content"])["input_ids"]
        labels = torch.tensor([[-100] * len(before) + after])
        with torch.no_grad():
            expected = model.model(input_ids=torch.tensor([before + after]), labels=labels).loss.item()
        assert found[record["id"]]["score"] == pytest.approx(expected, abs=1e-4)
    (result,) = compare(gold_loss(table, score=model), gold_loss(table, score=model))
    assert result.difference == 0.0
