"""Selectors: which rows of a pool, for a budget.

One function a method, over one `Eligible` of arrays in id order; what a method needs (vectors, clusters, quality) is
declared beside it, so that the plan makes the steps before it. Methods and readings are those of Diversify and Conquer
(arXiv 2409.11378); kMQ gives each cluster a budget proportional to its size, which is stratified sampling: the expected
mix of clusters is that of a random draw and only its variance falls. `allocation: equal`, as in the released code,
changes the mix. That is why the allocation is a setting of its own.

Every draw takes its noise from the row's id (`sampling.uniforms`), so a choice does not depend on the order of rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator, model_validator

from cuvee.amounts import Amount
from cuvee.config import Config
from cuvee.errors import DataError, UserError
from cuvee.registry import Registry
from cuvee.rng import stream, stream_seed
from selection import greedy
from selection.clustering import Clustering
from selection.eligible import Eligible, Ints, Reals, gather
from selection.sampling import (
    Allocation,
    allocate,
    apportion,
    draw_counts,
    draw_groups,
    leading,
    log_weights,
    probabilities,
    uniforms,
)
from selection.vectors import Vectors

Need = Literal["embedding", "cluster", "quality", "cosine"]

META = b"cuvee.select"


class SelectConfig(Config):
    method: str = Field(description="one of SELECTORS")
    amount: str = Field(description='rows or fraction: "500 rows", "1/10"')
    clusters: int | Literal["auto"] | None = Field(default=None, description="k; default: see clusters_of")
    quality: str | None = Field(default=None, description="a score's name, length or cosine; default: the only score")
    allocation: Allocation = Field(default="size", description="budget of a cluster: by its size, or equal")
    replacement: bool = Field(default=False, description="draw with replacement, as the paper's equation 3")
    weighting: Literal["proportional", "softmax"] = Field(default="proportional", description="of quality, in draws")
    temperature: float = Field(default=1.0, gt=0, description="of the softmax")
    missing: Literal["error", "exclude"] = Field(default="error", description="what to do with rows without quality")
    by: Literal["source"] | None = Field(default=None, description="one choice of `amount` from each source")
    min_per_source: int | None = Field(default=None, ge=1, description="at least so many rows of each source")
    threshold: float = Field(default=0.9, description="deita: largest cosine with a kept row")
    alpha: float = Field(default=0.5, ge=0, le=1, description="qdit: weight of quality against coverage")
    cover: int = Field(default=10_000, ge=1, description="qdit: rows of the pool, drawn, whose coverage is counted")

    @field_validator("amount", mode="before")
    @classmethod
    def _amount(cls, value: object) -> str:
        return str(Amount.parse(value))

    @model_validator(mode="after")
    def _consistent(self) -> SelectConfig:
        if self.by and self.min_per_source:
            raise ValueError("by: source already takes the amount from each source; leave out min_per_source")
        if self.replacement and self.method not in ("random", "km_random", "kmq"):
            raise ValueError(f"method {self.method} ranks rows and cannot draw with replacement")
        return self


@dataclass(frozen=True)
class Picked:
    """Chosen rows (m,), `counts` (m,) how often each, `weight` (n,) a row's probability in a single draw of its group.

    `weight` is None for methods that rank.
    """

    rows: Ints
    counts: Ints | None = None
    weight: Reals | None = None


@dataclass(frozen=True)
class Selector:
    """`pick(pool, budget, config, seed)`; `needs` is what the pool must bring."""

    pick: Callable[[Eligible, int, SelectConfig, int], Picked]
    needs: frozenset[Need] = frozenset()


SELECTORS: Registry[Selector] = Registry("selector")


def selector(name: str, *needs: Need) -> Callable[[Callable[..., Picked]], Callable[..., Picked]]:
    """Decorator: registers a pick function under `name`."""

    def add(pick: Callable[..., Picked]) -> Callable[..., Picked]:
        SELECTORS.register(name)(Selector(pick, frozenset(needs)))
        return pick

    return add


def needs(config: SelectConfig, scores: Collection[str] = ()) -> set[Need]:
    """What must be there before `select`, where the table already has `scores`.

    "cosine" asks for a column `score.cosine`, which a step `score: cosine` makes. Raises UserError when the method
    needs a quality, the config names none, and the table has not exactly one.
    """
    wanted = set(SELECTORS[config.method].needs)
    if "quality" in wanted:
        name = quality_of(config, scores)
        wanted.discard("quality")
        if name == "cosine" and name not in scores:
            wanted.add("cosine")
        elif name != "length":
            wanted.add("quality")
    return wanted


def quality_of(config: SelectConfig, scores: Collection[str] = ()) -> str | None:
    """The score that is read: the one that is named, else the only one that the table has; `longest` reads length."""
    if config.quality or "quality" not in SELECTORS[config.method].needs:
        return config.quality
    if config.method == "longest":
        return "length"
    if len(scores) == 1:
        return next(iter(scores))
    raise UserError(
        f"method {config.method} needs a quality, and the table has {', '.join(sorted(scores)) or 'no score'}",
        remedy="write quality: <name of a score>, or quality: length, or quality: cosine",
    )


def scores_of(columns: Iterable[str]) -> list[str]:
    """The names of a table's scores."""
    return [name.removeprefix("score.") for name in columns if name.startswith("score.")]


