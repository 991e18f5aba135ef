"""A plan's graph: steps with their inputs, each with the key of its artifact.

Two arms that ask the same question get the same key, and so share the artifact; nothing else has to be told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from services.steps import STEPS, get
from services.store import step_key

Accepted = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, eq=False)
class Node:
    """`label` is for people, e.g. `math · select`. `execution` does not enter the key."""

    step: str
    label: str
    config: Mapping[str, Any]
    inputs: Mapping[str, Node]
    key: str
    seed: int | None = None
    execution: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""
    """For steps on an engine: the key of the model, so that the broker can run them back to back."""

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and other.key == self.key


def make_node(
    step: str,
    label: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, Node] | None = None,
    *,
    data: str = "",
    seed: int | None = None,
    execution: Mapping[str, Any] | None = None,
    accepted: Accepted | None = None,
    model: Node | None = None,
) -> Node:
    """A node with its key. `seed` is used only if the step draws; `accepted`: versions with the same result."""
    spec = get(step)
    version = (accepted or {}).get(step, {}).get(spec.version, spec.version)
    used = seed if spec.draws else None
    links = dict(inputs or {})
    key = step_key(step, version, config, {name: node.key for name, node in links.items()}, data, used)
    return Node(step, label, dict(config), links, key, used, dict(execution or {}), model.key if model else "")


def ordered(targets: Iterable[Node]) -> list[Node]:
    """The targets and all that they need, each once, inputs before users."""
    done: dict[str, Node] = {}

    def visit(node: Node) -> None:
        if node.key not in done:
            for source in node.inputs.values():
                visit(source)
            done[node.key] = node

    for target in targets:
        visit(target)
    return list(done.values())


def known_steps() -> list[str]:
    """Names of all steps."""
    return sorted(STEPS)
