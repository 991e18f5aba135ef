from __future__ import annotations

import json
from pathlib import Path

import pytest

from cuvee.protocols import Completion
from evaluation.items import summarise
from evaluation.tasks import EvalOptions, get
from evaluation.tasks.ifeval import CONSTRAINTS, METRICS, TOPICS, Item, check
from tests.evaluation.doubles import Says

GOOD = {
    "punctuation:no_comma": ("No marks of that kind here.", "One, two."),
    "change_case:english_lowercase": ("bread is made of flour and water.", "Bread is made of flour."),
    "detectable_format:number_bullet_lists": ("* one\n* two\n* three", "* one\n* two"),
    "detectable_format:title": ("<<bread>>\nIt is good.", "bread\nIt is good."),
    "startend:quotation": ('"It is good."', "It is good."),
    "startend:end_checker": ("It is good. That is all.", "It is good."),
    "keywords:existence": ("Paper needs water.", "Paper needs wood."),
    "keywords:forbidden_words": ("It is fine.", "It is very fine."),
    "length_constraints:number_words": ("word " * 60, "word " * 20),
    "detectable_content:number_placeholders": ("Dear [name] of [town].", "Dear [name]."),
    "detectable_format:json_format": ('{"a": 1}', "a: 1"),
}


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=lambda c: c[1])
def test_every_built_in_constraint_is_checked(constraint: tuple[str, str, dict[str, object]]) -> None:
    _, name, arguments = constraint
    item = Item("1", question="Write.", meta={"names": [name], "arguments": [arguments]})
    for text, wanted in zip(GOOD[name], (1.0, 0.0), strict=True):
        rows = check(item, Completion("1", 0, text, "stop"))
        assert (rows[0]["metric"], rows[0]["score"]) == ("prompt_strict", wanted), (name, text)


def test_built_in_prompts_are_fixed_and_cross_topics_with_constraints() -> None:
    items = get("instructions").items()
    assert len(items) == len({item.question for item in items}) == 6 * len(TOPICS)
    used = {name for item in items for name in item.meta["names"]}
    assert used == {name for _, name, _ in CONSTRAINTS}
    assert any(len(item.meta["names"]) == 2 for item in items)
    assert items == get("instructions").items()


def test_run_has_strict_and_loose_metrics() -> None:
    task = get("instructions")
    table = task.run(task.items(EvalOptions(limit=20)), generate=Says(lambda text: "bread is made of flour and water."))
    found = summarise(table)["instructions"]
    assert found["metric"] == "prompt_strict"
    assert set(found["metrics"]) == set(METRICS)
    assert found["metrics"]["prompt_loose"]["mean"] >= found["mean"]
    assert "if-verifiable" in found["version"]
    empty = task.run(task.items(EvalOptions(limit=5)), generate=Says(lambda text: ""))
    assert summarise(empty)["instructions"]["mean"] == 0.0


def test_loose_forgives_the_first_line() -> None:
    item = Item("1", question="q", meta={"names": ["punctuation:no_comma"], "arguments": [{}]})
    rows = {r["metric"]: r for r in check(item, Completion("1", 0, "Sure, here it is:\nno marks", "length"))}
    assert (rows["prompt_strict"]["score"], rows["prompt_loose"]["score"]) == (0.0, 1.0)
    assert rows["prompt_strict"]["reason"] == "cut at the token limit; not followed: punctuation:no_comma"


def test_what_cannot_be_checked_has_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = Item("1", question="q", meta={"names": ["no:such"], "arguments": [{}]})
    rows = check(unknown, Completion("1", 0, "text", "stop"))
    assert all(row["score"] is None and "no:such" in row["error"] for row in rows)
    failed = check(unknown, Completion("1", 0, "", "failed", error="died"))
    assert failed[0]["error"] == "died"

    import nltk

    def gone(*args: object, **more: object) -> None:
        raise LookupError("Resource punkt_tab not found.")

    monkeypatch.setattr(nltk, "word_tokenize", gone)
    sentences = Item(
        "1",
        question="q",
        meta={
            "names": ["change_case:capital_word_frequency"],
            "arguments": [{"capital_frequency": 1, "capital_relation": "at least"}],
        },
    )
    assert "nltk.downloader" in check(sentences, Completion("1", 0, "A word", "stop"))[0]["error"]


def test_local_file_in_the_format_of_the_hub(tmp_path: Path) -> None:
    file = tmp_path / "ifeval.jsonl"
    row = {
        "key": 1001,
        "prompt": "Write without commas.",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        # The hub's rows have every argument, those of other instructions as null.
        "kwargs": [{"num_words": None}, {"num_words": 3, "relation": "at least", "keywords": None}],
    }
    file.write_text(json.dumps(row))
    options = EvalOptions(data={"ifeval": str(file)})
    table = get("ifeval").run(get("ifeval").items(options), generate=Says(lambda text: "one two"), options=options)
    scores = {r["metric"]: r["score"] for r in table.to_pylist()}
    assert (scores["prompt_strict"], scores["instruction_strict"]) == (0.0, 0.5)
    assert table["item"][0].as_py() == "1001"
