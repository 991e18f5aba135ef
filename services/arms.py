"""From one recipe to its arms: every run of the sweep, with its seeds.

An arm is the recipe with some keys set: the values of its cell of the grid, then the consequences of `when` in the
order written (each sees what the ones before it set), or the changes of an entry of `add` or `ablate`. Variables are
put in last, so that what an arm sets may use them. Each arm is checked like a recipe of its own, and an arm that
cannot work is refused before anything runs, by its name.

Seeds are kept apart by what they move (`services.variants.STREAMS`). Under `repeat`, every arm is run with the same
list of seeds; the streams in `vary` follow the seed and all others stay with the recipe's, so that arms differ by what
they set and not by luck, and steps that no varied stream touches are shared between the seeds.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cuvee.errors import RecipeError, nearest
from services import overlay
from services.recipe import Recipe, parse
from services.variables import resolve
from services.variants import STREAMS, Arms, Contrast, Repeat
from services.yaml_lines import Document, Path_

_PLURAL = ("let", "arms", "repeat", "contrasts", "published")
"""Parts of a recipe that an arm does not have."""


@dataclass(frozen=True)
class Arm:
    """One run. `variant` names what it sets, `name` adds the seed where there are several.

    `settings` has the keys that the arm sets, as written, with their values as text; `arm` is the name of an entry of
    `add` or `ablate`. `seeds` has the seed of every stream; `varies` the streams that follow `seed`.
    """

    name: str
    variant: str
    settings: dict[str, str]
    seed: int
    varies: tuple[str, ...]
    seeds: dict[str, int]
    document: Recipe
    half: str = ""
    """The half of held-out rows on which it is measured; empty for all of them."""


def expand(recipe: Recipe) -> list[Arm]:
    """All arms, in the order written, the seeds of one together. Raises RecipeError naming the arm that cannot work.

    The arms of a search are known only while it runs: even points of its space stand in for them. Where nuisance
    settings are tuned, the candidates come first, and the first of each arm stands in for the one that will be chosen.
    """
    if recipe.arms.nuisance:
        tried = candidates(recipe)
        arms = [arm for found in tried.values() for _, arm in found]
        arms += tuned(recipe, {name: found[0][0] for name, found in tried.items()})
    else:
        arms = [arm for v in _variants(recipe) for arm in seeded(recipe, v.name, v.settings, v.document(recipe))]
    if recipe.arms.search:
        arms += stand_ins(recipe)
    _check_names(recipe, arms)
    _check_used(recipe, arms)
    for i, contrast in enumerate(recipe.contrasts):
        pairs(contrast, arms, recipe, ("contrasts", i))
    return arms


def stand_ins(recipe: Recipe) -> list[Arm]:
    """As many arms as a search may try, at the points with which it begins. One that cannot work is refused, since the
    others of its kind will not work either."""
    from services.space import Space

    search = recipe.arms.search
    assert search is not None
    space = Space(search.space)
    points = space.design(search.budget.arms, recipe.seed)
    return [proposed(recipe, number, space.values(point)) for number, point in enumerate(points, 1)]


def candidates(recipe: Recipe) -> dict[str, list[tuple[dict[str, Any], Arm]]]:
    """For each arm as it is written: (nuisance settings, the arm with them), the same settings for all arms.

    They run under the first seed and are measured on validation rows.
    """
    from services.space import Space

    nuisance = recipe.arms.nuisance
    assert nuisance is not None
    space = Space(nuisance.space)
    tried = [space.values(point) for point in space.design(nuisance.arms, recipe.seed)]
    found: dict[str, list[tuple[dict[str, Any], Arm]]] = {}
    for v in _variants(recipe):
        for number, values in enumerate(tried, 1):
            settings = v.settings | {key: label(value) for key, value in values.items()}
            name = f"{v.name}~{number}"
            arm = next(seeded(recipe, name, settings, v.document(recipe, values)))
            found.setdefault(v.name, []).append((values, replace(arm, name=name, half="validation")))
    return found


def tuned(recipe: Recipe, choice: Mapping[str, Mapping[str, Any]]) -> list[Arm]:
    """The arms under every seed, each with the nuisance settings that were chosen for it (by its name)."""
    return [
        arm
        for v in _variants(recipe)
        if v.name in choice
        for arm in seeded(recipe, v.name, v.settings, v.document(recipe, choice[v.name]))
    ]


def finals(recipe: Recipe, proposals: Mapping[int, Mapping[str, Any]]) -> list[Arm]:
    """What a search ends with: the arms that are written out, and its finalists, under every seed, on test rows."""
    arms = [arm for v in _variants(recipe) for arm in seeded(recipe, v.name, v.settings, v.document(recipe))]
    for number, values in proposals.items():
        arm = proposed(recipe, number, values)
        arms += seeded(recipe, arm.name, arm.settings, arm.document)
    return arms


def proposed(recipe: Recipe, number: int, values: Mapping[str, Any]) -> Arm:
    """The arm of a search with these settings, under the first seed, measured on validation rows."""
    name = arm_name(number)
    document = _arm(recipe, name, values, ("arms", "search", "space"))
    first = next(seeded(recipe, name, {key: label(value) for key, value in values.items()}, document))
    return replace(first, name=name, half="validation")


def arm_name(number: int) -> str:
    """What the n-th arm of a search is called."""
    return f"arm-{number:03}"


def match(side: Mapping[str, Any], arms: Sequence[Arm]) -> list[Arm]:
    """The arms that a side of a contrast names: those that set all its keys to its values.

    A key may be shortened to its last part (`model` for `train.model`).
    """
    return [arm for arm in arms if all(_setting(arm, key) == label(value) for key, value in side.items())]


def pairs(
    contrast: Contrast, arms: Sequence[Arm], recipe: Recipe | None = None, at: Path_ = ()
) -> list[tuple[Arm, Arm]]:
    """(arm of a, arm of b) of the same seed, alike in every setting that both have, but for those that are compared:
    the keys that both sides name, and what an arm sets that is called by its name.

    Raises RecipeError when a side matches no arm, or an arm of a has no partner or several.
    """
    left, right = match(contrast.a, arms), match(contrast.b, arms)
    free = {_full(key, left) for key in contrast.a} & {_full(key, right) for key in contrast.b}
    for side, found in ((contrast.a, left), (contrast.b, right)):
        if "arm" in side:  # the name of an arm stands for all that it sets
            free |= {key for arm in found for key in arm.settings}

    def wrong(message: str, remedy: str = "") -> RecipeError:
        return recipe.error(message, at, remedy=remedy) if recipe else RecipeError(message, remedy=remedy)

    names = sorted({arm.variant for arm in arms})
    for word, side, found in (("a", contrast.a, left), ("b", contrast.b, right)):
        if not found:
            raise wrong(f"{word}: {label(side)} matches no arm", f"arms: {'; '.join(names)}")
    found_pairs = []
    for a in left:
        alike = [
            b
            for b in right
            if a.seed == b.seed and all(a.settings[k] == b.settings[k] for k in {*a.settings} & {*b.settings} - free)
        ]
        if len(alike) != 1:
            partners = ", ".join(b.name for b in alike) or "none"
            raise wrong(f"{a.name} has {len(alike)} partners to be compared with ({partners})", "name more keys in b")
        found_pairs.append((a, alike[0]))
    return found_pairs


def label(value: Any) -> str:
    """A value as text: words and numbers as written, the rest as JSON."""
    if value is None:
        return "none"
    if isinstance(value, bool | dict | list):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return str(value)


@dataclass(frozen=True)
class _Variant:
    """What an arm that is written out sets, before its seeds."""

    name: str
    settings: dict[str, str]
    changes: dict[str, Any]
    at: Path_

    def document(self, recipe: Recipe, tuned: Mapping[str, Any] | None = None) -> Recipe:
        """The resolved recipe of the arm."""
        return _arm(recipe, self.name, self.changes, self.at, tuned)


def _variants(recipe: Recipe) -> Iterator[_Variant]:
    arms = recipe.arms
    names = _short_names(list(arms.grid))
    if arms.grid:
        axes = [[(key, *choice) for choice in _choices(values)] for key, values in arms.grid.items()]
        for cell in itertools.product(*axes):
            settings = {key: text for key, text, _ in cell}
            name = ",".join(f"{names[key]}={text}" for key, text in settings.items())
            yield _Variant(name, settings, {key: value for key, _, value in cell}, ("arms", "grid"))
    for word, named in (("add", arms.add), ("ablate", {"full": {}, **arms.ablate} if arms.ablate else {})):
        for name, changes in named.items():
            settings = {"arm": name} | {key: label(value) for key, value in changes.items()}
            yield _Variant(name, settings, dict(changes), ("arms", word, name))
    if not (arms.grid or arms.add or arms.ablate or arms.search):
        yield _Variant("main", {}, {}, ())


def _arm(
    recipe: Recipe, name: str, changes: Mapping[str, Any], at: Path_, tuned: Mapping[str, Any] | None = None
) -> Recipe:
    """The changes, then what follows from them, then what was `tuned` for the arm."""
    document = recipe.source
    for key, value in changes.items():
        document = _set(document, key, value, recipe.source, (*at, key))
    for i, rule in enumerate(recipe.arms.when):
        if all(_holds(document, key, wanted) for key, wanted in rule.of.items()):
            for key, value in rule.then.items():
                document = _set(document, key, value, recipe.source, ("arms", "when", i, "then", key))
    for key, value in (tuned or {}).items():
        document = _set(document, key, value, recipe.source, ("arms", "nuisance", "space", key))
    try:
        return _alone(parse(document))
    except RecipeError as error:
        if name == "main":
            raise
        # The fault may be of this arm alone, and its place in the file is that of the recipe all the same.
        raise type(error)(f"{error.message}, in the arm {name}", remedy=error.remedy) from None


def _alone(recipe: Recipe) -> Recipe:
    """The recipe without what makes it several; its document has the variables put in."""
    alone = recipe.model_copy(update={"let": {}, "arms": Arms(), "repeat": None, "contrasts": (), "published": None})
    resolved = resolve(recipe.source)
    tree = {key: value for key, value in resolved.tree.items() if key not in _PLURAL}
    alone._source = Document(tree, resolved.places)
    return alone


def _set(document: Document, key: str, value: Any, written: Document, at: Path_) -> Document:
    """The document with a variable or a dotted key set. A new first word is a misspelt one."""
    place = written.place(at)
    variables = document.tree.get("let") or {}
    if key in variables:
        return overlay.assign(document, f"let.{key}", "none" if value is None else value, place=place)
    first = key.split(".")[0]
    if first not in Recipe.model_fields or first in _PLURAL:
        known = [*variables, *(f for f in Recipe.model_fields if f not in _PLURAL)]
        raise RecipeError(
            f'"{key}" is no variable and no key of a recipe', path=place[0], line=place[1], remedy=nearest(key, known)
        )
    return overlay.assign(document, key, value, place=place)


def _holds(document: Document, key: str, wanted: Any) -> bool:
    options = wanted if isinstance(wanted, list) else [wanted]
    variables = document.tree.get("let") or {}
    values = [variables[key]] if key in variables else overlay.lookup(document.tree, key)
    if not values and "." not in key and key not in Recipe.model_fields:
        raise document.error(
            f'`when` asks for "{key}", which is no variable', ("arms", "when"), remedy=nearest(key, variables)
        )
    return any(label(value) == label(option) for value in values for option in options)


def _choices(values: list[Any] | dict[str, Any]) -> list[tuple[str, Any]]:
    """(text, value) of an axis."""
    return list(values.items()) if isinstance(values, dict) else [(label(value), value) for value in values]


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each key, where that is enough to tell them apart."""
    last = [key.rsplit(".", 1)[-1] for key in keys]
    return {key: short if last.count(short) == 1 else key for key, short in zip(keys, last, strict=True)}


