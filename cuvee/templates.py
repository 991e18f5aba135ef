"""Chat templates: rendered with the origin of every character, and checked against the genuine rendering.

The environment follows the one of transformers' `apply_chat_template` (same flags, filters and globals); only the
joining of strings differs, so that `Traced` contents keep their origin. That it renders the same text is not assumed:
`Template.render` compares each result with `apply_chat_template` itself.

Base models come without a template. `TEMPLATES` has plain ones for them; `tulu` is the format of open-instruct and of
arXiv 2405.14394. They end answers with the tokenizer's end token, and with the argument `bos: true` they begin with
its start token, as Llama models expect. `glm4` is for the models of that name: they stop by writing the header of the
next user turn, which their own template leaves out after the last answer; here it belongs to every answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import date as Date
from functools import cached_property
from typing import Any

from jinja2 import TemplateError as JinjaError
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cuvee.errors import TemplateError, nearest
from cuvee.trace import Traced, concat, join

TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "tulu": (
        "{% if bos %}{{ bos_token }}{% endif %}{% for message in messages %}{% if message.role == 'assistant' %}"
        "{{ '<|assistant|>\\n' + message.content | trim + eos_token + ('' if loop.last else '\\n') }}"
        "{% else %}{{ '<|' + message.role + '|>\\n' + message.content | trim + '\\n' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
    ),
    "alpaca": (
        "{% if bos %}{{ bos_token }}{% endif %}{% for message in messages %}{% if message.role == 'system' %}"
        "{{ message.content + '\\n\\n' }}"
        "{% elif message.role == 'assistant' %}{{ '### Response:\\n' + message.content + eos_token + '\\n\\n' }}"
        "{% elif message.role == 'user' %}{{ '### Instruction:\\n' + message.content + '\\n\\n' }}"
        "{% else %}{{ raise_exception('no tool turns in this format') }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
    ),
    "vicuna": (
        "{% if bos %}{{ bos_token }}{% endif %}{% for message in messages %}{% if message.role == 'system' %}"
        "{{ message.content + ' ' }}"
        "{% elif message.role == 'assistant' %}{{ 'ASSISTANT: ' + message.content + eos_token }}"
        "{% elif message.role == 'user' %}{{ 'USER: ' + message.content + ' ' }}"
        "{% else %}{{ raise_exception('no tool turns in this format') }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
    "glm4": (
        "[gMASK]<sop>{% for message in messages %}"
        "{% if message.role == 'tool' %}{{ raise_exception('no tool turns in this format') }}{% endif %}"
        "{% if loop.first or messages[loop.index0 - 1].role != 'assistant' %}"
        "{{ '<|' + message.role + '|>' }}{% endif %}"
        "{{ '\\n' + message.content }}{% if message.role == 'assistant' %}{{ '<|user|>' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    ),
}

RESERVED = {
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "max_length", "messages",
    "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "strftime_now", "tokenize",
    "tokenizer_kwargs", "truncation",
}  # fmt: skip
"""Names that a recipe's template arguments may not take."""


class Template:
    """A tokenizer's chat template (or `source`: Jinja text, or a name in `TEMPLATES`) with fixed arguments and date.

    `date` (ISO) is what templates that stamp the day get; without it such a template is refused, since its prompts
    would change overnight. Raises TemplateError if there is no template or it cannot be compiled.
    """

    def __init__(
        self, tokenizer: Any, *, source: str | None, args: Mapping[str, Any] | None = None, date: str | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.args = dict(args or {})
        self.date = _day(date)
        self.source = _source(tokenizer, source, "tools" in self.args)
        if taken := sorted(RESERVED & self.args.keys()):
            raise TemplateError(f"the template argument {taken[0]!r} is set by Cuvee", remedy="remove it")
        environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        environment.filters.update(tojson=_tojson, join=_join)
        environment.globals.update(raise_exception=_raise)
        try:
            self._compiled = environment.from_string(self.source)
        except JinjaError as error:
            raise TemplateError(f"the chat template does not compile: {error}", remedy="correct it") from error

    def render(self, turns: Sequence[tuple[str, str]], *, generation: bool = False) -> str:
        """The text of a conversation of (role, content); contents that are `Traced` keep their origin.

        Raises TemplateError with the template's own complaint, or if the genuine rendering is another text.
        """
        traced = [{"role": role, "content": content} for role, content in turns]
        plain = [{"role": role, "content": "".join((content,))} for role, content in turns]
        try:
            text = self._compiled.render(
                messages=traced, add_generation_prompt=generation, **{**self._context, **self.args}
            )
            genuine = self.tokenizer.apply_chat_template(
                plain,
                tokenize=False,
                add_generation_prompt=generation,
                chat_template=self.source,
                strftime_now=self._strftime,
                **self.args,
            )
        except (JinjaError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise TemplateError(f"the chat template refuses the conversation: {error}", remedy=ADAPT) from error
        if text != genuine:
            raise TemplateError("the chat template does something to the text that cannot be followed", remedy=ADAPT)
        return text

    @cached_property
    def _context(self) -> dict[str, Any]:
        special = self.tokenizer.special_tokens_map
        return {"tools": None, "documents": None, **special, "strftime_now": self._strftime}

    @property
    def _strftime(self) -> Callable[[str], str]:
        def strftime_now(format: str) -> str:
            if self.date is None:
                raise TemplateError("the chat template stamps today's date", remedy="set `date: YYYY-MM-DD`")
            return self.date.strftime(format)

        return strftime_now


ADAPT = "change the conversation, set `template_args`, or give another `template`"


class _Generator(CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("concat(map(str, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _Generator
    concat = staticmethod(concat)  # type: ignore[assignment]


class _Generation(Extension):
    """Lets templates with `{% generation %}` marks compile. The marks are not needed and not used."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


def _source(tokenizer: Any, given: str | None, tools: bool) -> str:
    if given is None:
        try:
            return tokenizer.get_chat_template(tools=[{}] if tools else None)
        except ValueError:
            remedy = "set `template` to one of " + ", ".join(sorted(TEMPLATES))
            raise TemplateError("the tokenizer has no chat template", remedy=remedy) from None
    if "{" in given:
        return given
    if given not in TEMPLATES:
        raise TemplateError(f"unknown chat template {given!r}", remedy=nearest(given, TEMPLATES))
    return TEMPLATES[given]


def _day(date: str | None) -> Date | None:
    try:
        return Date.fromisoformat(date) if date is not None else None
    except ValueError:
        raise TemplateError(f"{date!r} is not a date", remedy="write YYYY-MM-DD") from None


def _raise(message: str) -> None:
    raise JinjaError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    # Some templates write tool results as JSON strings: what stands between the quotes is the message, rewritten.
    return concat(('"', value.rewritten(text[1:-1]), '"')) if isinstance(value, Traced) else text


def _join(value: Any, d: str = "", attribute: str | None = None) -> str:
    return join(str(d), (str(item[attribute] if attribute else item) for item in value))
