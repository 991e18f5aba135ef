"""`cuvee select` on plain files: format kept, every row accounted for, nothing half-written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cuvee.errors import UserError
from services.single_select import SelectRequest, recipe_of
from services.sources import Source, open_source
from tests.services.commands.calls import call, read_jsonl, write_jsonl

COLUMNS = ["id", "source", "row", "cluster", "distance", "quality", "weight", "round", "selected"]


def alpaca(count: int, word: str = "apple") -> list[dict[str, Any]]:
    return [
        {
            "instruction": f"Say {word} {i}",
            "input": "",
            "output": f"{word} " * (i + 1),
            "score": i % 7,
            "id": f"own-{i}",
        }
        for i in range(count)
    ]


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "pool.jsonl", [*alpaca(12), "{broken", {"instruction": "no answer", "output": ""}])


def test_rows_keep_their_format_and_every_row_is_accounted_for(
    pool: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["select", pool, "--method", "random", "--budget", 5, "--out", tmp_path / "chosen.jsonl"]
    arguments += ["--store", tmp_path / "store", "--json"]
    first = call(capfd, *arguments)
    assert first.code == 0, first.err
    assert (first.json["chosen"], first.json["pool"], first.json["rejected"]) == (5, 12, 2)
    assert {step["status"] for step in first.json["steps"]} == {"computed"}
    chosen = read_jsonl(tmp_path / "chosen.jsonl")
    originals = alpaca(12)
    decided = pq.read_table(tmp_path / "chosen.selection.parquet").to_pylist()
    assert list(decided[0]) == COLUMNS
    place = {row["id"]: row["row"] for row in decided}
    assert sorted(place.values()) == list(range(12))
    for record in chosen:
        theirs = originals[place[record["id"]]]
        assert record == {**theirs, "id": record["id"], "original_id": theirs["id"]}
    assert [place[record["id"]] for record in chosen] == sorted(row["row"] for row in decided if row["selected"])
    rejected = read_jsonl(tmp_path / "chosen.rejected.jsonl")
    assert [(r["file"], r["line"]) for r in rejected] == [(str(pool), 13), (str(pool), 14)]
    assert all(r["reason"] for r in rejected)

    before = (tmp_path / "chosen.jsonl").read_bytes()
    second = call(capfd, *arguments)
    assert {step["status"] for step in second.json["steps"]} == {"reused"}
    assert (tmp_path / "chosen.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--budget", "100"], ["100", "12"]),
        (["--budget", "13", "--by", "source"], ["13", "12", "'pool'"]),
        (["--budget", "5", "--quality", "perplexity", "--method", "top"], ["`models`", "--recipe"]),
        (["--budget", "5", "--method", "iterative"], ["`models`", "--recipe"]),
        (["--budget", "5", "--quality", "scre", "--method", "top"], ["scre", '"score"']),
        (["--budget", "5", "--method", "kqm"], ["kqm", "kmq"]),
        (["--budget", "many"], ["many"]),
        (["--budget", "5", "--with", "temprature=2"], ["temprature", "temperature"]),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_nothing(
    pool: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], more: list[str], said: list[str]
) -> None:
    method = [] if "--method" in more else ["--method", "random"]
    out = tmp_path / "out" / "chosen.jsonl"
    found = call(capfd, "select", pool, *method, *more, "--out", out, "--store", tmp_path / "store")
    assert found.code == 2
    assert found.err.count("cuvee:") == 1
    for word in said:
        assert word in found.err
    assert not out.parent.exists()


def test_a_column_of_the_data_is_a_quality(pool: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "top.json"
    arguments = ["--method", "top", "--budget", 3, "--quality", "score", "--out", out, "--store", tmp_path / "store"]
    assert call(capfd, "select", pool, *arguments).code == 0
    table = open_source("top", Source(path=str(out))).table
    assert table.num_rows == 3
    decided = pq.read_table(tmp_path / "top.selection.parquet")
    assert sorted(decided.filter(decided["selected"])["quality"].to_pylist()) == [4, 5, 6]


@pytest.mark.parametrize("name", ["chosen.csv", "chosen.parquet", "chosen.json", "chosen.jsonl.gz"])
def test_what_was_written_reads_as_the_same_conversations(
    pool: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    arguments = ["--method", "random", "--budget", "1/2", "--out", tmp_path / name, "--store", tmp_path / "store"]
    assert call(capfd, "select", pool, *arguments).code == 0
    ids = {
        row["id"]
        for row in pq.read_table(tmp_path / "chosen.selection.parquet").to_pylist()
        if row["selected"]
    }  # fmt: skip
    before = {r["id"]: r["messages"] for r in open_source("pool", Source(path=str(pool))).table.to_pylist()}
    after = open_source("x", Source(path=str(tmp_path / name))).table["messages"].to_pylist()
    assert sorted(map(str, after)) == sorted(str(before[key]) for key in ids)


def test_files_of_one_name_are_two_sources(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, word in (("a", "apple"), ("b", "book")):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "pool.jsonl", alpaca(4, word))
    pools = [tmp_path / "a" / "pool.jsonl", tmp_path / "b" / "pool.jsonl"]
    arguments = ["--method", "random", "--budget", 2, "--by", "source", "--out", tmp_path / "c.jsonl"]
    found = call(capfd, "select", *pools, *arguments, "--store", tmp_path / "store", "--json")
    assert found.json["chosen"] == 4
    sources = pq.read_table(tmp_path / "c.selection.parquet")["source"].to_pylist()
    assert len(set(sources)) == 2
    assert len({record["id"] for record in read_jsonl(tmp_path / "c.jsonl")}) == 4


def test_with_replacement_a_row_is_written_as_often_as_it_was_drawn(
    pool: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--method", "random", "--budget", 30, "--with", "replacement=true", "--out", tmp_path / "c.jsonl"]
    assert call(capfd, "select", pool, *arguments, "--store", tmp_path / "store").code == 0
    decided = pq.read_table(tmp_path / "c.selection.parquet").to_pylist()
    written = [record["id"] for record in read_jsonl(tmp_path / "c.jsonl")]
    assert len(written) == 30
    assert {row["id"]: row["count"] for row in decided if row["selected"]} == {i: written.count(i) for i in written}


def test_a_row_is_explained_from_the_stored_decision_and_from_a_new_one(
    pool: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "chosen.jsonl"
    assert call(capfd, "select", "--explain", "abc", "--out", out).code == 2
    made = ["--method", "random", "--budget", 5, "--out", out, "--store", tmp_path / "store"]
    assert call(capfd, "select", pool, *made).code == 0
    row = read_jsonl(out)[0]["id"]
    stored = call(capfd, "select", "--explain", row[:12], "--out", out)
    assert stored.code == 0
    assert stored.out.startswith(f"Row {row} of source pool was chosen by random")
    computed = call(capfd, "select", pool, *made, "--explain", row, "--json")
    assert computed.json["explanation"] == stored.out.strip()


ITERATED = """
version: 1
models: {m: {id: somewhere}}
let: {k: 3}
data:
  scored: {from: other.jsonl, do: [dedup, {score: {q: length}}, {cluster: {k: $k}}]}
  chosen: {from: scored, do: [{iterate: {amount: 9 rows, rounds: 2, quality: q, update: released}}]}
stages: {one: {mix: {chosen: all}}}
train: {model: m, lr: 1e-3}
"""


def test_iterative_takes_models_settings_and_what_it_builds_on_from_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(ITERATED)
    request = SelectRequest(["p.jsonl"], "iterative", "6", tmp_path / "o.jsonl", recipe=tmp_path / "r.yaml")
    tree = recipe_of(request, [{"path": "p.jsonl", "name": "p"}])
    assert (tree["models"], tree["train"]) == ({"m": {"id": "somewhere"}}, {"model": "m", "lr": 1e-3})
    score, cluster, iterate = tree["data"]["pool"]["do"]
    assert (list(score), cluster["cluster"]["k"]) == (["score"], 3)
    said = iterate["iterate"]
    assert (said["amount"], said["rounds"], said["update"], said["quality"]) == ("6 rows", 2, "released", "q")
    (tmp_path / "r.yaml").write_text(ITERATED.replace("train: {model: m, lr: 1e-3}", ""))
    with pytest.raises(UserError, match="needs `train`, and the recipe has none"):
        recipe_of(request, [{"path": "p.jsonl", "name": "p"}])
