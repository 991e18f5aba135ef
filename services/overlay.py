"""Changing a recipe from outside: profiles, `--set`, and the keys of arms.

One rule for all: maps merge, lists replace, `~` deletes; recipe < profile < `--set`. Three signs make one profile fit
many recipes: the key `*` stands for every entry that is there, a key that ends with `?` counts only where the recipe
has it, and a key with dots is a path. An operation of a table's `do` is reached by its name, as in
`data.math.respond.policy`, or by the name that `as` gives it, never by its position.

A profile is `profiles/NAME.yaml` beside the recipe or in a folder above it (the nearest wins), or a path. It may build
on another (`extends: ../profiles/cpu.yaml`). It may replace arm values and never touches contrasts: what is compared
is declared once, whatever the scale.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuvee.errors import RecipeError, UserError, nearest
from services import yaml_lines
from services.yaml_lines import Document, Path_

TABLE_KEYS = ("from", "do")
"""What a table itself has; any other part of a path below it is one of its operations."""


def apply_profile(document: Document, name: str, recipe: Path | None) -> Document:
    """The document with the profile laid over it. Raises RecipeError when there is no such profile."""
    for overlay in _chain(find_profile(name, recipe)):
        if "contrasts" in overlay.tree:
            raise overlay.error(
                "a profile cannot change contrasts", ("contrasts",), remedy="declare them in the recipe, once"
            )
        document = merge(document, overlay)
    return document


def find_profile(name: str, recipe: Path | None) -> Path:
    """The file of a profile: a path, or a file of a folder `profiles` beside the recipe or above it.

    In the nearest folder that has one of them, `RECIPE.NAME.yaml` (for a recipe that needs more) is before `NAME.yaml`.
    """
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    start = (recipe.parent if recipe else Path.cwd()).resolve()
    folders = [folder / "profiles" for folder in (start, *start.parents)]
    own = [f"{recipe.stem}.{name}.yaml"] if recipe else []
    for folder in folders:
        for file in (*own, f"{name}.yaml"):
            if (folder / file).is_file():
                return folder / file
    known = sorted({file.stem for folder in folders if folder.is_dir() for file in folder.glob("*.yaml")})
    remedy = nearest(name, known) or f"write {folders[0]}/{name}.yaml"
    raise UserError(f"no profile {name!r} for this recipe", remedy=remedy)


def _chain(file: Path) -> list[Document]:
    """A profile and what it extends, the outermost first."""
    overlays: list[Document] = []
    seen: list[Path] = []
    while True:
        if file.resolve() in seen:
            raise RecipeError("extends itself", path=str(file), field="extends")
        seen.append(file.resolve())
        overlay = yaml_lines.read(file)
        parent = overlay.tree.pop("extends", None)
        overlays.insert(0, overlay)
        if parent is None:
            return overlays
        file = file.parent / str(parent)


def apply_setting(document: Document, setting: str) -> Document:
    """The document after `--set PATH=VALUE`; the value is YAML, and `~` deletes."""
    path, equals, text = setting.partition("=")
    if not equals or not path.strip():
        raise UserError(f"--set {setting}: not PATH=VALUE", remedy="for example --set train.lr=1e-5")
    return assign(document, path.strip(), yaml_lines.scalar(text), place=(f"--set {setting}", 0))


def merge(base: Document, over: Document) -> Document:
    """`over` laid over `base`: maps merge, lists and all else replace, null deletes; paths are applied last."""
    result = Document(copy.deepcopy(base.tree), dict(base.places))
    paths = [key for key in over.tree if "." in key]
    _merge(result, result.tree, {k: v for k, v in over.tree.items() if k not in paths}, (), (), over)
    for path in paths:
        result = assign(result, path, over.tree[path], place=over.place((path,)))
    return result


def _merge(
    result: Document, node: dict[str, Any], over: dict[str, Any], at: Path_, origin: Path_, overlay: Document
) -> None:
    for written, value in over.items():
        source = (*origin, written)
        key = written.removesuffix("?")
        if written == "*":
            targets = list(node)
        elif key == written or key in node:
            targets = [key]
        else:
            continue
        for target in targets:
            _open_table(node, target, (*at, target), value)
            if value is None and target not in node:
                raise overlay.error("nothing to delete", source, remedy=f"{nearest(target, node)}; or write {target}?")
            if isinstance(value, dict) and isinstance(node.get(target), dict):
                _merge(result, node[target], value, (*at, target), source, overlay)
                continue
            _forget(result, (*at, target))
            if value is None:
                del node[target]
                continue
            node[target] = copy.deepcopy(value)
            for place, where in overlay.places.items():
                if place[: len(source)] == source:
                    result.places[(*at, target, *place[len(source) :])] = where


def assign(document: Document, path: str, value: Any, *, place: tuple[str, int] = ("", 0)) -> Document:
    """The document with `value` at a dotted path (null deletes what is there).

    A last part that is new is added; so are the maps on the way to it, except below `*`, which passes over entries
    that lack them. Raises RecipeError when nothing is reached, unless the path ends with `?`.
    """
    result = Document(copy.deepcopy(document.tree), dict(document.places))
    optional = path.endswith("?")
    parts = path.removesuffix("?").split(".")

    def wrong(message: str) -> RecipeError:
        return RecipeError(message, path=place[0], line=place[1], field=path)

    try:
        targets = list(_targets(result.tree, parts, (), create=not optional))
    except _Missed as missed:
        raise wrong(str(missed)) from None
    if not targets and not optional:
        raise wrong("reaches nothing in this recipe")
    for target in reversed(targets):  # deleting from a list moves what comes after
        if value is None and not target.exists() and not optional:
            raise wrong("nothing to delete")
        if optional and not target.exists():
            continue
        _forget(result, target.path)
        target.put(copy.deepcopy(value))
        result.places[target.path] = place
    return result


def lookup(tree: dict[str, Any], path: str) -> list[Any]:
    """The values at a dotted path, as `assign` would reach them; empty when there are none."""
    try:
        targets = list(_targets(tree, path.split("."), (), create=False))
    except _Missed:
        return []
    return [target.get() for target in targets if target.exists()]


def operation_name(item: Any) -> str:
    """The word of an entry of `do`: `dedup` of both `dedup` and `{dedup: …, as: first}`."""
    if isinstance(item, dict):
        return next((str(key) for key in item if key != "as"), "")
    return str(item)


class _Missed(Exception):
    """A path that goes nowhere."""


@dataclass(frozen=True)
class _Target:
    """A key of a map, or an operation of a `do` list."""

    node: Any
    key: Any
    path: Path_
    operation: str = ""

    def exists(self) -> bool:
        return bool(self.operation) or self.key in self.node

    def get(self) -> Any:
        value = self.node[self.key]
        return value.get(self.operation) if self.operation and isinstance(value, dict) else value

    def put(self, value: Any) -> None:
        if value is None:
            if self.exists():
                del self.node[self.key]
        elif self.operation:
            old = self.node[self.key]
            named = {"as": old["as"]} if isinstance(old, dict) and "as" in old else {}
            self.node[self.key] = {self.operation: value, **named}
        else:
            self.node[self.key] = value


def _targets(node: Any, parts: Sequence[str], at: Path_, *, create: bool, wild: bool = False) -> Iterator[_Target]:
    if isinstance(node, list):
        yield from _operations(node, parts, at, create=create, wild=wild)
        return
    if not isinstance(node, dict):
        if wild:
            return
        raise _Missed(f"{'.'.join(map(str, at))} is {node!r} and has no {parts[0]!r} in it")
    if parts[0] == "*":
        for key in list(node):
            yield from _targets(node, [key, *parts[1:]], at, create=create, wild=True)
        return
    for end in range(len(parts), 0, -1):  # a key may itself have dots, as `train.model` of a grid
        key = ".".join(parts[:end])
        if key in node:
            if end == len(parts):
                yield _Target(node, key, (*at, key))
            else:
                _open_table(node, key, (*at, key), {})
                yield from _targets(node[key], parts[end:], (*at, key), create=create, wild=wild)
            return
    if len(at) == 2 and at[0] == "data" and parts[0] not in TABLE_KEYS:
        yield from _operations(node.get("do") or [], parts, (*at, "do"), create=create, wild=wild)
    elif len(parts) == 1:
        yield _Target(node, parts[0], (*at, parts[0]))
    elif create and not wild:
        node[parts[0]] = {}
        yield from _targets(node[parts[0]], parts[1:], (*at, parts[0]), create=create, wild=wild)


def _operations(items: Any, parts: Sequence[str], at: Path_, *, create: bool, wild: bool) -> Iterator[_Target]:
    """The operation that the path names, or what is inside it."""
    listed = items if isinstance(items, list) and at[-1:] == ("do",) else None
    if listed is None:
        raise _Missed(f"{'.'.join(map(str, at))} is a list; give it whole")
    named = [i for i, item in enumerate(listed) if isinstance(item, dict) and item.get("as") == parts[0]]
    found = named or [i for i, item in enumerate(listed) if operation_name(item) == parts[0]]
    if not found:
        if wild or not create:
            return
        known = nearest(parts[0], [operation_name(item) for item in listed])
        raise _Missed(f"{'.'.join(map(str, at))} has no {parts[0]!r} ({known})")
    if len(found) > 1:
        raise _Missed(f"{'.'.join(map(str, at))} has {len(found)} of {parts[0]!r}; name them with `as`")
    index = found[0]
    name = operation_name(listed[index])
    if len(parts) == 1:
        yield _Target(listed, index, (*at, index), operation=name)
        return
    if not isinstance(listed[index], dict):
        listed[index] = {name: {}}
    yield from _targets(listed[index][name], parts[1:], (*at, index, name), create=create, wild=wild)


def _open_table(node: dict[str, Any], key: str, path: Path_, over: Any) -> None:
    """Write a table's short form (`math: gsm8k`) as a map, so that there is something to reach into."""
    if len(path) == 2 and path[0] == "data" and isinstance(over, dict) and isinstance(node.get(key), str | list):
        node[key] = {"from": node[key]}


def _forget(document: Document, path: Path_) -> None:
    for place in [p for p in document.places if p[: len(path)] == path]:
        del document.places[place]
