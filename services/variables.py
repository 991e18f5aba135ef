"""The free variables of a recipe: `let` names them, `$name` uses them anywhere.

A text that is exactly `$name` (or `${name}`) becomes the value, whatever its kind; inside a longer text the value is
written out, as in `$task/train`. Keys are substituted too. `$$` is a dollar sign.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cuvee.errors import nearest
from services.yaml_lines import Document, Path_

UNTOUCHED = ("let", "arms", "repeat", "contrasts", "published")
"""Parts that speak about variables instead of using them."""

_USE = re.compile(r"\$(?:\$|\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))")


def resolve(document: Document) -> Document:
    """The document with every variable replaced. Raises RecipeError for one that is unknown or defined by itself."""
    written = document.tree.get("let") or {}
    if not isinstance(written, dict):
        raise document.error("not a map of names to values", ("let",))
    values: dict[str, Any] = {}

    def value_of(name: str, at: Path_, inside: tuple[str, ...]) -> Any:
        if name in inside:
            raise document.error(f"${name} is defined by itself", at)
        if name not in written:
            raise document.error(
                f"${name} is not in `let`", at, remedy=f"{nearest(name, written)}; $$ is a dollar sign"
            )
        if name not in values:
            values[name] = fill(written[name], ("let", name), (*inside, name))
        return values[name]

    def fill(value: Any, at: Path_, inside: tuple[str, ...] = ()) -> Any:
        if isinstance(value, Mapping):
            return {str(text(key, (*at, key), inside)): fill(v, (*at, key), inside) for key, v in value.items()}
        if isinstance(value, list):
            return [fill(v, (*at, i), inside) for i, v in enumerate(value)]
        return text(value, at, inside) if isinstance(value, str) else value

    def text(value: str, at: Path_, inside: tuple[str, ...]) -> Any:
        whole = _USE.fullmatch(value)
        if whole and whole[0] != "$$":
            return value_of(whole[1] or whole[2], at, inside)

        def written_out(match: re.Match[str]) -> str:
            if match[0] == "$$":
                return "$"
            found = value_of(match[1] or match[2], at, inside)
            if isinstance(found, dict | list) or found is None:
                raise document.error(f"{match[0]} is not a word or number and cannot stand inside a text", at)
            return str(found)

        return _USE.sub(written_out, value)

    tree = {key: value if key in UNTOUCHED else fill(value, (key,)) for key, value in document.tree.items()}
    for name in written:
        value_of(name, ("let", name), ())
    return Document(tree, document.places)
