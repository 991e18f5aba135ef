"""What differs between two runs, or two arms, and whether the difference in scores is more than noise.

From cause to effect: the recipe (dotted keys), the rows of each table, the exact list of each stage, the weights, the
scores. A difference of scores is of paired items with an interval, and counts as more than noise if the interval does
not contain zero. That is a claim about these two models. A claim about the method needs seeds, so where both sides were
repeated with the same seeds, the paired t over seeds stands beside it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cuvee.errors import UserError
from services import sql
from services.lineage import list_file, rows_folder
from services.overlay import operation_name
from services.runs import arms_of, find_arms, find_run, variant
from services.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

Arm = dict[str, Any]
ABSENT = "(absent)"


@dataclass(frozen=True)
class Side:
    """A run with the arms of it that are meant."""

    word: str
    manifest: Mapping[str, Any]
    arms: list[Arm]

    @classmethod
    def parse(cls, store: Store, word: str) -> Side:
        """`RUN`, `RUN:ARM` or `RUN:VARIANT` (the arm with all of its seeds); a run by name or the beginning of it."""
        name, _, arm = word.partition(":")
        manifest = store.runs()[find_run(store, name)]
        return cls(word, manifest, find_arms(manifest, arm) if arm else manifest["arms"])


def diff(store: Store, a: str, b: str) -> dict[str, Any]:
    """Everything that `cuvee diff A B` says. B is compared with A: a difference is b minus a."""
    left, right = Side.parse(store, a), Side.parse(store, b)
    pairs = pairs_of(left, right)
    if not pairs:
        raise UserError(
            f"{left.word} and {right.word} have no arms of the same name and seed", remedy="name two arms as RUN:ARM"
        )
    met = [{arm["name"] for arm in side} for side in zip(*pairs, strict=True)]
    return {
        "a": {"run": left.manifest["name"], "status": left.manifest["status"]},
        "b": {"run": right.manifest["name"], "status": right.manifest["status"]},
        "arms": [compare_arms(store, left, right, *pair) for pair in pairs],
        "seeds": over_seeds(store, left, right, pairs),
        "only_a": [arm["name"] for arm in left.arms if arm["name"] not in met[0]],
        "only_b": [arm["name"] for arm in right.arms if arm["name"] not in met[1]],
    }


def pairs_of(left: Side, right: Side) -> list[tuple[Arm, Arm]]:
    """Arms to compare: one with one; those of one variant by seed; else those of the same name."""
    if len(left.arms) == len(right.arms) == 1:
        return [(left.arms[0], right.arms[0])]
    single = all(len({variant(arm) for arm in side.arms}) == 1 for side in (left, right))

    def name(arm: Arm) -> Any:
        return arm["seed"] if single else (variant(arm), arm["seed"])

    partners = {name(arm): arm for arm in right.arms}
    return [(arm, partners[name(arm)]) for arm in left.arms if name(arm) in partners]


def compare_arms(store: Store, left: Side, right: Side, a: Arm, b: Arm) -> dict[str, Any]:
    """One arm against another."""
    nodes = {**left.manifest["nodes"], **right.manifest["nodes"]}
    scores, refused = score_differences(store, a, b)
    return {
        "a": a["name"],
        "b": b["name"],
        "recipe": recipe_differences(settings_of(left, a), settings_of(right, b)),
        "tables": [table_difference(store, name, a, b) for name in _names(a["tables"], b["tables"])],
        "stages": [stage_difference(store, nodes, name, a, b) for name in _names(a["stages"], b["stages"])],
        "scores": scores,
        "not_compared": refused,
    }


# Recipe


def settings_of(side: Side, arm: Arm) -> dict[str, Any]:
    """The arm's recipe with its settings and variables put in, by dotted key; lists are one value.

    An operation of a table's `do` has the key by which profiles and `--set` reach it (`data.math.select.amount`).
    """
    arms = {each.name: each for each in arms_of(side.manifest)}
    if arm["name"] not in arms:
        raise UserError(
            f"the recipe of {side.manifest['name']} does not make the arm {arm['name']} any more",
            remedy="it was run by another version of Cuvee: compare with that one, or run it again",
        )
    silent = ("version", "name", "store", "tracking", "execution")
    return dict(_flat({k: v for k, v in arms[arm["name"]].document.document.items() if k not in silent}, ""))


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if path.startswith("data.") and path.endswith(".do") and isinstance(value, list):
        yield path, [_operation_label(item) for item in value]
        for label, item in zip(_distinct([_operation_label(item) for item in value]), value, strict=True):
            settings = item[operation_name(item)] if isinstance(item, Mapping) else {}
            yield from _flat(settings, f"{path.removesuffix('.do')}.{label}")
    elif isinstance(value, Mapping) and value:
        for key, child in value.items():
            yield from _flat(child, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _operation_label(item: Any) -> str:
    return str(item.get("as") or operation_name(item)) if isinstance(item, Mapping) else str(item)


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, with a number behind each that was there before."""
    return [
        name if names[:i].count(name) == 0 else f"{name}.{names[:i].count(name) + 1}" for i, name in enumerate(names)
    ]


