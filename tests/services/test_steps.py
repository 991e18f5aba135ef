"""Code cannot change under a step's version in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import services.steps
from services.steps import STEPS, base, source_digest

LOCK = Path(services.steps.__file__).parent.parent / "steps.lock.json"


def test_every_step_is_locked() -> None:
    assert set(json.loads(LOCK.read_text())) == set(STEPS)


@pytest.mark.parametrize("name", sorted(STEPS))
def test_source_changes_only_with_the_version(name: str) -> None:
    locked = json.loads(LOCK.read_text())[name]
    if locked["version"] != STEPS[name].version:
        pytest.fail(f"{name} has a new version: run scripts/lock_steps.py")
    assert locked["digest"] == source_digest(STEPS[name]), (
        f"the code of {name} changed: raise its version, or see scripts/lock_steps.py --same"
    )


def test_comments_and_docstrings_do_not_count() -> None:
    import ast

    plain = base._code(ast.parse("def f(x):\n    return x + 1\n"))
    told = base._code(ast.parse('"""Module."""\n\n\ndef f(x):\n    """Adds."""\n    # why\n    return x + 1\n'))
    other = base._code(ast.parse("def f(x):\n    return x + 2\n"))
    assert plain == told != other
