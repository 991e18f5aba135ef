"""The import rules of the design: the science knows `cuvee` and nothing else of ours."""

from __future__ import annotations

import ast
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
