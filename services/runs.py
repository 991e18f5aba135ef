"""Finding stored runs, and arms of them, by what people type."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.errors import UserError, nearest
from services.store import Store

if TYPE_CHECKING:
    from services.arms import Arm


def find_run(store: Store, word: str) -> str:
    """The name of a stored run: by name, by its beginning, or by recipe file. UserError when none or many match."""
    names = store.runs()
    if word in names:
        return word
    if Path(word).suffix in (".yaml", ".yml") and Path(word).exists():
        from services.recipe import load
        from services.run import run_name

        name = run_name(load(word))
        if name in names:
            return name
    found = [name for name in names if name.startswith(word)]
    if len(found) != 1:
        known = ", ".join(sorted(names)) or "none"
        raise UserError(f"{len(found)} runs match {word!r}", remedy=f"runs of this store: {known}")
    return found[0]


def variant(arm: dict[str, Any]) -> str:
    """The name of an arm without its seed, as `services.arms` adds it where there are several."""
    return str(arm["name"]).removesuffix(f",seed={arm['seed']}")


def find_arms(manifest: dict[str, Any], word: str) -> list[dict[str, Any]]:
    """The arm of that name, or all seeds of the variant of that name."""
    arms = manifest["arms"]
    found = [arm for arm in arms if arm["name"] == word] or [arm for arm in arms if variant(arm) == word]
    if not found:
        known = {arm["name"] for arm in arms} | {variant(arm) for arm in arms}
        raise UserError(f"{manifest['name']} has no arm {word!r}", remedy=nearest(word, known))
    return found


def arms_of(manifest: Mapping[str, Any]) -> list[Arm]:
    """The arms that a stored run reports, made again from its recipe and from what it chose."""
    from services.arms import expand, finals, tuned
    from services.recipe import loads

    recipe = loads(json.dumps(manifest["recipe"]))
    if search := manifest.get("search"):
        return finals(recipe, {a["number"]: a["values"] for a in search["arms"] if a["name"] in search["finalists"]})
    if nuisance := (manifest.get("results") or {}).get("nuisance"):
        return tuned(recipe, {name: found["chosen"] for name, found in nuisance["arms"].items()})
    return expand(recipe)
