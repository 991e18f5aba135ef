"""Files appear whole or not at all, and nothing of the user's is overwritten by a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cuvee.errors import UserError
from services.single_files import beside, check_out, copy_model, folder_names, write_records


def test_a_failure_while_writing_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    write_records(path, [{"a": 1}])

    def broken() -> Iterator[dict[str, Any]]:
        yield {"a": 2}
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        write_records(path, broken())
    assert path.read_text() == '{"a": 1}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_place_that_cannot_be_written_is_the_users_to_change(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_records(tmp_path / "file" / "out.jsonl", [])


def test_names_beside() -> None:
    assert beside(Path("d/c.jsonl"), "selection.parquet") == Path("d/c.selection.parquet")
    assert beside(Path("c.jsonl.gz"), "rejected.jsonl") == Path("c.rejected.jsonl")


@pytest.mark.parametrize("name", ["out", "out.txt", "out.gz"])
def test_a_name_without_a_format_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="format"):
        check_out(tmp_path / name)


def test_arms_get_folders_of_their_own() -> None:
    found = folder_names(["k=1/4", "k=1-4", "k=none,seed=0", ".."])
    assert found == {"k=1/4": "k=1-4", "k=1-4": "k=1-4~1", "k=none,seed=0": "k=none,seed=0", "..": "arm"}


def test_a_model_replaces_a_model_and_nothing_else(tmp_path: Path) -> None:
    source, target, other = tmp_path / "source", tmp_path / "models" / "one", tmp_path / "other"
    source.mkdir()
    (source / "config.json").write_text("{}")
    copy_model(source, target)
    (target / "old.bin").write_text("old")
    copy_model(source, target)
    assert [p.name for p in target.iterdir()] == ["config.json"]
    other.mkdir()
    (other / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="is no model"):
        copy_model(source, other)
    assert (other / "thesis.tex").exists()
