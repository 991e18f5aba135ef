"""Each row's target: the model's own answer, its paraphrase of the gold, or the gold (S3FT, 2502.08130).

Training on a gold text pulls a model away from what it would say although it already answers rightly, and that costs
generality. So every policy is one order of preference over three sources of a target, with a judge between them (see
`policies.py`).

An own answer is generated from exactly the messages that are trained on. Where a prompt set words the question anew,
the row's messages carry the new wording in every policy, so that arms differ in their targets alone.

Work goes shard by shard in the order of ids. A finished shard is written before the next begins, so that a killed run
repeats only open ones; seeds come from row and draw, so that neither shards nor batches change a result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator, model_validator

from cuvee import prompts, rows
from cuvee.config import Config
from cuvee.errors import UserError
from cuvee.protocols import Decoding, Generate, Judge, Message, Score
from selection.candidates import Candidate, Item, candidates, logprobs
from selection.cleaning import Strip
from selection.policies import POLICIES, Policy, choices, picks
from selection.provenance import PROVENANCE, composition
from selection.shards import FolderShards, Progress, ShardStore

__all__ = ["POLICIES", "RespondConfig", "Responses", "composition", "respond"]

PROMPTS = Path(__file__).with_name("prompts")


class RespondConfig(Config):
    """`policy`: see `policies`. `model`: the recipe's model that answers. `judge`: any recipe form of a judge.

    `prompts`: a prompt set by name (`s3ft/gsm8k`) or a path ending in `.jinja`. `decoding`: "greedy" or settings.
    `n`: samples a row. `pick`: which accepted sample. `rows`: "all", or "selected" inside an iteration.
    `log_probs`: measure each candidate under the answering model.
    """

    policy: str = "s3ft"
    model: str | None = None
    judge: Any = None
    prompts: str | None = None
    decoding: Decoding = Decoding()
    n: int = Field(default=1, ge=1, le=1000)
    pick: Literal["first", "likeliest"] = "first"
    rows: Literal["all", "selected"] = "all"
    log_probs: bool = True

    @field_validator("decoding", mode="before")
    @classmethod
    def _greedy(cls, value: Any) -> Any:
        return {} if value == "greedy" else value

    @field_validator("policy")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            POLICIES[value]
        except UserError as error:
            raise ValueError(str(error)) from error
        return value

    @model_validator(mode="after")
    def _whole(self) -> RespondConfig:
        order = POLICIES[self.policy].order
        # Inside an iteration answers are only generated and then scored; nothing is accepted there.
        if order != ("gold",) and self.judge is None and self.rows == "all":
            raise ValueError(f"the policy {self.policy!r} accepts what a judge accepts: name a judge")
        if self.n > 1 and self.decoding.temperature == 0:
            raise ValueError(f"{self.n} greedy samples are the same sample: set decoding.temperature")
        if self.n > 1 and "model" not in order:
            raise ValueError(f"the policy {self.policy!r} takes no samples of the model: leave out n")
        return self

    @property
    def generates(self) -> bool:
        """Whether a model is needed."""
        return POLICIES[self.policy].order != ("gold",)


@dataclass(frozen=True)
class Responses:
    """`table`: the rows with their new targets, sorted. `responses`: provenance, `PROVENANCE`."""

    table: pa.Table
    responses: pa.Table


def respond(
    table: pa.Table,
    config: RespondConfig,
    *,
    generate: Generate | None,
    judge: Judge | None,
    score: Score | None = None,
    seed: int = 0,
    shards: ShardStore | Path | None = None,
    progress: Progress | None = None,
    shard_rows: int = 512,
) -> Responses:
    """Choose the targets of `table` (`cuvee.rows.SCHEMA`, one target a row).

    Raises UserError when ids repeat, or when the policy needs a model or a judge that is not given.
    """
    ids = table["id"].to_pylist()
    if len(set(ids)) != len(ids):
        raise UserError("the table has several targets for one row", remedy="respond before targets are multiplied")
    if config.generates and (generate is None or judge is None):
        raise UserError(
            f"the policy {config.policy!r} needs a model and a judge", remedy="set respond.model and .judge"
        )
    prompt = prompts.load(config.prompts or "generic", PROMPTS)
    store = FolderShards(shards) if isinstance(shards, Path) else shards
    table = rows.sort(table)
    done: list[pa.Table] = []
    for start in range(0, table.num_rows, shard_rows):
        part = table.slice(start, shard_rows)
        name = _shard_name(part["id"].to_pylist())
        found = store.get(name) if store is not None else None
        if found is None:
            items = [_item(row, prompt) for row in rows.records(part)]
            found = _respond(items, config, prompt, generate, judge, score if config.log_probs else None, seed)
            if store is not None:
                store.put(name, found)
        done.append(found)
        if progress is not None:
            progress(min(start + shard_rows, table.num_rows), table.num_rows)
    responses = pa.concat_tables(done) if done else PROVENANCE.empty_table()
    return Responses(_targets(table, responses, prompt), responses)


def _shard_name(ids: Sequence[str]) -> str:
    """From the ids, so that a shard of another table or size is never taken for this one."""
    return hashlib.blake2b("\n".join(ids).encode(), digest_size=12).hexdigest()


def _values(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a prompt file may use."""
    messages = rows.prompt_of(row["messages"])
    return {
        "question": next((m["content"] for m in reversed(messages) if m["role"] == "user"), ""),
        "gold": rows.answer_of(row["messages"]),
        "tests": tuple(row["tests"] or ()),
        "meta": json.loads(row["meta"]) if row["meta"] else {},
    }


