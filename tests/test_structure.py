"""The import rules of the design: the science knows `cuvee` and nothing else of ours."""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"cuvee", "selection", "training", "evaluation", "services"}
MAY = {
    "cuvee": set(),
    "selection": {"cuvee"},
    "training": {"cuvee"},
    "evaluation": {"cuvee"},
    "services": OURS - {"services"},
}
HEAVY = {"torch", "ray", "vllm", "mlflow", "deepspeed", "transformers", "datasets", "lm_eval", "sklearn", "boto3"}


def imports(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.append(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", sorted(OURS))
def test_packages_import_only_what_they_may(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for name in imports(ast.parse(path.read_text()))
        if name in OURS and name != package and name not in MAY[package]
    ]
    assert not wrong


def test_heavy_libraries_are_imported_where_they_are_used() -> None:
    """`cuvee --help` and `cuvee plan` must be instant, so no module imports these at its top."""
    wrong = []
    for package in sorted(OURS):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.parse(path.read_text()).body:
                wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in imports_of(node) if name in HEAVY]
    assert not wrong


def imports_of(node: ast.stmt) -> list[str]:
    return imports(node) if isinstance(node, ast.Import | ast.ImportFrom) else []


def test_no_module_needs_itself() -> None:
    """Imports inside functions count, which hide a circle from Python and not from a reader; names of types do not."""
    files = {module_of(path): path for package in sorted(OURS) for path in sorted((ROOT / package).rglob("*.py"))}
    needs = {name: needed(ast.parse(path.read_text()), files) - {name} for name, path in files.items()}
    wanted = {name: reached(name, needs) for name in needs}
    circles = sorted({tuple(sorted(b for b in wanted[a] if a in wanted[b])) for a in needs if a in wanted[a]})
    assert not circles


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def needed(tree: ast.AST, files: Collection[str]) -> set[str]:
    """Modules of ours that a module imports anywhere outside `if TYPE_CHECKING`."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in files else node.module for name in inner}
        else:
            found |= needed(node, files)
    return found & set(files)


def reached(start: str, needs: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    open_ = set(needs[start])
    while open_:
        found |= open_
        open_ = {further for name in open_ for further in needs[name]} - found
    return found
