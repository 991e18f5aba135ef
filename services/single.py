"""Single steps over plain files: small recipes in memory, run by the same broker over the same store.

A step on its own is the step of a recipe. So `cuvee select pool.jsonl` and a recipe that selects from that file share
artifacts, a repeated call computes nothing, and there is one way in which rows get their ids.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.errors import UserError
from services.broker import Broker, Observer, Outcome
from services.environment import has_accelerator
from services.graph import Node, ordered
from services.runtime import Runtime
from services.single_files import whole
from services.store import Store
from services.terminal import StepLines, Terminal

if TYPE_CHECKING:
    from services.plan import Builder
    from services.recipe import Recipe

MODEL = "model"
"""What the one model of a small recipe is called."""


class Session:
    """What one command does with a store: steps that it ran, in `outcomes`, and the machine that they may use."""

    def __init__(self, store: Store, runtime: Runtime, terminal: Terminal) -> None:
        self.store, self.runtime, self.terminal = store, runtime, terminal
        self.outcomes: list[Outcome] = []

    def run(self, targets: Sequence[Node], *observers: Observer) -> None:
        """Make what the targets need. Raises the error of the first step that fails."""
        self.store.check_writable()
        lines = StepLines(self.terminal, len(ordered(targets)))
        self.outcomes += Broker(self.store, self.runtime, [lines, *observers]).run(targets)

    def folder(self, node: Node) -> Path:
        """The files of a finished step."""
        return self.store.local(node.key)

    def info(self, node: Node) -> Mapping[str, Any]:
        """The record of a finished step."""
        done = self.store.done(node.key)
        assert done is not None
        return done.info

    @property
    def steps(self) -> list[dict[str, Any]]:
        """For `--json`."""
        return [outcome.record() for outcome in self.outcomes]


def builder(tree: Mapping[str, Any], store: Store) -> Builder:
    """The builder of a small recipe's one arm. Raises RecipeError, and MissingError for a model that is not there."""
    from services.arms import expand
    from services.plan import Builder
    from services.recipe import parse
    from services.table_plan import Surroundings
    from services.yaml_lines import Document

    (arm,) = expand(parse(Document({"version": 1, **tree})))
    return Builder(arm, Surroundings(store, has_accelerator()))


def checked(made: Builder) -> Builder:
    """The builder, if everything that its nodes need can be reached."""
    if made.where.missing:
        raise made.where.missing[0]
    return made


def model_spec(name: str, template: str | None = None) -> dict[str, Any]:
    """An entry of `models`: a built-in name, `hub:org/name`, or a folder, also one that another trainer made."""
    return {"id": name} | ({"template": template} if template else {})


def borrowed(recipe: Recipe) -> dict[str, Any]:
    """The document of a recipe of which a single step takes models and settings, with its variables put in."""
    from services.variables import resolve

    return resolve(recipe.source).tree


def require(tree: Mapping[str, Any] | None, keys: Collection[str], who: str) -> dict[str, Any]:
    """These keys of a borrowed document. Raises UserError that names the first one that is not there."""
    for key in keys:
        if tree is None or not tree.get(key):
            where = "and no recipe is given" if tree is None else "and the recipe has none"
            raise UserError(f"{who} needs `{key}`, {where}", remedy=f"give --recipe FILE with `{key}`")
    return {key: (tree or {})[key] for key in keys}


def origins(paths: Sequence[str], shape: str | None, columns: Mapping[str, str]) -> list[dict[str, Any]]:
    """Entries of `from`, each with a name of its own: two files called pool.jsonl are two sources."""
    from services.tables import source_name

    found: list[dict[str, Any]] = []
    taken: set[str] = set()
    for path in paths:
        name = source_name(path)
        if name in taken:
            name = str(Path(path).with_suffix("")) if path not in taken else path
        if name in taken:
            raise UserError(f"{path} is given twice", remedy="name each file once")
        taken.add(name)
        how = {"shape": shape, "columns": dict(columns)}
        found.append({"path": path, "name": name, **{key: value for key, value in how.items() if value}})
    return found


def yaml_value(text: str, option: str) -> Any:
    """An option's value as a recipe would write it: a word, a number, or a map in braces."""
    from services import yaml_lines

    try:
        return yaml_lines.scalar(text)
    except UserError as error:
        raise UserError(f"{option} {text}: {error}") from None


def write_rejected(session: Session, nodes: Iterable[Node], path: Path) -> int:
    """Rows that could not be read, with file, line and reason; a file of an earlier call goes when there are none."""
    lines: list[str] = []
    for node in dict.fromkeys(nodes):
        if node.step == "load" and session.info(node)["rejected"]:
            lines += (session.folder(node) / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    if not lines:
        path.unlink(missing_ok=True)
        return 0
    with whole(path) as partial:
        partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return len(lines)
