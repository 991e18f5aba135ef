"""What a step is: a name, a version, and a function from input artifacts to one output artifact.

A step function gets a `Context` and writes into `context.out`. It returns the figures that a plan and a report want
to know without opening the files. It may keep unfinished state in `context.work`; it never writes anywhere else.

`sources` are the modules whose code decides the result. A test compares their digest with `steps.lock.json`, so that
code cannot change under a version in silence.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cuvee.errors import UserError, nearest

if TYPE_CHECKING:
    from services.runtime import Runtime

Progress = Callable[[int, int | None], None]
Kind = Literal["data", "engine", "train"]


@dataclass
class Context:
    """All that a step function may see. `inputs` are folders of finished artifacts; `seed` is None if it draws nothing.

    `execution` holds what must not change the result: workers, micro-batch, ZeRO stage, device.
    """

    config: Mapping[str, Any]
    inputs: Mapping[str, Path]
    out: Path
    work: Path
    seed: int | None
    execution: Mapping[str, Any]
    runtime: Runtime
    progress: Progress
    key: str = ""
    input_keys: Mapping[str, str] = field(default_factory=dict)

    def draw_seed(self) -> int:
        """The seed of a step that draws."""
        if self.seed is None:
            raise AssertionError("a step that draws must declare it, so that its seed is in the key")
        return self.seed


@dataclass(frozen=True)
class Step:
    """`kind` tells what the machine must hold while it runs: nothing much, an inference engine, or a training."""

    name: str
    version: str
    run: Callable[[Context], dict[str, Any]]
    sources: tuple[str, ...]
    kind: Kind = "data"
    draws: bool = False


STEPS: dict[str, Step] = {}


def step(
    name: str, version: str, *sources: str, kind: Kind = "data", draws: bool = False
) -> Callable[[Callable[[Context], dict[str, Any]]], Callable[[Context], dict[str, Any]]]:
    """Register a step function. `sources`: modules, besides its own, whose code decides the result."""

    def add(run: Callable[[Context], dict[str, Any]]) -> Callable[[Context], dict[str, Any]]:
        if name in STEPS:
            raise ValueError(f"step {name!r} is registered twice")
        STEPS[name] = Step(name, version, run, (run.__module__, *sources), kind, draws)
        return run

    return add


def get(name: str) -> Step:
    """The step of that name."""
    try:
        return STEPS[name]
    except KeyError:
        raise UserError(f"unknown step {name!r}", remedy=nearest(name, STEPS)) from None


def source_digest(item: Step) -> str:
    """A digest of the code that decides a step's result; comments, docstrings and layout do not count.

    Of the step's own module only its function counts, since a file holds several steps; of a package all its files.
    """
    parts = [_code(ast.parse(_files(item.sources[0])[0].read_text()), item.run.__name__)]
    for module in sorted(item.sources[1:]):
        for path in _files(module):
            parts.append(_code(ast.parse(path.read_text())) if path.suffix == ".py" else path.read_text())
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=12).hexdigest()


def _files(module: str) -> list[Path]:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(f"no source for {module}")
    origin = Path(spec.origin)
    if origin.name != "__init__.py":
        return [origin]
    return sorted(p for p in origin.parent.rglob("*") if p.suffix in (".py", ".jinja", ".yaml"))


def _code(tree: ast.Module, function: str = "") -> str:
    chosen: list[ast.stmt] = tree.body
    if function:
        chosen = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function]
    for node in chosen:
        for inner in ast.walk(node):
            if isinstance(inner, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
                body = [n for n in inner.body if not _is_text(n)]
                inner.body = body or [ast.Pass()]
    return "\n".join(ast.dump(node) for node in chosen if not _is_text(node))


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