def columns_for(config: SelectConfig, columns: Sequence[str]) -> list[str]:
    """Those of a table's columns that `select` looks at: texts are many times larger than what decides."""
    name = quality_of(config, scores_of(columns))
    wanted = {"id", "target", "source", "cluster", "distance", f"score.{name}", str(name)}
    if name == "length" and not {"length", "score.length"} & set(columns):
        wanted.add("messages")
    return [column for column in columns if column in wanted]


def clusters_of(config: SelectConfig, rows: int) -> int | Literal["auto"]:
    """k for a pool of `rows`: as written, or one cluster for 20 chosen rows (the paper: 512 for 10,000) up to 1,024."""
    if config.clusters is not None:
        return config.clusters
    return int(np.clip(budget_of(config, rows) // 20, 2, min(1024, max(rows, 2))))


# methods


@selector("random")
def _random(pool: Eligible, budget: int, config: SelectConfig, seed: int) -> Picked:
    return _draw(pool, np.zeros(len(pool)), np.zeros(len(pool), dtype=np.int64), np.array([budget]), config, seed)


@selector("longest", "quality")
@selector("top", "quality")
def _top(pool: Eligible, budget: int, config: SelectConfig, seed: int) -> Picked:
    """The highest quality; `longest` is this with the length of the answer (arXiv 2402.04833)."""
    return Picked(np.lexsort((np.arange(len(pool)), -pool.scores()))[:budget])


@selector("km_closest", "embedding", "cluster")
def _km_closest(pool: Eligible, budget: int, config: SelectConfig, seed: int) -> Picked:
    group, counts = _budgets(pool, budget, config)
    if pool.distance is None:
        raise DataError("the clusters come without distances", field="distance")
    return Picked(leading(np.lexsort((np.arange(len(pool)), pool.distance, group)), group, counts))


@selector("km_random", "embedding", "cluster")
def _km_random(pool: Eligible, budget: int, config: SelectConfig, seed: int) -> Picked:
    return _draw(pool, np.zeros(len(pool)), *_budgets(pool, budget, config), config, seed)


@selector("kmq", "embedding", "cluster", "quality")
def _kmq(pool: Eligible, budget: int, config: SelectConfig, seed: int) -> Picked:
    logs = log_weights(pool.scores(), config.weighting, config.temperature)
    return _draw(pool, logs, *_budgets(pool, budget, config), config, seed)


@selector("k_center", "embedding")
def _k_center(pool: Eligible, budget: int, config: SelectConfig, seed: int) -> Picked:
    return Picked(greedy.k_center(pool.rows(), budget))


@selector("deita", "embedding", "quality")
def _deita(pool: Eligible, budget: int, config: SelectConfig, seed: int) -> Picked:
    return Picked(greedy.deita(pool.rows(), pool.scores(), budget, config.threshold))


@selector("qdit", "embedding", "quality")
def _qdit(pool: Eligible, budget: int, config: SelectConfig, seed: int) -> Picked:
    noise = uniforms(pool.ids, stream_seed(seed, "select", "cover"))
    cover = np.sort(np.argsort(noise, kind="stable")[: config.cover])
    return Picked(greedy.qdit(pool.rows(), pool.scores(), budget, config.alpha, cover))


def _budgets(pool: Eligible, budget: int, config: SelectConfig) -> tuple[Ints, Ints]:
    group = pool.clusters()
    sizes = np.bincount(group)
    if not config.replacement:
        return group, allocate(sizes, budget, config.allocation)
    shares = sizes if config.allocation == "size" else sizes > 0
    return group, apportion(shares, np.where(sizes > 0, budget, 0), budget)  # a row may come twice: no clipping


def _draw(pool: Eligible, logs: Reals, group: Ints, counts: Ints, config: SelectConfig, seed: int) -> Picked:
    weight = probabilities(logs, group)
    if config.replacement:
        often = draw_counts(logs, group, counts, stream(seed, "select", "draw"))
        rows = np.flatnonzero(often)
        return Picked(rows, often[rows], weight)
    return Picked(draw_groups(logs, group, counts, uniforms(pool.ids, stream_seed(seed, "select"))), None, weight)


# the whole


def select(
    table: pa.Table,
    config: SelectConfig,
    *,
    vectors: Vectors | None = None,
    clustering: Clustering | None = None,
    rng_seed: int,
) -> pa.Table:
    """The decision on every row, sorted by id.

    Columns: id, source, row (position in `table`; of the first target where a row has several), cluster, distance,
    quality, weight (probability in a single draw of its group; null for methods that rank), round (0 chosen, -1 not),
    selected, and count with replacement. `clustering` is in the order of `vectors`' ids; without it columns `cluster`
    and `distance` of the table are used. The schema's metadata says what was asked and drawn (key "cuvee.select").

    Raises UserError for settings that cannot be met, DataError for rows without vector, cluster or quality.
    """
    name = quality_of(config, scores_of(table.column_names))
    pool, order = gather(table, quality=name, missing=config.missing, vectors=vectors, clustering=clustering)
    source = table["source"].take(pa.array(order))
    allowed = np.arange(len(pool)) if pool.quality is None else np.flatnonzero(~np.isnan(pool.quality))
    picked = _choose(pool.at(allowed), source.take(pa.array(allowed)), config, rng_seed)
    return _table(pool, source, order, allowed, picked, config)


def budget_of(config: SelectConfig, rows: int, of: str = "rows") -> int:
    """Rows to choose of a pool of `rows`, all of them at most. Raises UserError for tokens, repeats and none."""
    amount = Amount.parse(config.amount)
    if amount.kind == "tokens" or (amount.kind == "repeat" and amount.value > 1):
        raise UserError(f"select takes rows or a fraction, not {config.amount!r}", remedy='write "500 rows" or "1/10"')
    budget = amount.rows_of(rows)
    if budget < 1:
        raise UserError(f"{config.amount!r} of {rows} {of} is none", remedy="raise the amount")
    if budget <= rows or config.replacement:
        return budget
    if config.by == "source":
        return rows  # A source that has fewer gives all.
    raise UserError(f"{config.amount} asked of {rows} {of}", remedy='lower the amount, or write "all"')


def _choose(pool: Eligible, source: pa.ChunkedArray, config: SelectConfig, seed: int) -> Picked:
    pick = SELECTORS[config.method].pick
    names = pc.unique(source).sort()
    codes = np.asarray(pc.index_in(source, value_set=names), dtype=np.int64)
    if config.by == "source":
        parts = []
        for code, rows in _members(codes, np.ones(len(names), dtype=bool)):
            budget = budget_of(config, len(rows), f"rows of source {names[code].as_py()!r}")
            parts.append((rows, pick(pool.at(rows), budget, config, seed)))
        return _merge(len(pool), parts)
    budget = budget_of(config, len(pool))
    if not config.min_per_source:
        return pick(pool, budget, config, seed)
    return _with_minimums(pool, codes, budget, config, seed)


def _with_minimums(pool: Eligible, codes: Ints, budget: int, config: SelectConfig, seed: int) -> Picked:
    """A source that the free choice leaves below its minimum gets exactly that; the rest is chosen from the others."""
    pick = SELECTORS[config.method].pick
    sizes = np.bincount(codes)
    least = np.minimum(sizes, config.min_per_source or 0)
    if least.sum() > budget:
        raise UserError(
            f"{len(sizes)} sources need {int(least.sum())} rows, the budget is {budget}",
            remedy="raise the amount or lower min_per_source",
        )
    short = np.zeros(len(sizes), dtype=bool)
    while True:
        free = np.flatnonzero(~short[codes])
        parts = [(rows, pick(pool.at(rows), int(least[s]), config, seed)) for s, rows in _members(codes, short)]
        left = budget - int(least[short].sum())
        if left and len(free):
            parts.append((free, pick(pool.at(free), left, config, seed)))
        merged = _merge(len(pool), parts)
        often = merged.counts if merged.counts is not None else np.ones(len(merged.rows))
        got = np.bincount(codes[merged.rows], weights=often, minlength=len(sizes))
        new = (got < least) & ~short
        if not new.any():
            return merged
        short |= new


def _members(codes: Ints, which: npt.NDArray[np.bool_]) -> Iterable[tuple[int, Ints]]:
    return ((int(code), np.flatnonzero(codes == code)) for code in np.flatnonzero(which))


def _merge(size: int, parts: list[tuple[Ints, Picked]]) -> Picked:
    """One choice from choices within disjoint sets of rows."""
    chosen = [members[part.rows] for members, part in parts]
    counts = [part.counts for _, part in parts if part.counts is not None]
    weight = np.full(size, np.nan)
    for members, part in parts:
        if part.weight is not None:
            weight[members] = part.weight
    return Picked(
        np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.int64),
        np.concatenate(counts) if counts else None,
        weight,
    )


def _table(
    pool: Eligible, source: pa.ChunkedArray, order: Ints, allowed: Ints, picked: Picked, config: SelectConfig
) -> pa.Table:
    n = len(pool)
    rows = allowed[picked.rows]
    selected = np.zeros(n, dtype=bool)
    selected[rows] = True
    weight = np.full(n, np.nan)
    if picked.weight is not None:
        weight[allowed] = picked.weight
    columns: dict[str, Any] = {
        "id": pool.ids,
        "source": source,
        "row": pa.array(order),
        "cluster": or_nulls(pool.cluster, n, pa.int32()),
        "distance": or_nulls(pool.distance, n, pa.float32()),
        "quality": or_nulls(pool.quality, n, pa.float64()),
        "weight": or_nulls(weight, n, pa.float64()),
        "round": pa.array(np.where(selected, 0, -1), pa.int32()),
        "selected": pa.array(selected),
    }
    if picked.counts is not None:
        count = np.zeros(n, dtype=np.int64)
        count[rows] = picked.counts
        columns["count"] = pa.array(count)
    facts = {
        "config": config.model_dump(mode="json"),
        "rows": n,
        "excluded": n - len(allowed),
        "drawn": len(rows) if picked.counts is None else int(picked.counts.sum()),
        "selected": len(rows),
    }
    return pa.table(columns).replace_schema_metadata({META: json.dumps(facts)})


def or_nulls(values: npt.NDArray[Any] | None, n: int, kind: pa.DataType) -> pa.Array:
    """The column, NaN as null; all null when there are no values."""
    return pa.nulls(n, kind) if values is None else pa.array(values, kind, from_pandas=True)