def recipe_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Dotted keys with other values, in the order of the recipe."""
    keys = dict.fromkeys([*a, *b])
    return [
        {"key": key, "a": a.get(key, ABSENT), "b": b.get(key, ABSENT)}
        for key in keys
        if a.get(key, ABSENT) != b.get(key, ABSENT)
    ]


# Rows, lists, weights


def table_difference(store: Store, name: str, a: Arm, b: Arm) -> dict[str, Any]:
    """Rows by id: how many b lacks, adds, and has with another target text."""
    keys = [arm["tables"].get(name, {}).get("rows") for arm in (a, b)]
    found: dict[str, Any] = {"table": name, "same": keys[0] == keys[1], "a": keys[0], "b": keys[1]}
    if found["same"] or not _made(store, keys):
        return found
    with sql.connect() as connection:
        for side, key in zip("ab", keys, strict=True):
            sql.view(connection, side, rows_folder(store, key))
        return found | sql.ask(connection, _ROWS)[0]


def stage_difference(store: Store, nodes: Mapping[str, Any], name: str, a: Arm, b: Arm) -> dict[str, Any]:
    """The list (rows, how often, order) and the weights of a stage; `because`: the first steps that differ."""
    stages = [arm["stages"].get(name, {}) for arm in (a, b)]
    lists, models = ([stage.get(part) for stage in stages] for part in ("list", "train"))
    found: dict[str, Any] = {
        "stage": name,
        "same_list": lists[0] == lists[1],
        "same_weights": models[0] == models[1],
        "a": models[0],
        "b": models[1],
        "because": causes(nodes, *models),
    }
    if found["same_list"] or not _made(store, lists):
        return found
    with sql.connect() as connection:
        for side, key in zip("ab", lists, strict=True):
            sql.view(connection, side, list_file(store, key))
        return found | sql.ask(connection, _LISTS)[0]


def causes(nodes: Mapping[str, Any], a: str | None, b: str | None) -> list[str]:
    """Labels of the first steps on the way to two artifacts whose inputs are the same and whose keys are not."""
    known: dict[tuple[str, str], list[str]] = {}

    def visit(left: str, right: str) -> list[str]:
        if left == right:
            return []
        if (left, right) not in known:
            known[left, right] = _causes(nodes[left], nodes[right])
        return known[left, right]

    def _causes(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
        before, after = left["inputs"], right["inputs"]
        found = []
        for name in before:
            if name in after and nodes[before[name]]["step"] == nodes[after[name]]["step"]:
                found += visit(before[name], after[name])
            elif name in after:
                labels = [nodes[key]["label"] for key in (before[name], after[name])]
                found.append(f"{right['label']}: {name} is {labels[0]} and {labels[1]}")
        found += [f"{right['label']}: without {name}" for name in before if name not in after]
        found += [f"{right['label']}: with {name}" for name in after if name not in before]
        if not found and left["seed"] != right["seed"]:
            found = [f"{right['label']}: seed {left['seed']} and {right['seed']}"]
        return list(dict.fromkeys(found)) or [right["label"]]

    return visit(a, b) if a and b else []


def _made(store: Store, keys: Sequence[str | None]) -> bool:
    return all(key is not None and store.done(key) for key in keys)


def _names(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys([*a, *b]))


# Scores


def score_differences(store: Store, a: Arm, b: Arm) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Paired differences of every task at every point that both have, and what could not be compared.

    The last points of the two are compared whatever they are called. Evaluations of the same model are left out.
    """
    from evaluation.statistics import Paired, compare, holm

    found: list[tuple[dict[str, Any], Paired]] = []
    refused = []
    for point_a, point_b in point_pairs(a, b):
        before, after = (
            {m["task"]: m["key"] for m in arm["measures"] if m["point"] == point}
            for arm, point in ((a, point_a), (b, point_b))
        )
        label = point_a if point_a == point_b else f"{point_a} and {point_b}"
        for task in _names(before, after):
            keys = [side.get(task) for side in (before, after)]
            if keys[0] == keys[1]:
                continue
            if not _made(store, keys):
                why = f"not measured in {'a' if not _made(store, keys[:1]) else 'b'}"
                refused.append({"point": label, "task": task, "reason": why})
                continue
            try:
                results = compare(*(items(store, str(key)) for key in keys))
            except UserError as error:
                refused.append({"point": label, "task": task, "reason": str(error)})
                continue
            found += [({"point": label}, result) for result in results]
    adjusted = holm([result.p for _, result in found])
    records = [
        {**where, **result.__dict__, "p_holm": p, "more_than_noise": beyond_zero(result.low, result.high)}
        for (where, result), p in zip(found, adjusted, strict=True)
    ]
    return records, refused