def _item(row: Mapping[str, Any], prompt: prompts.Prompt) -> Item:
    values = _values(row)
    references = tuple(text for text in row["references"] or () if text and text.strip())
    return Item(
        id=row["id"],
        target=row["target"],
        source=row["source"],
        prompt=_asked(row, prompt, "prompt", values),
        question=values["question"],
        gold=prompt.text("gold", **values) if "gold" in prompt else values["gold"],
        references=references or ((values["gold"],) if values["gold"].strip() else ()),
        tests=values["tests"],
        meta=values["meta"],
        paraphrase=_asked(row, prompt, "paraphrase", values) if "paraphrase" in prompt else (),
    )


def _asked(
    row: Mapping[str, Any], prompt: prompts.Prompt, block: str, values: Mapping[str, Any]
) -> tuple[Message, ...]:
    """The row's prompt with its last user turn worded by a block of the prompt set; as it is without the block."""
    messages = rows.prompt_of(row["messages"])
    if block not in prompt:
        return messages
    last = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=len(messages))
    asked = Message(role="user", content=prompt.text(block, **values))
    return (*messages[:last], asked, *messages[last + 1 :])


def _respond(
    items: Sequence[Item],
    config: RespondConfig,
    prompt: prompts.Prompt,
    generate: Generate | None,
    judge: Judge | None,
    score: Score | None,
    seed: int,
) -> pa.Table:
    """Provenance of one shard."""
    policy = POLICIES[config.policy]
    strip: Sequence[Strip] = prompt.settings.get("strip", ("markers",))
    own: dict[str, list[Candidate]] = {}
    restated: dict[str, list[Candidate]] = {}
    if generate is not None and "model" in policy.order:
        own = candidates(
            items,
            "own",
            generate=generate,
            judge=judge,
            decoding=config.decoding,
            draws=config.n,
            seed=seed,
            strip=strip,
        )
    if generate is not None and "paraphrase" in policy.order:
        if "paraphrase" not in prompt:
            raise UserError(f"the prompt set {prompt.name!r} has no block paraphrase, which {config.policy!r} needs")
        rest = [item for item in items if not any(c.accepted for c in own.get(item.id, ()))]
        restated = candidates(
            rest,
            "paraphrase",
            generate=generate,
            judge=judge,
            decoding=config.decoding,
            draws=1,
            seed=seed,
            strip=strip,
        )
    records = [
        record
        for item in items
        for record in _records(item, own.get(item.id, []), restated.get(item.id, []), policy, config)
    ]
    constant = {
        "judge": _judge_name(judge, generate) if config.generates else None,
        "judge_version": judge.version if judge is not None and config.generates else None,
        "prompts": f"{prompt.name}@{prompt.version}",
        "decoding": json.dumps(config.decoding.model_dump(mode="json"), sort_keys=True) if config.generates else None,
        "model": generate.name if generate is not None and config.generates else None,
    }
    for record in records:
        record.update(constant)
    if score is not None and config.generates:
        _add_logprobs(records, {item.id: item for item in items}, score)
    return pa.Table.from_pylist(records, schema=PROVENANCE)


