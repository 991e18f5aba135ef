"""`cuvee mask`: the first rows of a file, in its order, with what the model's own tokenizer makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.services.commands.calls import call, write_jsonl

ROWS = [{"prompt": f"Question {i} <b>", "completion": f"Answer {i}"} for i in range(5)]


def test_tokens_of_the_first_rows(tmp_path: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", ROWS)
    common = ["mask", data, "--model", tiny_model, "--limit", 2, "--store", tmp_path / "store"]
    found = call(capfd, *common, "--objective", "im", "--json")
    assert found.code == 0, found.err
    entries = found.json["rows"]
    texts = ["".join(token["text"] for token in entry["tokens"]) for entry in entries]
    assert ["Question 0" in texts[0], "Question 1" in texts[1], len(texts)] == [True, True, 2]
    for entry in entries:
        assert set(entry["tokens"][0]) == {"id", "text", "role", "weight"}
        assert {t["weight"] for t in entry["tokens"] if t["role"] in ("user", "assistant")} == {1.0}
        assert {t["weight"] for t in entry["tokens"] if t["role"] == "template"} == {0.0}
    seen = call(capfd, *common)
    assert "tokens in the loss" in seen.out
    assert "Answer 1" in seen.out
    page = tmp_path / "mask.html"
    assert call(capfd, *common, "--html", page).code == 0
    assert "&lt;" in page.read_text()
    assert "<b>" not in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--objective", "imm"], "imm"),
        (["--objective", "{preset: wit, prompt_weight: 2}"], "prompt_weight"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], word: str
) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", ROWS)
    found = call(capfd, "mask", data, "--model", tiny_model, *arguments, "--store", tmp_path / "store")
    assert found.code == 2
    assert word in found.err
