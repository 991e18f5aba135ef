"""Which tokens carry loss: a table from role to weight.

| preset        | system, user, tool | assistant and its end token | template |
|---------------|--------------------|-----------------------------|----------|
| `sft`         | 0                  | 1                           | 0        |
| `im`          | 1                  | 1                           | 0        |
| `im_released` | 1                  | 1                           | 1, save the first header |
| `wit`         | `prompt_weight`    | `response_weight`           | 0        |
| `all`         | 1                  | 1                           | 1        |

`im` is the loss of Instruction Modelling as the paper writes it (arXiv 2405.14394, section 3). `im_released` is what
its released trainer computes: its header patterns are tokenised with the start token in front, so that they match at
position 0 only, and the assistant's pattern is misspelt as well. `wit` is Weighted Instruction Tuning
(arXiv 2507.07817), which finds low to moderate prompt weights best.

How weighted tokens are averaged is a choice of its own, see `cuvee.loss`; it decides how much an answer loses when its
prompt carries loss too. Everything that depends on the text is in the tokens table (`cuvee.tokens`), so all
objectives share one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from cuvee.chat import ASSISTANT, ROLE_NAMES
from cuvee.config import Config
from cuvee.loss import Normalise
from cuvee.registry import Registry

PROMPT_WEIGHT, RESPONSE_WEIGHT = 0.5, 1.0
"""Of `wit`, when the recipe does not say."""


class KL(Config):
    """A penalty for leaving the model that training starts from; see `training.regularise`."""

    weight: float = Field(1.0, gt=0, description="lambda: nats of penalty per nat of loss")
    variant: Literal["full", "target"] = Field(
        "full", description="full: KL over the vocabulary; target: the released code's difference at the target token"
    )


class Objective(Config):
    """What carries loss, and what is added to it. In a recipe a bare word is the preset: `objective: im`."""

    preset: str = Field("sft", description="sft, im, im_released, wit, all, or a registered one")
    weights: dict[str, float] | None = Field(None, description="role to weight in [0, 1]; overrides the preset's")
    prompt_weight: float | None = Field(None, ge=0, le=1, description="wit: of system, user and tool text")
    response_weight: float | None = Field(None, ge=0, le=1, description="wit: of the assistant's turns")
    turns: Literal["all", "last"] = Field("all", description="assistant turns that carry loss")
    normalise: Normalise = Field("token", description="average over tokens, over rows, or sum within rows")
    by_source: dict[str, Objective] = Field(default_factory=dict, description="another table for rows of a source")
    neftune: float = Field(0.0, ge=0, description="alpha of the noise on embeddings (arXiv 2310.05914); 0 is off")
    kl: KL | None = None
    smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing of rows that have none of their own")

    @classmethod
    def parse(cls, value: Any) -> Objective:
        """From what a recipe says: an Objective, a preset's name, a mapping, or nothing."""
        return cls.model_validate({} if value is None else value)

    @model_validator(mode="before")
    @classmethod
    def _bare_word(cls, value: Any) -> Any:
        return {"preset": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> Objective:
        if self.preset not in OBJECTIVES:
            raise ValueError(f"unknown preset {self.preset!r}; one of {', '.join(OBJECTIVES)}")
        for role, weight in (self.weights or {}).items():
            if role not in ROLE_NAMES:
                raise ValueError(f"weights: {role!r} is no role; one of {', '.join(ROLE_NAMES)}")
            if not 0 <= weight <= 1:
                raise ValueError(f"weights: {weight} for {role} is not between 0 and 1")
        if self.preset != "wit" and (self.prompt_weight is not None or self.response_weight is not None):
            raise ValueError(f"prompt_weight and response_weight belong to wit, not to {self.preset}")
        for source, other in self.by_source.items():
            if extra := sorted(other.model_fields_set - TABLE_FIELDS - _defaults(other)):
                raise ValueError(f"by_source: {source} may change the table of weights only, not {', '.join(extra)}")
        return self

    @property
    def frozen_beside(self) -> bool:
        """Whether the model that a stage starts from is kept in memory beside the trained one."""
        return self.kl is not None and self.kl.variant == "full"

    @property
    def reads_reference(self) -> bool:
        """Whether training reads each token's log-probability under the model that it starts from."""
        return self.kl is not None and self.kl.variant == "target"

    def for_source(self, source: str) -> Objective:
        """The objective whose table holds for rows of `source`."""
        return self.by_source.get(source, self)


TABLE_FIELDS = {"preset", "weights", "prompt_weight", "response_weight", "turns"}


def _defaults(objective: Objective) -> set[str]:
    """Fields that hold their default; a dumped objective has all of them set."""
    return {
        name
        for name, field in Objective.model_fields.items()
        if getattr(objective, name) == field.get_default(call_default_factory=True)
    }


Preset = Callable[[Objective, np.ndarray], np.ndarray]
"""(objective, roles (T,)) to weights (T,)."""

OBJECTIVES: Registry[Preset] = Registry("objective")


def _table(roles: np.ndarray, **weights: float) -> np.ndarray:
    return np.asarray([weights.get(name, 0.0) for name in ROLE_NAMES], np.float32)[roles]


@OBJECTIVES.register("sft")
def _sft(objective: Objective, roles: np.ndarray) -> np.ndarray:
    return _table(roles, assistant=1)


@OBJECTIVES.register("im")
def _im(objective: Objective, roles: np.ndarray) -> np.ndarray:
    return _table(roles, system=1, user=1, assistant=1, tool=1)


@OBJECTIVES.register("im_released")
def _im_released(objective: Objective, roles: np.ndarray) -> np.ndarray:
    weights = np.ones(len(roles), np.float32)
    weights[: int(np.argmax(roles != 0))] = 0
    return weights


@OBJECTIVES.register("wit")
def _wit(objective: Objective, roles: np.ndarray) -> np.ndarray:
    prompt = PROMPT_WEIGHT if objective.prompt_weight is None else objective.prompt_weight
    response = RESPONSE_WEIGHT if objective.response_weight is None else objective.response_weight
    return _table(roles, system=prompt, user=prompt, tool=prompt, assistant=response)


@OBJECTIVES.register("all")
def _all(objective: Objective, roles: np.ndarray) -> np.ndarray:
    return np.ones(len(roles), np.float32)


def token_weights(
    objective: Objective,
    *,
    source: str,
    roles: np.ndarray,
    turns: np.ndarray,
    scale: np.ndarray | None = None,
    weight: float | None = None,
) -> np.ndarray:
    """(T,) float32: the weight of each token as a target.

    `roles`, `turns` (T,) and `scale` (T,) as in the tokens table, `weight` of the row. With `turns: last` the
    assistant turns before the last one in `turns` are context; the prompt keeps what the preset gives it. The first
    token of a row has a weight here but is never a target.
    """
    own = objective.for_source(source)
    roles = np.asarray(roles)
    weights = OBJECTIVES[own.preset](own, roles)
    for role, value in (own.weights or {}).items():
        weights[roles == ROLE_NAMES.index(role)] = value
    answers = roles == ASSISTANT
    if own.turns == "last" and answers.any():
        turns = np.asarray(turns)
        weights[answers & (turns != turns[answers].max())] = 0
    if scale is not None:
        weights = weights * np.asarray(scale, np.float32)
    return weights if weight is None else weights * np.float32(weight)


@dataclass(frozen=True)
class Weighted:
    """A row with its weights, cut to the longest length; (T,) arrays. `cut` has the roles of what was cut off."""

    source: str
    ids: np.ndarray
    roles: np.ndarray
    turns: np.ndarray
    weights: np.ndarray
    cut: np.ndarray


def weighted_rows(tokens: pa.Table, objective: Objective, max_len: int | None = None) -> Iterator[Weighted]:
    """The rows of a table of `cuvee.tokens.TOKENS_SCHEMA` as they are trained: the first token has weight 0."""
    columns = ["source", "ids", "roles", "turns", "scale", "weight"]
    for batch in tokens.select(columns).to_batches(max_chunksize=4096):
        names = batch["source"].to_pylist()
        for i, source in enumerate(names):
            ids, roles, turns, scale = (_values(batch[name], i) for name in columns[1:5])
            part = slice(0, max_len)
            weights = token_weights(
                objective,
                source=source,
                roles=roles[part],
                turns=turns[part],
                scale=None if scale is None else scale[part],
                weight=batch["weight"][i].as_py(),
            )
            weights[:1] = 0
            yield Weighted(source, ids[part], roles[part], turns[part], weights, roles[len(weights) :])


def _values(column: pa.ListArray, i: int) -> Any:
    value = column[i].values
    return None if value is None else value.to_numpy(zero_copy_only=False)


def trained_share(tokens: pa.Table, objective: Objective, max_len: int | None = None) -> pa.Table:
    """By source and role: `tokens`, `trained` (weight above 0), `weight` (their sum), sorted.

    `tokens` is a table of `cuvee.tokens.TOKENS_SCHEMA`; rows are cut at `max_len` as in training.
    """
    sums: dict[str, np.ndarray] = {}
    for row in weighted_rows(tokens, objective, max_len):
        counts = sums.setdefault(row.source, np.zeros((3, len(ROLE_NAMES))))
        for line, values in enumerate((None, row.weights > 0, row.weights)):
            counts[line] += np.bincount(row.roles, values, minlength=len(ROLE_NAMES))
    entries = [
        {"source": source, "role": role, "tokens": int(n), "trained": int(trained), "weight": float(weight)}
        for source, counts in sorted(sums.items())
        for role, (n, trained, weight) in zip(ROLE_NAMES, counts.T, strict=True)
        if n
    ]
    schema = {"source": pa.string(), "role": pa.string()}
    numbers = {"tokens": pa.int64(), "trained": pa.int64(), "weight": pa.float64()}
    return pa.Table.from_pylist(entries, schema=pa.schema({**schema, **numbers}.items()))
