"""Hold-out by prompt, before anything else is done to a table.

All answers of a prompt fall to the same side, and near duplicates of a prompt with it: a held-out row whose twin was
trained on measures memory. Groups are ordered by a hash of their prompts and taken whole until the asked number of
rows is reached; a group that would overshoot is passed over, so that the count is exact as long as small groups exist.
Nothing is drawn: the same prompts are held out in every run and under every seed, in whatever order the rows arrive.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cuvee.amounts import Amount
from cuvee.config import Config
from cuvee.errors import DataError
from cuvee.rows import prompt_hash
from selection.hygiene import asked_text, conversations
from selection.near import near_groups


class HoldoutConfig(Config):
    """`amount` of the table to hold out, in rows or as a fraction."""

    amount: Amount
    by: Literal["prompt"] = "prompt"
    near: float | None = Field(0.8, gt=0, le=1)
    """Prompts of at least this Jaccard similarity (word 5-grams) stay together; none compares them exactly only."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"amount": value} if isinstance(value, str) else value


def holdout(table: pa.Table, config: HoldoutConfig) -> tuple[pa.Table, pa.Table]:
    """(train, held). `held` has at most the asked rows; fewer only if no group of prompts fits the rest.

    Raises DataError when rows were asked and every group of prompts that belong together is larger than that.
    """
    wanted = min(config.amount.rows_of(table.num_rows), table.num_rows)
    group, key = _groups(table, config.near)
    size = np.bincount(group, minlength=len(key))
    chosen = np.zeros(len(key), dtype=bool)
    left = wanted
    for number in np.argsort(key, kind="stable"):
        if size[number] <= left:
            chosen[number] = True
            left -= int(size[number])
    if wanted and left == wanted:
        raise DataError(
            f"cannot hold out {wanted} rows: the smallest group of prompts that belong together has {size.min()}",
            remedy="ask for more rows, raise `near`, or set it to none to compare prompts exactly",
        )
    held = pa.array(chosen[group])
    return table.filter(pc.invert(held)), table.filter(held)


def _groups(table: pa.Table, near: float | None) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """The group of each row, shape (rows,), and a hash for each group that does not favour large ones."""
    text: dict[str, str] = {}
    hashes: list[str] = []
    for messages in conversations(table):
        hashes.append(prompt_hash(messages))
        text.setdefault(hashes[-1], asked_text(messages))
    prompts = sorted(text)
    together = np.arange(len(prompts), dtype=np.int64)
    if near is not None:
        together = near_groups([text[p] for p in prompts], near)
    firsts, number = np.unique(together, return_inverse=True)
    of_prompt = dict(zip(prompts, number.tolist(), strict=True))
    group = np.fromiter((of_prompt[h] for h in hashes), np.int64, len(hashes))
    # A hash of the group's first prompt, not that prompt's own: the least of many hashes is small.
    keys = [hashlib.blake2b(prompts[i].encode(), digest_size=8, person=b"holdout").digest() for i in firsts.tolist()]
    return group, np.asarray([int.from_bytes(k, "big") for k in keys], np.uint64)
