"""Instructions that a program can check: IFEval (Zhou et al., 2311.07911), and a small set of our own.

The checkers are those of the package if-verifiable (the authors' code, maintained); nothing is judged here. Strict
checks the answer as it is, loose also without its first or last line and without asterisks. `prompt_strict` asks that
all instructions of a prompt are followed, `instruction_strict` is the share of them that are.

`instructions` is generated: topics crossed with constraints, in the same format. It avoids the constraints whose
checkers split sentences, which need a download of NLTK data (IFEval's items with these say so when it is missing), and
the one on capitals, whose checker takes short English in capitals for other languages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from cuvee.errors import MissingError
from cuvee.protocols import Completion, Decoding, Generate, Message
from evaluation import data
from evaluation.data import Row, Source
from evaluation.items import table
from evaluation.tasks.registry import register
from evaluation.tasks.task import (
    DEFAULTS,
    EvalOptions,
    Item,
    Kind,
    choose,
    collect,
    need,
    parse_rows,
    request,
    stamp,
)

METRICS = ("prompt_strict", "instruction_strict", "prompt_loose", "instruction_loose")

TOPICS = (
    "how bread is made",
    "the first day at a new job",
    "why the sky is blue",
    "a walk in the rain",
    "how to repair a bicycle tyre",
    "the history of paper",
    "a letter to a neighbour about noise",
    "what bees do in winter",
    "how a library works",
    "planning a small garden",
)

CONSTRAINTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("Do not use any commas.", "punctuation:no_comma", {}),
    ("Write in lowercase letters only.", "change_case:english_lowercase", {}),
    (
        "Answer with exactly 3 bullet points in markdown, such as * this point.",
        "detectable_format:number_bullet_lists",
        {"num_bullets": 3},
    ),
    ("Begin with a title in double angular brackets, such as <<title>>.", "detectable_format:title", {}),
    ("Put your whole answer in double quotation marks.", "startend:quotation", {}),
    (
        "End with the exact words: That is all.",
        "startend:end_checker",
        {"end_phrase": "That is all."},
    ),
    ("Use the words paper and water.", "keywords:existence", {"keywords": ["paper", "water"]}),
    ("Do not use the words very and good.", "keywords:forbidden_words", {"forbidden_words": ["very", "good"]}),
    (
        "Use at least 60 words.",
        "length_constraints:number_words",
        {"relation": "at least", "num_words": 60},
    ),
    (
        "Leave at least 2 placeholders in square brackets, such as [name].",
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
    ),
    ("Answer in JSON format only.", "detectable_format:json_format", {}),
)


def generated() -> list[Row]:
    """60 prompts in the format of IFEval: each topic with 6 constraints in turn, every third with a second one."""
    rows = []
    for t, topic in enumerate(TOPICS):
        for k in range(6):
            first = (6 * t + k) % len(CONSTRAINTS)
            chosen = [CONSTRAINTS[first]]
            second = CONSTRAINTS[(first + 5) % len(CONSTRAINTS)]
            if k % 3 == 2 and "json" not in second[1] + chosen[0][1]:
                chosen.append(second)
            rows.append(
                {
                    "key": f"{t}-{k}",
                    "prompt": " ".join([f"Write a short text about {topic}.", *(words for words, _, _ in chosen)]),
                    "instruction_id_list": [name for _, name, _ in chosen],
                    "kwargs": [dict(arguments) for _, _, arguments in chosen],
                }
            )
    return rows


def _parse(row: Row) -> Item:
    names, arguments = list(row["instruction_id_list"]), list(row["kwargs"])
    if not names or len(names) != len(arguments):
        raise ValueError("instruction_id_list: it differs in length from kwargs")
    return Item(
        str(row["key"]),
        question=row["prompt"],
        references=tuple(names),
        meta={"names": names, "arguments": arguments},
    )


@dataclass(frozen=True)
class InstructionTask:
    """Ask, and run the checkers on the answer."""

    name: str
    source: Source
    builtin: bool = False
    version: str = "1"
    kind: Kind = "instruction"
    metric: str = "prompt_strict"
    max_new_tokens: int = 512

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.source,)

    def items(self, options: EvalOptions = DEFAULTS) -> list[Item]:
        at = options.data.get(self.name, "")
        rows = generated() if self.builtin and not at else data.rows(self.source, at)
        return choose(parse_rows(self.name, rows, _parse), None, options, 0)

    def run(
        self,
        items: Sequence[Item],
        *,
        generate: Generate | None = None,
        score: object = None,
        judge: object = None,
        options: EvalOptions = DEFAULTS,
    ) -> pa.Table:
        model = need(generate, "generate", self.name)
        chat = options.chat is not False
        requests = {
            i.id: request(self.name, i.id, (Message(role="user", content=i.question),) if chat else (),
                          None if chat else f"{i.question}\n\n")
            for i in items
        }  # fmt: skip
        decoding = Decoding(max_new_tokens=options.max_new_tokens or self.max_new_tokens)
        done = collect(model, list(requests.values()), decoding)
        version = stamp(self.version, options, shots=0, chat=chat, extra=f"checkers={_checkers_version()}")
        rows: list[dict[str, Any]] = []
        for item in items:
            base = {
                "task": self.name,
                "version": version,
                "item": item.id,
                "prompt": item.question,
                "prediction": done[item.id].text,
                "reference": ", ".join(item.references),
                "tokens": done[item.id].tokens,
                "logprob": done[item.id].logprob,
            }
            rows += [{**base, **row} for row in check(item, done[item.id])]
        return table(rows)


def check(item: Item, completion: Completion) -> list[dict[str, Any]]:
    """The metric rows of one answer. A checker that cannot run leaves the item without scores, with the reason."""
    names = item.meta["names"]
    error = completion.error or "the generation failed" if completion.finish == "failed" else ""
    followed: list[tuple[str, bool, bool]] = []
    if not error:
        try:
            followed = _follow(item, completion.text)
        except LookupError as failure:
            error = f"NLTK data is missing: {' '.join(str(failure).split())[:120]}; python -m nltk.downloader punkt_tab"
        except (ValueError, TypeError, KeyError) as failure:
            error = f"the checker of {', '.join(names)} failed: {failure}"
    if error:
        return [{"metric": metric, "main": metric == METRICS[0], "score": None, "error": error} for metric in METRICS]
    strict, loose = [s for _, s, _ in followed], [x for _, _, x in followed]
    broken = [name for name, passed, _ in followed if not passed]
    cut = "cut at the token limit; " if completion.finish == "length" else ""
    reason = cut + (f"not followed: {', '.join(broken)}" if broken else "all followed")
    values = (float(all(strict)), sum(strict) / len(strict), float(all(loose)), sum(loose) / len(loose))
    return [
        {
            "metric": metric,
            "main": metric == METRICS[0],
            "score": value,
            "correct": bool(value) if metric.startswith("prompt") else None,
            "reason": reason,
        }
        for metric, value in zip(METRICS, values, strict=True)
    ]


def _follow(item: Item, answer: str) -> list[tuple[str, bool, bool]]:
    """(instruction, strict, loose) for each instruction; an empty answer follows none."""
    registry, evaluate = _library()
    names, arguments = item.meta["names"], item.meta["arguments"]
    if unknown := [name for name in names if name not in registry]:
        raise ValueError(f"no checker for {', '.join(unknown)}")
    results, _ = evaluate(answer, names, arguments, item.question, registry)
    if not results:
        return [(name, False, False) for name in names]
    return [(r.instruction_id, r.strict_pass, r.loose_pass) for r in results]


def _library() -> tuple[dict[str, Any], Any]:
    try:
        import langdetect
        from if_verifiable.common import evaluate_instructions
        from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT
    except ImportError as error:
        raise MissingError("IFEval's checkers are not installed", remedy="pip install if-verifiable") from error
    langdetect.DetectorFactory.seed = 0  # it guesses languages with random draws
    return INSTRUCTION_DICT, evaluate_instructions


def _checkers_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"if-verifiable-{version('if-verifiable')}"
    except PackageNotFoundError as error:
        raise MissingError("IFEval's checkers are not installed", remedy="pip install if-verifiable") from error


register(InstructionTask("ifeval", Source(hub="google/IFEval", split="train", rows=541)))
register(
    InstructionTask(
        "instructions",
        Source(package="if-verifiable", module="if_verifiable", rows=len(TOPICS) * 6),
        builtin=True,
    )
)
