from __future__ import annotations

import gzip
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cuvee import rows
from cuvee.errors import DataError, MissingError, UserError
from services import sources
from services.sources import Source, digest, open_source, originals

GOOD = {"instruction": "Add.", "input": "1 2", "output": "3"}


def lines(path: Path, *texts: object) -> Path:
    path.write_text("".join((t if isinstance(t, str) else json.dumps(t)) + "\n" for t in texts))
    return path


def load(path: Path | str, **options: Any) -> sources.Loaded:
    return open_source("t", Source(path=str(path), **options))


def asked(loaded: sources.Loaded) -> set[str]:
    return {m[0]["content"] for m in loaded.table.column("messages").to_pylist()}


def test_a_bad_line_is_handed_back_with_its_place_and_reason(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", GOOD, '{"instruction": "x", ', "", [1], {"messages": []}, {"instruction": "q"})
    loaded = load(path)
    assert loaded.table.num_rows == 1
    assert [(r["file"], r["line"]) for r in loaded.rejected] == [(str(path), n) for n in (2, 4, 5, 6)]
    reasons = [r["reason"] for r in loaded.rejected]
    assert reasons[0].startswith("malformed JSON")
    assert "list where an object is needed" in reasons[1]
    assert "no messages" in reasons[2]
    assert "fit no known shape" in reasons[3]
    assert loaded.rejected[0]["text"] == '{"instruction": "x",'


def test_a_line_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b'\n{"instruction": "\xff"}\n')
    loaded = load(path)
    assert (loaded.table.num_rows, loaded.rejected[0]["line"]) == (1, 2)
    assert "not UTF-8" in loaded.rejected[0]["reason"]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".json.gz", ".csv.gz"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    records = [GOOD, {"instruction": 'Say "hi",\nplease', "input": "", "output": "hi"}]
    plain = tmp_path / f"a{suffix.removesuffix('.gz')}"
    if ".jsonl" in suffix:
        lines(plain, *records)
    elif ".json" in suffix:
        plain.write_text(json.dumps(records, indent=2))
    elif ".parquet" in suffix:
        pq.write_table(pa.Table.from_pylist(records), plain)
    else:
        import csv

        with plain.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(GOOD), delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(records)
    if suffix.endswith(".gz"):
        (tmp_path / f"a{suffix}").write_bytes(gzip.compress(plain.read_bytes()))
    loaded = load(tmp_path / f"a{suffix}")
    assert asked(loaded) == {"Add.\n\n1 2", 'Say "hi",\nplease'}
    assert not loaded.rejected


def test_lines_of_a_json_list_and_of_csv_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([GOOD, {"nothing": 1}, GOOD, 7], indent=1))
    expected = [i for i, text in enumerate(path.read_text().splitlines(), 1) if text in (" {", " 7")]
    assert [r["line"] for r in load(path).rejected] == [expected[1], expected[3]]
    table = tmp_path / "a.csv"
    table.write_text('instruction,output\n"two\nlines",x\nshort\ny,z\n')
    loaded = load(table)
    assert (loaded.table.num_rows, [r["line"] for r in loaded.rejected]) == (2, [4])


def test_a_json_file_with_lines_or_with_one_list_in_it(tmp_path: Path) -> None:
    assert load(lines(tmp_path / "a.json", GOOD, GOOD)).table.num_rows == 2
    path = tmp_path / "b.json"
    path.write_text(json.dumps({"version": 1, "data": [GOOD, GOOD, GOOD]}))
    assert load(path).table.num_rows == 3
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}))
    assert load(path).table.num_rows == 1


def test_a_file_that_cannot_be_read_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[\n{"instruction": "q", "output": "a"},\n{"instruction" "q"}]')
    with pytest.raises(DataError, match=r"a\.json:3: malformed JSON"):
        load(path)
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path / "b.jsonl")
    (tmp_path / "c.parquet").write_text("no")
    with pytest.raises(DataError, match="not readable as Parquet"):
        load(tmp_path / "c.parquet")
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b"x" * 999)[:-9])
    with pytest.raises(DataError, match="gzip stream is damaged"):
        load(tmp_path / "d.jsonl.gz")
    (tmp_path / "e.txt").write_text("x")
    with pytest.raises(DataError, match="no format that is known"):
        load(tmp_path / "e.txt")


def test_a_misspelt_file_is_answered_with_the_near_one(tmp_path: Path) -> None:
    lines(tmp_path / "math_pool.jsonl", GOOD)
    with pytest.raises(DataError, match=r'did you mean "math_pool.jsonl"'):
        load(tmp_path / "math_pol.jsonl")


