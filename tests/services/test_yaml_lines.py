"""YAML by the core schema of 1.2, with the line of every key."""

from __future__ import annotations

from pathlib import Path

import pytest

from cuvee.errors import RecipeError
from services import yaml_lines
from services.yaml_lines import parse, scalar


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-5", 2e-5),
        ("1_000", 1000),
        ("-3", -3),
        (".5", 0.5),
        ("true", True),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("1/256", "1/256"),
        ("2024-05-01", "2024-05-01"),
        ("none", "none"),
        ("~", None),
        ('"2e-5"', "2e-5"),
        ("hub:org/name", "hub:org/name"),
        ("[1, a]", [1, "a"]),
        ("{a: 1}", {"a": 1}),
    ],
)
def test_values(text: str, value: object) -> None:
    assert parse(f"x: {text}").tree["x"] == value
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


def test_places() -> None:
    document = parse("a: 1\nb:\n  c: [x, y]\n  d:\n    e: 2\n", "f.yaml")
    assert document.place(("b", "d", "e")) == ("f.yaml", 5)
    assert document.place(("b", "c", 1)) == ("f.yaml", 3)
    assert document.place(("b", "d", "nothing", "there")) == ("f.yaml", 4)
    assert str(document.error("is wrong", ("b", "d", "e"), remedy="mend it")) == "f.yaml:5: b.d.e: is wrong (mend it)"


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("a: 1\nb: 2\na: 3", 3, '"a" is written twice, first on line 1'),
        ("- a", 1, "not a map"),
        ("a: [1\nb: 2", 2, "not YAML"),
        ("a: 1\n---\nb: 2", 3, "more than one document"),
        ("? [a]\n: 1", 1, "a key must be a word"),
        ("a: &x\n  b: *x", 1, "nested deeper"),
    ],
)
def test_faults(text: str, line: int, what: str) -> None:
    with pytest.raises(RecipeError, match=what) as caught:
        parse(text, "f.yaml")
    assert caught.value.line >= line


def test_files(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file"):
        yaml_lines.read(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot be read"):
        yaml_lines.read(tmp_path / "bad.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert yaml_lines.read(tmp_path / "empty.yaml").tree == {}
