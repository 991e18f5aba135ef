from __future__ import annotations

from pathlib import Path

import pytest

import evaluation.judges
import selection
from cuvee.errors import RecipeError
from cuvee.prompts import load, parse


def test_blocks_render_to_messages_and_text() -> None:
    prompt = parse(
        "{# {version: 2, strip: [markers]} #}\n{% block system %}Be brief.{% endblock %}\n"
        "{% block user %}\n{{ question }}\n{% for t in tests %}\n- {{ t }}\n{% endfor %}\n{% endblock %}"
        "{% block gold %}It is {{ gold }}.{% endblock %}",
        "mine",
    )
    assert (prompt.version, prompt.settings) == ("2", {"strip": ["markers"]})
    assert prompt.messages(question="Why <b>?", tests=["x", "y"]) == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why <b>?\n- x\n- y"},
    )
    assert "gold" in prompt
    assert "paraphrase" not in prompt
    assert prompt.text("gold", gold="5") == "It is 5."


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("no header", "has no version"),
        ("{# nothing: here #}", "has no version"),
        ("{# version: [ #}", "not YAML"),
        ("{# version: 1 #}{% block user %}", "mine"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(source: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        parse(source, "mine")


def test_a_hole_is_an_error_and_code_is_not_reached() -> None:
    with pytest.raises(RecipeError, match="gold"):
        parse("{# version: 1 #}{% block user %}{{ gold }}{% endblock %}", "mine").messages(question="q")
    hostile = parse("{# version: 1 #}{% block user %}{{ q.__class__.__mro__ }}{% endblock %}", "mine")
    with pytest.raises(RecipeError, match="unsafe"):
        hostile.messages(q="x")


def test_the_digest_follows_the_text_and_not_the_version() -> None:
    first, second = (parse(f"{{# version: 1 #}}{{% block user %}}{word}{{% endblock %}}", "m") for word in ("a", "b"))
    assert first.version == second.version
    assert first.digest != second.digest


@pytest.mark.parametrize("package", [selection, evaluation.judges])
def test_the_prompts_that_come_along_render(package: object) -> None:
    folder = Path(package.__file__).parent / "prompts"  # type: ignore[attr-defined, arg-type]
    values = {
        "question": "QUESTION", "gold": "GOLD", "tests": ("assert f() == 1",), "meta": {}, "first": "A", "second": "B",
        "prediction": "P", "references": ("R",), "low": 1, "high": 5,
    }  # fmt: skip
    ours = ("s3ft/", "generic", "sentence", "equivalence", "rating")
    names = [str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.jinja")]
    names = [name for name in names if name.startswith(ours)]
    assert names
    for name in names:
        prompt = load(name, folder)
        for block in prompt.template.blocks:
            assert prompt.text(block, **values)


def test_an_unknown_prompt_names_the_known(tmp_path: Path) -> None:
    (tmp_path / "a.jinja").write_text("{# version: 1 #}")
    with pytest.raises(RecipeError, match="known: a"):
        load("b", tmp_path)
