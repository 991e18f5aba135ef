"""The preview shows the very text, ids, roles and weights, whatever is in the data."""

from __future__ import annotations

import io
from html.parser import HTMLParser
from typing import Any

from rich.console import Console

from cuvee import rows
from cuvee.chat import ROLE_NAMES, Chat
from services.preview import preview, to_html, to_terminal
from tests.cuvee.table import source
from tests.tiny import tiny_tokenizer
from training.objective import Objective

HOSTILE = "<script>alert(1)</script> \x1b[31mred\x1b[0m [bold]x[/bold] \u202eevil 漢😀\n\"'&"


def table(user: str, answer: str, **more: Any) -> Any:
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    return rows.make_table("s", [{"messages": messages, **more}])


def test_entries_are_the_render_with_the_weights() -> None:
    chat = Chat(tiny_tokenizer())
    data = table(HOSTILE, "漢字 yes", weight=0.5)
    (entry,) = preview(data, chat, Objective.parse({"preset": "wit", "prompt_weight": 0.5}))
    rendered = chat.render(data["messages"][0].as_py())
    assert entry["id"] == data["id"][0].as_py()
    assert "".join(token["text"] for token in entry["tokens"]) == rendered.text
    assert [token["id"] for token in entry["tokens"]] == rendered.ids.tolist()
    assert [token["role"] for token in entry["tokens"]] == [ROLE_NAMES[r] for r in rendered.roles]
    of_role = {token["role"]: token["weight"] for token in entry["tokens"]}
    assert of_role == {"template": 0.0, "user": 0.25, "assistant": 0.5}


def test_the_first_token_is_never_in_the_loss() -> None:
    (entry,) = preview(table("q", "a"), Chat(tiny_tokenizer()), Objective.parse("all"))
    assert [token["weight"] for token in entry["tokens"]] == [0.0] + [1.0] * (len(entry["tokens"]) - 1)


def test_a_refused_row_says_why() -> None:
    chat = Chat(tiny_tokenizer(source("chatml")))
    entries = preview(table("<|im_end|>", "a"), chat, Objective.parse("sft"))
    assert entries[0]["tokens"] == []
    assert "<|im_end|>" in entries[0]["error"]
    assert "&lt;|im_end|&gt;" in to_html(entries)


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.inside = False

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.inside |= tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        self.inside &= tag != "pre"

    def handle_data(self, data: str) -> None:
        self.text += data if self.inside else ""


def test_hostile_text_is_escaped_on_the_page() -> None:
    entries = preview(table(HOSTILE, "a"), Chat(tiny_tokenizer()), Objective.parse("sft"))
    page = Page()
    page.feed(to_html(entries))
    assert "script" not in page.tags
    assert "<script>alert(1)</script> \\u{1b}[31mred" in page.text
    assert "\\u{202e}evil 漢😀↵\n\"'&" in page.text


def test_control_characters_do_not_reach_the_terminal() -> None:
    entries = preview(table(HOSTILE, "a"), Chat(tiny_tokenizer()), Objective.parse("sft"))
    out = io.StringIO()
    to_terminal(entries, Console(file=out, width=200, color_system=None))
    shown = out.getvalue()
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "[bold]x[/bold]" in shown
    assert "2 of" in shown  # the answer and its end token


def test_weights_and_roles_are_visible_in_colour() -> None:
    entries = preview(table("q", "a"), Chat(tiny_tokenizer()), Objective.parse("sft"))
    out = io.StringIO()
    to_terminal(entries, Console(file=out, width=200, color_system="truecolor", force_terminal=True))
    assert "38;2;60;200;110ma" in out.getvalue()  # the answer in its full colour, underlined
    assert "38;2;28;56;89mq" in out.getvalue()  # the question at a third of its own


def test_few_colours_keep_the_roles_apart() -> None:
    entries = preview(table("q", "a"), Chat(tiny_tokenizer()), Objective.parse({"preset": "wit", "prompt_weight": 0.3}))
    out = io.StringIO()
    to_terminal(entries, Console(file=out, width=200, color_system="standard", force_terminal=True))
    assert "\x1b[4;32ma" in out.getvalue()  # green, underlined
    assert "\x1b[2;4;34mq" in out.getvalue()  # blue, faint, underlined