def point_pairs(a: Arm, b: Arm) -> list[tuple[str, str]]:
    """Points of the same name, and the last of each."""
    left, right = ([*dict.fromkeys(m["point"] for m in arm["measures"])] for arm in (a, b))
    pairs = [(point, point) for point in left if point in right]
    return list(dict.fromkeys([*pairs, (left[-1], right[-1])])) if left and right else []


def items(store: Store, key: str) -> pa.Table:
    """The items of an evaluation."""
    import pyarrow.parquet as pq

    return pq.read_table(store.local(key) / "items.parquet")


def beyond_zero(low: float, high: float) -> bool | None:
    """Whether an interval excludes zero; None when there is no interval."""
    return None if math.isnan(low) or math.isnan(high) else not low <= 0 <= high


def over_seeds(store: Store, left: Side, right: Side, pairs: Sequence[tuple[Arm, Arm]]) -> list[dict[str, Any]]:
    """For variants that were repeated: the paired t over the seeds that both sides have, task by task.

    All seeds of a variant count, also when one arm was named.
    """
    from evaluation.statistics import paired_t

    found = []
    for names in dict.fromkeys((variant(a), variant(b)) for a, b in pairs):
        arms = [
            {arm["seed"]: arm for arm in side.manifest["arms"] if variant(arm) == name}
            for side, name in zip((left, right), names, strict=True)
        ]
        seeds = [seed for seed in arms[0] if seed in arms[1]]
        if len(seeds) < 2:
            continue
        for points in point_pairs(arms[0][seeds[0]], arms[1][seeds[0]]):
            means = [
                {seed: means_at(store, side[seed], point) for seed in seeds}
                for side, point in zip(arms, points, strict=True)
            ]
            tasks = [t for t in means[0][seeds[0]] if all(t in side[seed] for side in means for seed in seeds)]
            for task, metric in tasks:
                values = [[side[seed][task, metric] for seed in seeds] for side in means]
                if values[0] == values[1]:
                    continue
                result = paired_t([y - x for x, y in zip(*values, strict=True)])
                found.append(
                    {
                        "a": names[0],
                        "b": names[1],
                        "point": points[1],
                        "task": task,
                        "metric": metric,
                        "seeds": seeds,
                        "values_a": values[0],
                        "values_b": values[1],
                        **result.__dict__,
                        "more_than_noise": beyond_zero(result.low, result.high),
                    }
                )
    return found


def means_at(store: Store, arm: Arm, point: str) -> dict[tuple[str, str], float]:
    """(task, main metric) → mean, of the evaluations of a point that are there and have a score."""
    found: dict[tuple[str, str], float] = {}
    for measure in arm["measures"]:
        if measure["point"] == point and store.done(measure["key"]):
            summary = json.loads((store.local(measure["key"]) / "summary.json").read_text())
            found |= {(t, f["metric"]): float(f["mean"]) for t, f in summary.items() if f["mean"] is not None}
    return found


_ROWS = """
SELECT count(a.id) AS rows_a, count(b.id) AS rows_b,
    count(*) FILTER (b.id IS NULL) AS removed, count(*) FILTER (a.id IS NULL) AS added,
    count(*) FILTER (answer(a.messages) IS DISTINCT FROM answer(b.messages) AND a.id = b.id) AS other_target
FROM a FULL JOIN b ON a.id = b.id AND a.target = b.target
"""
_LISTS = """
WITH x AS (SELECT id, target, count(*) AS times FROM a GROUP BY ALL),
     y AS (SELECT id, target, count(*) AS times FROM b GROUP BY ALL)
SELECT (SELECT count(*) FROM a) AS rows_a, (SELECT count(*) FROM b) AS rows_b,
    count(*) FILTER (y.id IS NULL) AS removed, count(*) FILTER (x.id IS NULL) AS added,
    count(*) FILTER (x.times <> y.times) AS other_repeats,
    (SELECT count(*) FROM a JOIN b USING (epoch, position, id, target)) AS same_place
FROM x FULL JOIN y ON x.id = y.id AND x.target = y.target
"""
