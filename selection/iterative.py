"""Iterative selection: weights of clusters that follow what the model has not learnt (arXiv 2409.11378, section 2.2).

Each round draws its share of the budget, a model is trained on what is selected, answers its prompts, and a scorer says
by how much gold beats the model's answer. Clusters where gold wins by more gain weight. Only the arithmetic is here, as
pure functions over small tables: `init`, then for each round `propose`, and `update` with the scores of the round.

The paper's equation 6, w = s * w_before / sum(s), has no meaning for differences that are negative or sum to 0, and its
weights do not sum to 1. `update: paper` is its safe form: w = softmax(s) * w_before, renormalised. `update: released`
is the released code: w = softmax(s), without the product. What the paper leaves open:

- A cluster without a scored row keeps its weight (paper), or counts as an average cluster (released).
- An exhausted cluster has weight 0; what it cannot give the other clusters give, in proportion to their weights.
- Counts by cluster are the largest-remainder rounding of share * weight, not a multinomial draw: each round draws
  exactly its share, without the extra variance.
- Rounds share the budget by cumulative rounding: 10 rows in 3 rounds are 3, 3, 4.
- `start: equal` is the paper's w = 1/k, `start: size` the static kMQ; `first` and `later` say how rows are drawn inside
  a cluster.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, field_validator

from cuvee.amounts import Amount
from cuvee.config import Config
from cuvee.errors import DataError, UserError
from cuvee.rng import stream_seed
from selection.clustering import Clustering
from selection.eligible import gather
from selection.methods import META, SelectConfig, budget_of, or_nulls, quality_of, scores_of
from selection.responses import RespondConfig
from selection.sampling import apportion, draw_groups, log_weights, probabilities, softmax, uniforms
from selection.vectors import Vectors

Ints = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]
Inside = Literal["kmq", "uniform"]

STATE = pa.schema(
    [
        pa.field("round", pa.int32(), nullable=False),
        pa.field("cluster", pa.int32(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("available", pa.int64(), nullable=False),
        pa.field("weight", pa.float64(), nullable=False),
        pa.field("drawn", pa.int64()),
        pa.field("scored", pa.int64()),
        pa.field("failed", pa.int64()),
        pa.field("difference", pa.float64()),
    ]
)
"""One row a round and cluster: `available` and `weight` (sums to 1) before the round's draw, `drawn` by it, then the
mean `difference` over its `scored` rows, and the `failed` ones without a score."""


class LoopTrain(BaseModel):
    """`from`: each round's start. Other keys are training settings, read by whoever trains."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)
    from_: Literal["base", "previous"] = Field(
        default="base", alias="from", description="restart on all selected rows, or continue on the last checkpoint"
    )

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class IterateConfig(Config):
    amount: str = Field(description='rows or fraction of the pool, over all rounds: "10000 rows", "1/10"')
    rounds: int = Field(default=3, ge=1)
    first: Inside = Field(default="kmq", description="draw inside a cluster in round 1")
    later: Inside = Field(default="uniform", description="draw inside a cluster in later rounds")
    update: Literal["paper", "released"] = "paper"
    start: Literal["equal", "size"] = Field(default="equal", description="weights of round 1: 1/k, or cluster sizes")
    temperature: float = Field(default=1.0, gt=0, description="of the softmax over mean differences")
    train: LoopTrain = LoopTrain()
    respond: RespondConfig = RespondConfig(model="current", rows="selected")
    score: dict[str, Any] = Field(
        default={"perplexity": {"model": "current"}}, description="one scorer: perplexity, cosine, judge or reward"
    )
    clusters: int | Literal["auto"] | None = Field(default=None, description="k; default: see methods.clusters_of")
    quality: str | None = Field(default=None, description="for kmq: as in select")
    weighting: Literal["proportional", "softmax"] = Field(default="proportional", description="of quality, in draws")
    missing: Literal["error", "exclude"] = Field(default="error", description="what to do with rows without quality")

    @field_validator("amount", mode="before")
    @classmethod
    def _amount(cls, value: object) -> str:
        return str(Amount.parse(value))

    @field_validator("respond", mode="before")
    @classmethod
    def _inside(cls, value: Any) -> Any:
        return {"model": "current", "rows": "selected", **value} if isinstance(value, Mapping) else value

    def selection(self) -> SelectConfig:
        """The static choice with the same needs: for `methods.needs` and `methods.clusters_of`."""
        return SelectConfig(
            method="kmq" if "kmq" in (self.first, self.later) else "km_random",
            amount=self.amount,
            clusters=self.clusters,
            quality=self.quality,
            weighting=self.weighting,
            missing=self.missing,
        )