def test_an_empty_pool_and_one_of_bad_rows_only(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no row in it"):
        load(lines(tmp_path / "a.jsonl"))
    with pytest.raises(DataError, match=r"b.jsonl:1: none of its 2 rows can be used; the first: malformed"):
        load(lines(tmp_path / "b.jsonl", "x", "y"))


def test_folders_and_globs(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    lines(tmp_path / "in" / "a.jsonl", {"question": "1", "answer": "x"})
    lines(tmp_path / "in" / "b.jsonl", {"question": "2", "answer": "x"})
    lines(tmp_path / "in" / "_DONE.json", {"question": "3", "answer": "x"})
    assert asked(load(tmp_path / "in")) == {"1", "2"}
    assert asked(load(tmp_path / "in" / "a*.jsonl")) == {"1"}
    with pytest.raises(DataError, match="no file fits"):
        load(tmp_path / "in" / "z*.jsonl")


def test_a_table_of_ours_comes_back_as_it_went(tmp_path: Path) -> None:
    row = {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0.5}],
        "references": ["a", "b"],
        "tests": ["assert True"],
        "weight": 0.25,
        "meta": {"k": 1},
    }
    table = rows.make_table("t", [row])
    rows.write(table, tmp_path / "t")
    again = load(tmp_path / "t").table
    same = [c for c in table.column_names if c != "meta"]
    assert again.select(same).equals(table.select(same))
    assert json.loads(again["meta"][0].as_py())["k"] == 1


def test_columns_shape_and_calculator_marks(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"problem": "48/2?", "solution": "48/2 = <<48/2=24>>24\n#### 24"}, {"x": "y"})
    loaded = load(path, columns={"question": "problem", "answer": "solution"}, strip_calc=True)
    assert loaded.table["messages"][0].as_py()[1]["content"] == "48/2 = 24\n#### 24"
    assert "problem: there is no such column" in loaded.rejected[0]["reason"]
    with pytest.raises(ValueError, match='did you mean "sharegpt"'):
        Source(path="x.jsonl", shape="shargpt")


def test_limits_nest_and_do_not_follow_the_order_of_the_file(tmp_path: Path) -> None:
    records = [{"question": str(i), "answer": "x"} for i in range(100)]
    a, b = lines(tmp_path / "a.jsonl", *records), lines(tmp_path / "b.jsonl", *reversed(records))
    few, more = asked(load(a, limit="10 rows")), asked(load(b, limit="1/5"))
    assert len(few) == 10
    assert len(more) == 20
    assert few < more
    assert asked(open_source("t", Source(path=str(a), limit="10 rows"), seed=1)) != few
    with pytest.raises(DataError, match="limit 500 rows of 100 rows"):
        load(a, limit="500 rows")
    with pytest.raises(ValueError, match="neither rows nor a fraction"):
        Source(path="x", limit="2x")


