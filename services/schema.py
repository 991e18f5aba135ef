"""A JSON Schema of the recipe, for editors, and the starter recipe.

The schema is made from the Configs that read the recipe, so it cannot fall behind them. It is a little wider than they
are: a variable (`$k`) may stand wherever a value may, and the short forms (`dedup`, `objective: im`) are let through
without a look inside. `cuvee plan` has the last word.

An editor takes it from the first line of a recipe: `# yaml-language-server: $schema=recipe.schema.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic.json_schema import models_json_schema

from cuvee.config import Config
from services.recipe import Recipe
from services.tables import OPERATIONS, piece

_VARIABLE = {"type": "string", "pattern": r"\$"}

_SHORT = {
    "Table": ["string", "array"],
    "Strategy": ["string"],
    "Objective": ["string"],
    "Judged": ["null"],
    "Decoding": ["string"],
    "Budget": ["integer"],
    "Asha": ["object"],
}
"""Definitions that also have a form that is no map."""


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a recipe."""
    configs = {name: piece(place) for name, place in OPERATIONS.items()}
    kinds: list[type[Config]] = list(dict.fromkeys([Recipe, *configs.values()]))
    refs, whole = models_json_schema([(kind, "validation") for kind in kinds], by_alias=True)
    definitions: dict[str, Any] = whole["$defs"]
    of = {name: refs[config, "validation"] for name, config in configs.items()}
    recipe = refs[Recipe, "validation"]["$ref"].rsplit("/", 1)[-1]
    definitions["Table"]["properties"]["do"]["items"] = _operations(of)
    definitions["When"] = {"type": "object", "required": ["then"]}
    definitions["JudgeConfig"] = {"type": ["string", "object", "array"]}
    definitions["ScoreConfig"] = {"type": "object", "additionalProperties": {"type": ["string", "object"]}}
    properties = definitions[recipe]["properties"]
    properties["stages"] = {"anyOf": [properties["stages"], {"const": "none"}]}
    evaluate = definitions["Evaluate"]["properties"]
    for name, written in evaluate.items():
        if written.get("type") == "array":
            evaluate[name] = {"anyOf": [written, {"type": "string"}]}
    evaluate["judged"] = {"anyOf": [evaluate["judged"], {"type": ["array", "string"]}]}
    search = definitions["Search"]["properties"]
    for name in ("metric", "mode", "scheduler"):
        search[name] = {"anyOf": [search[name], {"type": "string"}]}
    arms = definitions["Arms"]["properties"]
    arms["when"] = {"anyOf": [arms["when"], {"type": "object"}]}
    for name, forms in _SHORT.items():
        definitions[name] = {"anyOf": [definitions[name], {"type": forms}]}
    for name, definition in definitions.items():
        if name != recipe:
            _widen(definition)
    for name in properties:
        _widen(properties[name])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Cuvee recipe",
        **definitions.pop(recipe),
        "$defs": definitions,
    }


def starter() -> str:
    """A commented recipe to begin with."""
    return Path(__file__).with_name("starter.yaml").read_text(encoding="utf-8")


def _operations(of: dict[str, Any]) -> dict[str, Any]:
    """The schema of an entry of `do`: the word, or the word with its settings, in full or short."""
    full = [
        {
            "type": "object",
            "properties": {name: {"anyOf": [ref, {"type": ["string", "array", "null"]}]}, "as": {"type": "string"}},
            "required": [name],
            "additionalProperties": False,
        }
        for name, ref in of.items()
    ]
    return {"anyOf": [{"enum": sorted(of)}, *full]}


def _widen(schema: Any) -> None:
    """Let a variable stand for every value inside `schema`, in place."""
    if not isinstance(schema, dict):
        return
    for word in ("anyOf", "allOf", "oneOf", "prefixItems"):
        for child in schema.get(word, ()):
            _widen(child)
    for word in ("items", "additionalProperties"):
        if isinstance(schema.get(word), dict):
            schema[word] = _or_variable(schema[word])
    for name, child in schema.get("properties", {}).items():
        schema["properties"][name] = _or_variable(child)


def _or_variable(schema: dict[str, Any]) -> dict[str, Any]:
    _widen(schema)
    said: dict[str, Any] = {key: schema.pop(key) for key in ("description", "title", "default") if key in schema}
    return {"anyOf": [schema, _VARIABLE]} | said
