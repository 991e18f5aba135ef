"""Tasks whose answer is text that a judge decides: math, code, short answers, and the rows of a recipe's own table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from cuvee import rows as cuvee_rows
from cuvee.protocols import Case, Decoding, Generate, Judge, Message, Request
from evaluation import data
from evaluation.data import Row, Source
from evaluation.items import concat, table
from evaluation.tasks.task import (
    DEFAULTS,
    EvalOptions,
    Item,
    Kind,
    choose,
    collect,
    judged_row,
    need,
    parse_rows,
    request,
    shown,
    stamp,
    verdicts,
)


def as_is(text: str) -> str:
    return text


@dataclass(frozen=True)
class GenerationTask:
    """Ask (chat or plain text), generate, extract, judge.

    `parse` reads a row in the hub's format; `chat_form` and `text_form` write the question in the two ways of asking;
    `extract` takes out of the answer what the judge shall see; `judge` is its recipe form. Rows come from `source`, or
    from `load` where they are generated.
    """

    name: str
    kind: Kind
    metric: str
    source: Source
    parse: Callable[[Row], Item | None]
    judge: Any
    version: str = "1"
    load: Callable[[], list[Row]] | None = None
    chat_form: Callable[[str], str] = as_is
    text_form: Callable[[str], str] = as_is
    extract: Callable[[str], str] = as_is
    max_new_tokens: int = 512
    stop: tuple[str, ...] = ()
    shots: int = 0
    chat: bool = True

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.source,)

    def items(self, options: EvalOptions = DEFAULTS) -> list[Item]:
        at = options.data.get(self.name, "")
        found = self.load() if self.load and not at else data.rows(self.source, at)
        return choose(parse_rows(self.name, found, self.parse), None, options, self._shots(options))

    def ask(self, item: Item, options: EvalOptions) -> Request:
        """Examples are earlier turns of the conversation or, in plain text, blocks before the question."""
        if self._chat(options):
            messages: list[Message] = []
            for example in item.examples:
                messages.append(Message(role="user", content=self.chat_form(example.question)))
                messages.append(Message(role="assistant", content=example.answer))
            return request(self.name, item.id, [*messages, Message(role="user", content=self.chat_form(item.question))])
        blocks = [f"{self.text_form(example.question)} {example.answer}" for example in item.examples]
        return request(self.name, item.id, text="\n\n".join([*blocks, self.text_form(item.question)]))

    def run(
        self,
        items: Sequence[Item],
        *,
        generate: Generate | None = None,
        score: object = None,
        judge: Judge | None = None,
        options: EvalOptions = DEFAULTS,
    ) -> pa.Table:
        model = need(generate, "generate", self.name)
        chat = self._chat(options)
        decoding = Decoding(
            max_new_tokens=options.max_new_tokens or self.max_new_tokens, stop=() if chat else self.stop
        )
        requests = {item.id: self.ask(item, options) for item in items}
        judge = judge or _build(self.judge)
        version = stamp(
            self.version, options, shots=self._shots(options), chat=chat, extra=f"judge={judge.name}@{judge.version}"
        )
        base = {"task": self.name, "version": version, "metric": self.metric}
        return judge_items(items, requests, model, judge, decoding, base, self.extract)

    def _shots(self, options: EvalOptions) -> int:
        return self.shots if options.shots is None else options.shots

    def _chat(self, options: EvalOptions) -> bool:
        return self.chat if options.chat is None else options.chat


def judge_items(
    items: Sequence[Item],
    requests: Mapping[str, Request],
    generate: Generate,
    judge: Judge,
    decoding: Decoding,
    base: Mapping[str, Any],
    extract: Callable[[str], str] = as_is,
) -> pa.Table:
    """Generate and judge; one row an item. Failed generations are not judged and have no score."""
    done = collect(generate, list(requests.values()), decoding)
    cases = [
        Case(
            item.id,
            item.question,
            extract(done[item.id].text),
            item.references,
            item.tests,
            item.meta,
        )
        for item in items
        if done[item.id].finish != "failed"
    ]
    decided = verdicts(judge, cases)
    return table(
        {
            **base,
            "item": item.id,
            "group": item.group,
            "prompt": requests[item.id].text or shown(requests[item.id].messages),
            "reference": item.references[0] if item.references else "\n".join(item.tests),
            **judged_row(done[item.id], decided.get(item.id)),
        }
        for item in items
    )


def judged(
    rows: pa.Table,
    *,
    generate: Generate,
    judge: Judge,
    decoding: Decoding | None = None,
    task: str = "judged",
) -> pa.Table:
    """Judged accuracy on held-out rows of a recipe's own table (`cuvee.rows.SCHEMA`), one task a source.

    The task of an item is `<task>/<source>`, its id the row's. Rows of one prompt with several targets are asked once.
    """
    decoding = decoding or Decoding()
    items: dict[str, Item] = {}
    requests: dict[str, Request] = {}
    tasks: dict[str, str] = {}
    for row in cuvee_rows.records(rows):
        prompt = cuvee_rows.prompt_of(row["messages"])
        tasks[row["id"]] = f"{task}/{row['source']}"
        requests[row["id"]] = request(task, row["id"], prompt)
        items[row["id"]] = Item(
            row["id"],
            question=shown(prompt),
            references=tuple(row["references"] or ()),
            tests=tuple(row["tests"] or ()),
            meta=json.loads(row["meta"]) if row["meta"] else {},
        )
    version = f"1 chat=on max_new_tokens={decoding.max_new_tokens} judge={judge.name}@{judge.version}"
    base = {"task": task, "version": version, "metric": "accuracy"}
    # One call for all sources, since an engine batches better; then each row gets the task of its source.
    result = judge_items(list(items.values()), requests, generate, judge, decoding, base)
    named = pa.array([tasks[item] for item in result["item"].to_pylist()], pa.string())
    return concat([result.set_column(0, result.schema.field("task"), named)])


def _build(form: Any) -> Judge:
    from evaluation.judges import JudgeConfig, build

    return build(JudgeConfig.parse(form))