def test_originals_carry_the_ids_of_the_rows(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", GOOD, "broken", GOOD, {"question": "q", "answer": "a"})
    found = dict(originals("t", Source(path=str(path))))
    assert set(found) == set(load(path).table["id"].to_pylist())
    assert list(found.values()) == [GOOD, GOOD, {"question": "q", "answer": "a"}]


def test_the_digest_follows_content_and_reading_not_name_or_time(tmp_path: Path) -> None:
    a = lines(tmp_path / "a.jsonl", GOOD)
    first = digest(Source(path=str(a)))
    assert digest(Source(path=str(lines(tmp_path / "b.jsonl", GOOD)))) == first
    os.utime(a, (1, 1))
    assert digest(Source(path=str(a))) == first
    assert digest(Source(path=str(a), strip_calc=True)) != first
    assert load(a).digest == first
    lines(a, GOOD, GOOD)
    assert digest(Source(path=str(a))) != first


def test_a_digest_is_remembered_by_path_size_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = lines(tmp_path / "a.jsonl", GOOD), tmp_path / "cache"
    os.utime(path, (1, 1))
    first = digest(Source(path=str(path)), cache)

    def refuse(*_: object) -> None:
        raise AssertionError("the file was read again")

    with monkeypatch.context() as patch:
        patch.setattr("hashlib.file_digest", refuse)
        assert digest(Source(path=str(path)), cache) == first
        os.utime(path, (2, 2))
        with pytest.raises(AssertionError):
            digest(Source(path=str(path)), cache)
    for entry in cache.iterdir():
        entry.write_text("damaged")
    assert digest(Source(path=str(path)), cache) == first


def test_a_file_that_changed_just_now_is_not_remembered(tmp_path: Path) -> None:
    path, cache = lines(tmp_path / "a.jsonl", {"question": "1", "answer": "x"}), tmp_path / "cache"
    stat = path.stat()
    first = digest(Source(path=str(path)), cache)
    lines(path, {"question": "2", "answer": "x"})  # same size
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert digest(Source(path=str(path)), cache) != first


def test_the_catalogue_knows_how_to_get_what_it_cannot_load() -> None:
    for name, known in sources.catalogue().items():
        assert bool(known.hub) != bool(known.get), name
        if known.shape:
            Source(path=name, shape=known.shape)
    with pytest.raises(MissingError, match="OFA-Sys/gsm8k-ScRel"):
        digest(Source(path="gsm8k_rft_u33b"))
    with pytest.raises(DataError, match='did you mean "code_alpaca"'):
        digest(Source(path="code_alpacca"))


def test_names_resolve_to_doors() -> None:
    def hub(path: str, **options: Any) -> tuple[str, str, str]:
        kind, target = sources.resolve(Source(path=path, **options))
        assert kind == "hub"
        return target.repository, target.config, target.split

    assert hub("gsm8k") == ("openai/gsm8k", "main", "train")
    assert hub("gsm8k/test") == ("openai/gsm8k", "main", "test")
    assert hub("hub:a/b") == ("a/b", "", "train")
    assert hub("hub:a/b/c:validation") == ("a/b", "c", "validation")
    assert hub("hub:a/b", split="test") == ("a/b", "", "test")
    assert sources.resolve(Source(path="im/lima"))[1].shape == "sharegpt"
    with pytest.raises(UserError, match="no hub address"):
        sources.resolve(Source(path="hub:only"))
    with pytest.raises(UserError, match="has no size to set"):
        sources.resolve(Source(path="a.jsonl", size=5))


def test_the_hub_out_of_reach_says_what_to_do() -> None:
    with pytest.raises(MissingError, match="hf download --repo-type dataset openai/gsm8k"):
        load("gsm8k")


def test_a_name_that_no_server_resolves_is_a_missing_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without HF_HUB_OFFLINE the client tries, and its HTTP library raises errors of its own."""
    import huggingface_hub

    from services import models

    (http, *_) = models.hub_errors()
    errors = [kind for kind in http.__subclasses__() for kind in (kind, *kind.__subclasses__())]
    refused = next(kind for kind in errors if kind.__name__ == "TransportError")

    def down(self: object, *_: object, **__: object) -> None:
        raise refused("Name or service not known")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", down)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", down)
    with pytest.raises(MissingError, match="out of reach"):
        digest(Source(path="gsm8k"))
    with pytest.raises(MissingError, match="cannot be reached"):
        models.digest(models.ModelSpec(id="hub:org/nowhere"))


def test_a_hub_data_set_is_read_at_the_commit_of_its_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    calls: list[dict[str, Any]] = []
    sha = ["a" * 40]

    class Info:
        sha = ""

    def info(self: object, repository: str, *, revision: str | None, timeout: float) -> Info:
        found = Info()
        found.sha = sha[0]
        return found

    def fake(path: str, config: str | None, **options: Any) -> datasets.Dataset:
        calls.append({"path": path, "config": config, **options})
        return datasets.Dataset.from_list([{"question": "q <<x>>", "answer": "1+1 = <<1+1=2>>2\n#### 2"}])

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(datasets, "load_dataset", fake)
    loaded = load("gsm8k/test", strip_calc=True)
    assert calls == [
        {"path": "openai/gsm8k", "config": "main", "data_files": None, "split": "test", "revision": "a" * 40}
    ]
    assert loaded.table["messages"][0].as_py()[1]["content"] == "1+1 = 2\n#### 2"
    sha[0] = "b" * 40
    assert digest(Source(path="gsm8k/test", strip_calc=True)) != loaded.digest


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    import boto3
    from moto.server import ThreadedMotoServer

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "x")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket="pool")
        yield client
    server.stop()


def test_an_object_store_reads_like_a_folder(s3: Any, tmp_path: Path) -> None:
    body = json.dumps(GOOD).encode() + b"\nbroken\n"
    s3.put_object(Bucket="pool", Key="in/a.jsonl.gz", Body=gzip.compress(body))
    pq.write_table(pa.Table.from_pylist([{"question": "p", "answer": "x"}]), tmp_path / "b.parquet")
    s3.upload_file(str(tmp_path / "b.parquet"), "pool", "in/b.parquet")
    s3.put_object(Bucket="pool", Key="in/notes.txt", Body=b"x")
    loaded = load("s3://pool/in/")
    assert asked(loaded) == {"Add.\n\n1 2", "p"}
    assert (loaded.rejected[0]["file"], loaded.rejected[0]["line"]) == ("s3://pool/in/a.jsonl.gz", 2)
    assert asked(load("s3://pool/in/*.parquet")) == {"p"}
    before = digest(Source(path="s3://pool/in"))
    s3.put_object(Bucket="pool", Key="in/a.jsonl.gz", Body=gzip.compress(body + body))
    assert digest(Source(path="s3://pool/in")) != before
    with pytest.raises(DataError, match="no object of that name"):
        load("s3://pool/out/")
