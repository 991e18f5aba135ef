"""`cuvee judge` on plain files, and the recipes that `cuvee respond` stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from cuvee import rows
from cuvee.errors import UserError
from services.recipe import parse
from services.single_respond import RespondRequest, recipe_of, records, with_model
from services.sources import Source, open_source
from services.yaml_lines import Document
from tests.services.commands.calls import call, read_jsonl, write_jsonl

ANSWERS = [
    {"prompt": "2+2?", "prediction": "The answer is 4.", "reference": "4", "mine": [1]},
    {"prompt": "2+2?", "prediction": "5", "reference": ["4", "four"]},
    {"prompt": "?", "prediction": "4"},
]


def test_verdicts_are_written_beside_what_was_there(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file, out = write_jsonl(tmp_path / "a.jsonl", ANSWERS), tmp_path / "new" / "judged.jsonl"
    found = call(capfd, "judge", file, "--judge", "numeric", "--out", out, "--store", tmp_path / "store", "--json")
    assert found.json["verdicts"] == {"equivalent": 1, "different": 1, "unsure": 1}
    assert found.json["steps"] == []
    judged = read_jsonl(out)
    assert [row["verdict"] for row in judged] == ["equivalent", "different", "unsure"]
    assert all(row["reason"] for row in judged)
    assert judged[0]["mine"] == [1]
    assert not (tmp_path / "store").exists()


def test_a_judge_is_compared_with_people(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    labels = [{**ANSWERS[0], "label": "equivalent"}, {**ANSWERS[1], "label": "equivalent"}]
    file = write_jsonl(tmp_path / "l.jsonl", labels)
    arguments = ["judge", "--judge", "numeric", "--calibrate", file, "--store", tmp_path / "store", "--json"]
    found = call(capfd, *arguments).json
    assert (found["calibration"]["accuracy"], found["calibration"]["false_rejects"]) == (0.5, 1)
    assert Path(found["calibration_file"]).exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--judge", "llm", "--out", "o.jsonl"], "`model`"),
        (["--judge", "{tiers: [numeric, llm]}", "--out", "o.jsonl"], "`model`"),
        (["--judge", "numeri", "--out", "o.jsonl"], "numeric"),
        (["--judge", "numeric"], "--out"),
        (["--judge", "numeric", "--out", "o.csv"], ".jsonl"),
    ],
)
def test_what_a_judge_lacks_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write_jsonl(tmp_path / "a.jsonl", ANSWERS)
    found = call(capfd, "judge", file, *arguments)
    assert found.code == 2
    assert word in found.err
    assert not list(tmp_path.glob("o.*"))


def test_a_judge_without_a_model_asks_the_model_of_the_command() -> None:
    assert with_model("llm") == {"llm": "model"}
    assert with_model("numeric") == "numeric"
    assert with_model({"tiers": ["numeric", "llm"]}) == {"tiers": ["numeric", {"llm": "model"}]}
    assert with_model({"llm": "hub:a/b"}) == {"llm": "hub:a/b"}


def test_the_command_is_a_recipe(tmp_path: Path) -> None:
    request = RespondRequest(["pool.jsonl"], "m", "s3ft", {"llm": "hub:a/b"}, tmp_path / "o.jsonl", seed=3)
    recipe = parse(Document(recipe_of(request)))
    assert recipe.seed == 3
    assert {name: spec.id for name, spec in recipe.models.items()} == {"model": "m", "hub:a/b": "hub:a/b"}
    config = recipe.data["pool"].do[0].config
    assert (config.policy, config.model) == ("s3ft", "model")
    with pytest.raises(UserError, match="needs `judge`"):
        recipe_of(RespondRequest(["pool.jsonl"], "m", "s3ft", None, tmp_path / "o.jsonl"))


def test_gold_needs_no_model_and_reads_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pool = write_jsonl(tmp_path / "pool.jsonl", [{"question": "2+2?", "answer": "4", "kind": "sum"}, {"question": "?"}])
    out = tmp_path / "new.jsonl"
    arguments = ["respond", pool, "--model", "smollm2-135m-instruct", "--policy", "gold", "--out", out]
    found = call(capfd, *arguments, "--store", tmp_path / "store", "--json")
    assert found.code == 0, found.err
    assert (found.json["rows"], found.json["rejected"]) == (1, 1)
    (record,) = read_jsonl(out)
    assert record["messages"][-1] == {"role": "assistant", "content": "4"}
    assert record["meta"] == {"kind": "sum"}
    again = open_source("pool", Source(path=str(out))).table
    assert again["messages"].to_pylist() == open_source("pool", Source(path=str(pool))).table["messages"].to_pylist()
    assert (tmp_path / "new.responses.parquet").exists()


def test_records_leave_out_what_is_empty() -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0.5}]
    (record,) = records(rows.make_table("s", [{"messages": messages, "tests": ["assert 1"]}]))
    assert set(record) == {"id", "target", "source", "messages", "references", "tests"}
    assert record["messages"] == messages
