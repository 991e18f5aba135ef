"""YAML as people mean it, with the line of every key.

PyYAML reads YAML 1.1, where `2e-5` is a text, `no` is false and `1:30` is ninety. A recipe is read by the core schema
of YAML 1.2: `true` and `false` are the only booleans, `null`, `~` and nothing are null, numbers are decimal. Dates stay
texts. A key written twice is refused, since the first of the two would be lost in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cuvee.errors import RecipeError

Path_ = tuple[str | int, ...]
"""Where a value stands in a document: keys of maps, positions of lists."""

_NULL = re.compile(r"null|Null|NULL|~|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9][0-9_]*")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_DEEPEST = 40
"""Far above any recipe; an anchor that contains itself ends here."""


@dataclass(frozen=True)
class Document:
    """A tree of maps, lists, texts, numbers, booleans and nulls; `places` has (file, 1-based line) of each value."""

    tree: dict[str, Any]
    places: dict[Path_, tuple[str, int]] = field(default_factory=dict)

    def place(self, path: Path_) -> tuple[str, int]:
        """File and line of the value, or of the nearest value around it; ("", 0) if nothing is known."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return "", 0

    def error(self, message: str, path: Path_, *, remedy: str = "") -> RecipeError:
        """The error to raise for the value at `path`."""
        file, line = self.place(path)
        return RecipeError(message, path=file, line=line, field=".".join(str(p) for p in path), remedy=remedy)


def read(file: Path) -> Document:
    """Raises RecipeError when the file is missing, is no YAML, or holds no map."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError("no such file", path=str(file)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot be read: {error}", path=str(file)) from None
    return parse(text, str(file))


def parse(text: str, file: str = "") -> Document:
    """One YAML document whose top is a map; an empty text is an empty map."""
    documents = parse_all(text, file)
    if len(documents) > 1:
        raise RecipeError("more than one document in the file", path=file, line=documents[1].place(())[1])
    return documents[0] if documents else Document({})


def parse_all(text: str, file: str = "") -> list[Document]:
    """All documents of the text, separated by `---`."""
    documents = []
    for node in _nodes(text, file):
        places: dict[Path_, tuple[str, int]] = {}
        tree = _value(node, (), places, file)
        if tree is None:
            continue
        if not isinstance(tree, dict):
            raise RecipeError("the top of the file is not a map of keys", path=file, line=_line(node))
        documents.append(Document(tree, places))
    return documents


def scalar(text: str) -> Any:
    """The value of a `--set` option: YAML, so that `[a, b]`, `{k: v}` and `2e-5` mean what they mean in the file."""
    node = next(iter(_nodes(text, "--set")), None)
    return None if node is None else _value(node, (), {}, "--set")


def _nodes(text: str, file: str) -> Iterator[yaml.Node]:
    try:
        yield from yaml.compose_all(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        raise RecipeError(f"not YAML: {error.problem or error.context}", path=file, line=line) from None
    except yaml.YAMLError as error:
        raise RecipeError(f"not YAML: {error}", path=file) from None


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _value(node: yaml.Node, path: Path_, places: dict[Path_, tuple[str, int]], file: str) -> Any:
    places.setdefault(path, (file, _line(node)))
    if len(path) > _DEEPEST:
        raise RecipeError(f"nested deeper than {_DEEPEST} levels", path=file, line=_line(node))
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return [_value(child, (*path, i), places, file) for i, child in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        raise RecipeError(f"cannot read a {node.tag}", path=file, line=_line(node))
    tree: dict[str, Any] = {}
    for key_node, child in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise RecipeError("a key must be a word", path=file, line=_line(key_node))
        key = str(key_node.value)
        if key in tree:
            first = places[(*path, key)][1]
            raise RecipeError(f'"{key}" is written twice, first on line {first}', path=file, line=_line(key_node))
        places[(*path, key)] = (file, _line(key_node))
        tree[key] = _value(child, (*path, key), places, file)
    return tree


def _scalar(node: yaml.ScalarNode) -> Any:
    text = str(node.value)
    if node.style is not None:  # quoted or a block: always a text
        return text
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return int(text.replace("_", ""))
    if _FLOAT.fullmatch(text):
        return float(text.replace("_", ""))
    return text