def seeded(recipe: Recipe, variant: str, settings: dict[str, str], document: Recipe) -> Iterator[Arm]:
    """The arm under each seed; the held-out rows of recipes that choose by them are those of the test half."""
    repeat, half = recipe.repeat, "test" if recipe.arms.halved else ""
    if repeat and repeat.apart:
        yield from _apart(repeat, variant, settings, document, half)
        return
    for seed in repeat.seeds if repeat else (recipe.seed,):
        varies = repeat.vary if repeat else ()
        seeds: dict[str, int] = {stream: seed if stream in varies else recipe.seed for stream in STREAMS}
        name = f"{variant},seed={seed}" if repeat and len(repeat.seeds) > 1 else variant
        yield Arm(name, variant, settings, seed, tuple(varies), seeds, document, half)


def _apart(repeat: Repeat, variant: str, settings: dict[str, str], document: Recipe, half: str) -> Iterator[Arm]:
    """The run with the first seed in all streams, and for each stream one with every other seed in it alone."""
    first: dict[str, int] = dict.fromkeys(STREAMS, repeat.seeds[0])
    yield Arm(f"{variant},seed={repeat.seeds[0]}", variant, settings, repeat.seeds[0], (), first, document, half)
    for stream in repeat.vary:
        for seed in repeat.seeds[1:]:
            name = f"{variant},{stream}={seed}"
            yield Arm(name, variant, settings, seed, (stream,), {**first, stream: seed}, document, half)