def init(
    table: pa.Table,
    config: IterateConfig,
    *,
    vectors: Vectors | None = None,
    clustering: Clustering | None = None,
) -> tuple[pa.Table, pa.Table]:
    """(selection, state) before round 1: every row with round -1, and the weights of round 1.

    The selection has the columns of `methods.select`. Raises UserError when there are fewer rows to draw than rounds.
    """
    static = config.selection()
    name = quality_of(static, scores_of(table.column_names))
    rows, order = gather(table, quality=name, missing=config.missing, vectors=vectors, clustering=clustering)
    cluster = rows.clusters()
    excluded = np.zeros(len(rows), dtype=bool) if rows.quality is None else np.isnan(rows.quality)
    budget = budget_of(static, int((~excluded).sum()))
    if budget < config.rounds:
        raise UserError(f"{budget} rows in {config.rounds} rounds", remedy="raise the amount or lower rounds")
    facts = {"config": config.model_dump(mode="json", by_alias=True), "rows": len(rows), "budget": budget}
    selection = pa.table(
        {
            "id": rows.ids,
            "source": table["source"].take(pa.array(order)),
            "row": pa.array(order),
            "cluster": pa.array(rows.cluster, pa.int32()),
            "distance": or_nulls(rows.distance, len(rows), pa.float32()),
            "quality": or_nulls(rows.quality, len(rows), pa.float64()),
            "weight": pa.nulls(len(rows), pa.float64()),
            "round": pa.array(np.full(len(rows), -1), pa.int32()),
            "selected": pa.array(np.zeros(len(rows), dtype=bool)),
        }
    ).replace_schema_metadata({META: json.dumps(facts | {"excluded": int(excluded.sum())})})
    sizes = np.bincount(cluster[~excluded], minlength=int(cluster.max()) + 1)
    start = sizes if config.start == "size" else sizes > 0
    return selection, _round(1, sizes, sizes, start / start.sum())


def share(config: IterateConfig, budget: int, number: int) -> int:
    """Rows of round `number` (from 1): the shares sum to the budget and differ by at most one."""
    return budget * number // config.rounds - budget * (number - 1) // config.rounds


def propose(selection: pa.Table, state: pa.Table, config: IterateConfig, *, seed: int) -> tuple[pa.Table, pa.Table]:
    """(selection, state) with the rows of the next round drawn from those not selected yet.

    Draws exactly the round's share, or all that is left. Raises ValueError when the round was drawn already, or none is
    left.
    """
    now, number = _last(state)
    if number > config.rounds or now["drawn"].null_count == 0:
        raise ValueError(f"round {number} of {config.rounds} has nothing to draw")
    facts = json.loads(selection.schema.metadata[META])
    cluster = selection["cluster"].to_numpy().astype(np.int64)
    free = np.flatnonzero(_free(selection))
    counts = apportion(
        now["weight"].to_numpy(),
        np.bincount(cluster[free], minlength=now.num_rows),
        share(config, facts["budget"], number),
    )
    inside = config.first if number == 1 else config.later
    logs = np.zeros(len(free))
    if inside == "kmq":
        logs = log_weights(selection["quality"].to_numpy()[free], config.weighting)
    noise = uniforms(selection["id"].take(pa.array(free)), stream_seed(seed, "iterate", number))
    chosen = free[draw_groups(logs, cluster[free], counts, noise)]
    rounds = selection["round"].to_numpy().copy()
    rounds[chosen] = number
    weight = selection["weight"].to_numpy().copy()
    weight[free] = now["weight"].to_numpy()[cluster[free]] * probabilities(logs, cluster[free])
    columns = {
        "weight": or_nulls(weight, len(weight), pa.float64()),
        "round": pa.array(rounds, pa.int32()),
        "selected": pa.array(rounds > 0),
    }
    for name, values in columns.items():
        selection = selection.set_column(selection.schema.get_field_index(name), name, values)
    return selection, _replace_last(state, now, drawn=counts)


