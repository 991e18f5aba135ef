"""The schema for editors agrees with what reads the recipe; the starter is a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from services import yaml_lines
from services.arms import expand
from services.recipe import load, loads
from services.schema import json_schema, starter

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))
WHOLE = [file for file in RECIPES if "profiles" not in file.parts]


@pytest.fixture(scope="module")
def schema() -> Any:
    found = json_schema()
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


def test_the_starter_is_a_recipe(schema: Any) -> None:
    (arm,) = expand(loads(starter()))
    assert list(arm.document.stages) == ["special", "general"]
    schema.validate(yaml_lines.parse(starter()).tree)


def test_what_the_starter_offers_works() -> None:
    """Its commented lines are recipe text too."""
    text = starter()
    text = text[: text.index("# arms:")] + text[text.index("# arms:") :].replace("\n# ", "\n").removeprefix("# ")
    text = text.replace("      # - respond", "      - respond").replace("    # objective", "    objective")
    assert len(expand(loads(text))) == 4 * 3


@pytest.mark.parametrize("file", WHOLE, ids=lambda file: "/".join(file.parts[-2:]))
def test_every_recipe_passes_the_schema(file: Path, schema: Any) -> None:
    assert load(file).version == 1
    schema.validate(yaml_lines.read(file).tree)


@pytest.mark.parametrize(
    "text",
    [
        "stagse: {}",
        "data: {a: {form: x}}",
        "data: {a: {from: x, do: [{smaple: all}]}}",
        "data: {a: {from: x, do: [{select: {methd: kmq}}]}}",
        "train: {lr: fast}",
        "stages: {s: {mix: {a: all}, schedule: again}}",
        "arms: {gird: {}}",
    ],
)
def test_faults_are_found_by_the_schema(text: str, schema: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        schema.validate(yaml_lines.parse(text).tree)