def _check_names(recipe: Recipe, arms: Sequence[Arm]) -> None:
    names = [arm.name for arm in arms]
    for name in names:
        if names.count(name) > 1:
            raise recipe.error(f"two arms are named {name}", ("arms",), remedy="write each value once")


def _check_used(recipe: Recipe, arms: Sequence[Arm]) -> None:
    """Every table must serve some arm: one that does not is a forgotten or misspelt mix."""
    used: set[str] = set()
    for arm in arms:
        document = arm.document
        named = [table for stage in document.stages.values() for table in stage.mix]
        named += [*document.evaluate.tables, *(point.name for point in document.points() if point.kind == "round")]
        used |= {t for name in named for t in document.lineage(name.partition("@")[0])}
    for table in recipe.data:
        if table not in used and recipe.stages:
            raise recipe.error(
                f"{table} is used nowhere", ("data", table), remedy="put it into a mix or a measurement, or delete it"
            )


def _setting(arm: Arm, key: str) -> str | None:
    full = _full(key, [arm])
    return arm.settings.get(full)


def _full(key: str, arms: Sequence[Arm]) -> str:
    """The key as the arms write it."""
    known = list(dict.fromkeys(k for arm in arms for k in arm.settings))
    if key in known:
        return key
    ending = [k for k in known if k.endswith(f".{key}")]
    return ending[0] if len(ending) == 1 else key