def _judge_name(judge: Judge | None, generate: Generate | None) -> str | None:
    """Marked when the answering model judges itself: it tends to accept its own answers."""
    if judge is None:
        return None
    asked = getattr(judge, "generators", ())
    return f"{judge.name} (self-judged)" if generate is not None and generate.name in asked else judge.name


def _records(
    item: Item, own: Sequence[Candidate], restated: Sequence[Candidate], policy: Policy, config: RespondConfig
) -> Iterator[dict[str, Any]]:
    """One record a target, in the order of target numbers."""
    picked = picks(item, own, policy, config.pick == "likeliest")
    paraphrase = restated[0] if restated else None
    for number, (chosen, text, shown) in enumerate(choices(item, picked, paraphrase, policy)):
        sample = shown or (own[0] if own else None)
        errors = [f"{name}: {c.error}" for name, c in (("own", sample), ("paraphrase", paraphrase)) if c and c.error]
        yield {
            "id": item.id,
            "target": number if policy.pick == "all" else item.target,
            "source": item.source,
            "own_answer": sample.text if sample else None,
            "own_finish": sample.finish if sample else None,
            "own_verdict": sample.decision if sample else None,
            "own_reason": sample.reason if sample else None,
            "own_draw": sample.draw if sample else None,
            "own_draws": len(own),
            "own_accepted": sum(c.accepted for c in own),
            "own_score": sample.score if sample else None,
            "logprob_own": sample.logprob if sample else None,
            "tokens_own": sample.tokens if sample else None,
            "paraphrase": paraphrase.text if paraphrase else None,
            "paraphrase_finish": paraphrase.finish if paraphrase else None,
            "paraphrase_verdict": paraphrase.decision if paraphrase else None,
            "paraphrase_reason": paraphrase.reason if paraphrase else None,
            "chosen": chosen,
            "text": text,
            "error": "; ".join(errors) or None,
            "gold": item.gold,
        }


def _add_logprobs(records: list[dict[str, Any]], items: Mapping[str, Item], score: Score) -> None:
    """Measure the candidates as training would see them: cleaned, after the row's own prompt."""
    texts: dict[tuple[str, str], tuple[Item, str, str]] = {}
    for number, record in enumerate(records):
        item = items[record["id"]]
        for name, column in (("own", "own_answer"), ("paraphrase", "paraphrase"), ("gold", "gold")):
            if record[column]:
                # Several targets of one row share their gold; each own sample is a text of its own.
                place = f"own {record['own_draw']}" if name == "own" else name
                texts[item.id, place] = (item, place, record[column])
                record[f"place_{name}"] = place
        record["number"] = number
    measured = logprobs(list(texts.values()), score)
    for record in records:
        for name in ("own", "paraphrase", "gold"):
            found = measured.get((record["id"], record.get(f"place_{name}", "")))
            if found is not None:
                record[f"logprob_{name}"], record[f"tokens_{name}"] = found[:2]


def _targets(table: pa.Table, responses: pa.Table, prompt: prompts.Prompt) -> pa.Table:
    """The rows of `table` with the texts of `responses`; every other column as it was."""
    index = {row_id: i for i, row_id in enumerate(table["id"].to_pylist())}
    kept = responses.filter(pc.is_valid(responses["text"]))
    taken = table.take(pa.array([index[row_id] for row_id in kept["id"].to_pylist()], pa.int64()))
    messages = []
    for row, text in zip(rows.records(taken), kept["text"].to_pylist(), strict=True):
        messages.append([*_asked(row, prompt, "prompt", _values(row)), Message(role="assistant", content=text)])
    taken = taken.set_column(
        taken.column_names.index("messages"),
        rows.SCHEMA.field("messages"),
        pa.array([[{"weight": None, **message} for message in turns] for turns in messages], rows.MESSAGES),
    )
    taken = taken.set_column(taken.column_names.index("target"), rows.SCHEMA.field("target"), kept["target"])
    return rows.sort(taken)
