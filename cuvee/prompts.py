"""Prompts as small Jinja files with a version.

A prompt file starts with a comment that holds YAML, `{# version: 1 #}`, and has one block a use:
`{% block user %}…{% endblock %}`, `{% block paraphrase %}…{% endblock %}`. Blocks of the roles `system` and `user`
render to messages; other blocks render to text for the caller. The version goes into provenance, so whoever edits a
prompt raises it. Undefined variables are errors: a prompt with a hole in it is worse than none.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cuvee.errors import RecipeError
from cuvee.protocols import Message

if TYPE_CHECKING:
    from jinja2 import Template

_HEADER = re.compile(r"\s*\{#-?(.*?)-?#\}", re.DOTALL)


@dataclass(frozen=True)
class Prompt:
    """`name` as written in the recipe, `version` from the header, `settings` the other keys of the header.

    `digest` is of the whole text, for keys: an edit without a new version must not be taken for the old prompt.
    """

    name: str
    version: str
    digest: str
    settings: Mapping[str, Any]
    template: Template

    def __contains__(self, block: str) -> bool:
        return block in self.template.blocks

    def text(self, block: str, **values: Any) -> str:
        """One block, outer white space dropped. Raises RecipeError for a variable that is missing or out of bounds."""
        from jinja2 import UndefinedError
        from jinja2.exceptions import SecurityError

        try:
            rendered = "".join(self.template.blocks[block](self.template.new_context(values)))
        except (UndefinedError, SecurityError) as error:
            raise RecipeError(f"prompt {self.name!r}, block {block!r}: {error}") from error
        return rendered.strip()

    def messages(self, **values: Any) -> tuple[Message, ...]:
        """The blocks `system` and `user`, those that exist."""
        return tuple(
            Message(role=role, content=self.text(role, **values)) for role in ("system", "user") if role in self
        )


def load(name: str, folder: Path) -> Prompt:
    """A prompt by name below `folder` (`s3ft/gsm8k`), or by a path that ends in `.jinja`."""
    path = Path(name) if name.endswith(".jinja") else folder / f"{name}.jinja"
    if not path.is_file():
        known = sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.jinja"))
        raise RecipeError(f"no prompt file {name!r}", remedy=f"known: {', '.join(known)}, or a path ending in .jinja")
    return parse(path.read_text(encoding="utf-8"), name)


def parse(source: str, name: str) -> Prompt:
    """Raises RecipeError when the header or the template cannot be read."""
    from jinja2 import StrictUndefined, TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    header = _HEADER.match(source)
    try:
        settings = yaml.safe_load(header[1]) if header else None
    except yaml.YAMLError as error:
        raise RecipeError(f"prompt {name!r}: the header is not YAML: {error}") from error
    if not isinstance(settings, dict) or "version" not in settings:
        raise RecipeError(f"prompt {name!r} has no version", remedy="start the file with {# version: 1 #}")
    # A recipe from somebody else may bring its own prompts: they can format text and nothing more.
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    try:
        template = environment.from_string(source)
    except TemplateError as error:
        raise RecipeError(f"prompt {name!r}: {error}") from error
    version = str(settings.pop("version"))
    digest = hashlib.blake2b(source.encode(), digest_size=16).hexdigest()
    return Prompt(name, version, digest, settings, template)