def update(selection: pa.Table, state: pa.Table, differences: pa.Table, config: IterateConfig) -> pa.Table:
    """The state with the round's mean differences and the weights of the next.

    `differences` (id, difference): score of gold minus score of the model's answer, of selected rows; several of a row
    (n answers) count as their mean; null and NaN are counted as failed. Raises DataError for rows not selected.
    """
    now, number = _last(state)
    if now["drawn"].null_count:
        raise ValueError(f"round {number} has not been drawn")
    k = now.num_rows
    cluster, value = _by_row(selection, differences)
    good = np.isfinite(value)
    scored = np.bincount(cluster[good], minlength=k)
    sums = np.bincount(cluster[good], weights=value[good], minlength=k)
    mean = np.divide(sums, scored, out=np.full(k, np.nan), where=scored > 0)
    done = _replace_last(state, now, scored=scored, failed=np.bincount(cluster[~good], minlength=k), difference=mean)
    sizes, left = now["size"].to_numpy(), now["available"].to_numpy() - now["drawn"].to_numpy()
    weight = weights(mean, now["weight"].to_numpy(), config.update, config.temperature)
    weight = np.where(left > 0, weight, 0.0)
    return pa.concat_tables([done, _round(number + 1, sizes, left, weight / (weight.sum() or 1.0))])


def weights(mean: Reals, before: Reals, rule: Literal["paper", "released"], temperature: float = 1.0) -> Reals:
    """New weights of clusters (k,) from their mean differences (NaN: none scored) and the weights before.

    paper: softmax(mean) * before over the scored clusters, which keep the weight that they had together.
    released: softmax(mean) alone; an unscored cluster counts as the mean of the others.
    """
    scored = np.isfinite(mean)
    if not scored.any():
        return before.copy()
    if rule == "released":
        return softmax(np.where(scored, mean, mean[scored].mean()), temperature)
    new = before.copy()
    with np.errstate(divide="ignore"):
        new[scored] = softmax(np.log(before[scored]) + mean[scored] / temperature) * before[scored].sum()
    return new


def differences(gold: pa.Table, generated: pa.Table) -> pa.Table:
    """(id, difference), gold minus generated, from two tables (id, score); `generated` may have a row several times.

    A judge's or reward model's score is higher for the better answer, a cosine for the one that is nearer to its
    instruction. For the perplexity scorer the score is the log
    perplexity, as in the paper: S = log PPL(gold) - log PPL(generated), which rises with bad gold too: that scorer
    cannot filter noise. Raises DataError for a generation whose row has no gold score.
    """
    place = pc.index_in(generated["id"], value_set=gold["id"].combine_chunks())
    if place.null_count:
        raise DataError(f"{place.null_count} generations have no gold score", field="id")
    return pa.table({"id": generated["id"], "difference": pc.subtract(gold["score"].take(place), generated["score"])})


def _free(selection: pa.Table) -> npt.NDArray[np.bool_]:
    """Rows that can be drawn: not yet selected, and not without quality where others have one."""
    quality = selection["quality"]
    free = selection["round"].to_numpy() < 0
    return free if quality.null_count == len(quality) else free & quality.is_valid().to_numpy()


def _by_row(selection: pa.Table, differences: pa.Table) -> tuple[Ints, Reals]:
    """Cluster and mean difference of each scored row; NaN when none of a row's differences is a number."""
    values = differences["difference"].cast(pa.float64())
    values = pc.if_else(pc.is_finite(values), values, pa.scalar(None, pa.float64()))
    rows = (
        pa.table({"id": differences["id"].cast(pa.string()), "value": values})
        .group_by("id")
        .aggregate([("value", "mean")])
    )
    chosen = selection.filter(selection["selected"])
    place = pc.index_in(rows["id"], value_set=chosen["id"].combine_chunks())
    if place.null_count:
        raise DataError(f"{place.null_count} of {rows.num_rows} scored rows were not selected", field="id")
    cluster = chosen["cluster"].take(place).to_numpy().astype(np.int64)
    return cluster, pc.fill_null(rows["value_mean"], float("nan")).to_numpy()


def _last(state: pa.Table) -> tuple[pa.Table, int]:
    number = pc.max(state["round"]).as_py()
    return state.filter(pc.equal(state["round"], number)), number


def _replace_last(state: pa.Table, now: pa.Table, **columns: npt.NDArray[Any]) -> pa.Table:
    for name, values in columns.items():
        field = STATE.field(name)
        now = now.set_column(STATE.get_field_index(name), field, pa.array(values, field.type, from_pandas=True))
    return pa.concat_tables([state.slice(0, state.num_rows - now.num_rows), now])


def _round(number: int, sizes: Ints, available: Ints, weight: Reals) -> pa.Table:
    k = len(sizes)
    blank = [pa.nulls(k, STATE.field(name).type) for name in ("drawn", "scored", "failed", "difference")]
    return pa.table([np.full(k, number), np.arange(k), sizes, available, weight, *blank], names=STATE.names).cast(STATE)
