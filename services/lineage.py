"""Which rows made a model: in which stage, how often, and with whose target text.

A model's training names its list, its token tables and the model that it started from; a token table names the rows
that it renders, and these the step that wrote their answers. All of it is in the records of the artifacts, so the
answer needs no run's manifest, and holds as well for a model that several runs share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.errors import UserError, nearest
from services import sql
from services.runs import find_arms, find_run
from services.store import Store

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True)
class Stage:
    """One training of a model's history. `tables` has the artifact of the rows of each table of its mix; `epochs`: how
    many of them, where the model was taken before the end."""

    train: str
    listed: str
    tables: Mapping[str, str]
    epochs: int | None = None


def find_model(store: Store, word: str) -> str:
    """The key of a model: `RUN:ARM:STAGE`, `RUN:ARM` (its last stage), a key, or the beginning of one."""
    if ":" not in word:
        key = store.find(word)
        if key.split("-")[0] not in ("train", "epoch", "model"):
            raise UserError(f"{key} is no model", remedy="name an artifact of a train step, or RUN:ARM:STAGE")
        return key
    name, _, rest = word.partition(":")
    manifest = store.runs()[find_run(store, name)]
    names = [arm["name"] for arm in manifest["arms"]]
    arm_name, stage = (rest, "") if rest in names else rest.rpartition(":")[::2]
    arm = find_arms(manifest, arm_name)[0]
    models = arm["points"] | {label: parts["train"] for label, parts in arm["stages"].items()}
    stage = stage or next(reversed(arm["stages"] or arm["points"]), "")
    if stage not in models:
        raise UserError(
            f"the arm {arm['name']} of {manifest['name']} has no stage {stage!r}", remedy=nearest(stage, models)
        )
    if store.done(models[stage]) is None:
        raise UserError(f"{word} is not trained yet", remedy="run the recipe to its end")
    return str(models[stage])


def history(store: Store, key: str) -> tuple[str, list[Stage]]:
    """The key of the base model, and the trainings from it to `key`, the first one first."""
    stages: list[Stage] = []
    epochs = None
    while inputs := _inputs(store, key):
        if "train" in inputs:
            key, epochs = inputs["train"], _epoch(store, key)
            continue
        tables = {
            name.removeprefix("tokens."): _inputs(store, tokens)["rows"]
            for name, tokens in sorted(inputs.items())
            if name.startswith("tokens.")
        }
        stages.insert(0, Stage(key, inputs["plan"], tables, epochs))
        key, epochs = inputs["init"], None
    return key, stages


def responds(store: Store, key: str) -> list[str]:
    """The steps that wrote the answers of a table: the nearest `respond` on each of its ways back to a source."""
    done = store.done(key)
    if done is None:
        return []
    if done.step == "respond":
        return [key]
    before = [source for name, source in sorted(done.inputs.items()) if name == "rows" or name.startswith("rows.")]
    return list(dict.fromkeys(found for source in before for found in responds(store, source)))


def list_file(store: Store, listed: str) -> Path:
    """The Parquet file of a stage's list."""
    return next(iter(sorted(store.local(listed).glob("*.parquet"))))


def rows_folder(store: Store, key: str) -> Path:
    """The folder of a table's artifact."""
    return store.local(key) / "rows"


def of_model(store: Store, key: str, rows: Path | None = None) -> dict[str, Any]:
    """What `cuvee lineage MODEL` shows; `rows` is a Parquet file for the whole list, a row for every exposure."""
    base, stages = history(store, key)
    with sql.connect() as connection:
        connection.execute(_EXPOSURES)
        for number, stage in enumerate(stages):
            add_exposures(connection, store, stage, number)
        found = [
            {
                **sql.ask(connection, _TOTAL, [number])[0],
                "train": stage.train,
                "list": stage.listed,
                "path": store.where(stage.train),
                "sources": sql.ask(connection, _BY_SOURCE, [number]),
                "targets": sql.ask(connection, _BY_TARGET, [number]),
            }
            for number, stage in enumerate(stages)
        ]
        unique = connection.execute("SELECT count(DISTINCT id) FROM exposures").fetchall()[0][0]
        if rows is not None:
            connection.sql(
                'SELECT * RENAME (tbl AS "table") FROM exposures ORDER BY number, epoch, position'
            ).write_parquet(str(rows))
    done = store.done(base)
    return {
        "model": key,
        "path": store.where(key),
        "base": {"key": base, "model": done.info.get("model") if done else None},
        "used_by": used_by(store, key),
        "rows": unique,
        "stages": found,
    }


def add_exposures(connection: duckdb.DuckDBPyConnection, store: Store, stage: Stage, number: int) -> None:
    """Every position of a stage's list with its table, its target and where that came from, into `exposures`.

    A row that is in several tables of the mix is the one of the first table by name, as in training.
    """
    sql.view(connection, "list", list_file(store, stage.listed))
    connection.execute("DELETE FROM texts")
    for table, key in sorted(stage.tables.items()):
        sql.view(connection, "part", rows_folder(store, key))
        if answered := responds(store, key):
            sql.view(connection, "answered", *(store.local(each) / "responses.parquet" for each in answered))
        else:
            connection.execute("CREATE OR REPLACE VIEW answered AS FROM unanswered")
        connection.execute(
            """INSERT INTO texts
            SELECT ?, part.id, part.target, answer(messages), coalesce(chosen, 'gold'),
                   own_verdict, paraphrase_verdict, judge, judge_version, prompts, model
            FROM part LEFT JOIN answered USING (id, target)
            WHERE NOT EXISTS (FROM texts WHERE texts.id = part.id AND texts.target = part.target)
            -- Where two answers of a row were joined, the one whose text this is.
            QUALIFY row_number() OVER (PARTITION BY part.id, part.target
                ORDER BY answered.text = answer(messages) DESC NULLS LAST) = 1""",
            [table],
        )
    connection.execute(
        """INSERT INTO exposures
        SELECT ?, stage, ?, epoch, position, id, target, source, tokens, tbl,
               chosen, own_verdict, paraphrase_verdict, judge, judge_version, prompts, answered_by, text
        FROM list LEFT JOIN texts USING (id, target) WHERE epoch < coalesce(?, epoch + 1)""",
        [number, stage.train, stage.epochs],
    )


def used_by(store: Store, key: str) -> list[dict[str, str]]:
    """The runs and arms that have this model, and what it is there."""
    found = []
    for name, run in store.runs().items():
        for arm in run["arms"]:
            labels = [label for label, parts in arm["stages"].items() if parts["train"] == key]
            labels += [label for label, model in arm["points"].items() if model == key and label not in labels]
            found += [{"run": name, "arm": arm["name"], "stage": label} for label in labels]
    return found


def _epoch(store: Store, key: str) -> int:
    """The epoch at whose end a model was taken."""
    done = store.done(key)
    assert done is not None
    return int(done.info["epoch"])


def _inputs(store: Store, key: str) -> Mapping[str, str]:
    done = store.done(key)
    if done is None:
        raise UserError(f"{key} is not in the store {store.url}", remedy="run its recipe again; it was pruned")
    return done.inputs


_PROVENANCE = """chosen VARCHAR, own_verdict VARCHAR, paraphrase_verdict VARCHAR, judge VARCHAR, judge_version VARCHAR,
    prompts VARCHAR"""
_EXPOSURES = f"""
CREATE TABLE unanswered (id VARCHAR, target INTEGER, text VARCHAR, {_PROVENANCE}, model VARCHAR);
CREATE TABLE texts (tbl VARCHAR, id VARCHAR, target INTEGER, text VARCHAR, {_PROVENANCE}, answered_by VARCHAR);
CREATE TABLE exposures (number INTEGER, stage VARCHAR, train VARCHAR, epoch INTEGER, position BIGINT, id VARCHAR,
    target INTEGER, source VARCHAR, tokens INTEGER, tbl VARCHAR, {_PROVENANCE}, answered_by VARCHAR, text VARCHAR)
"""
_TOTAL = """
SELECT any_value(stage) AS stage, count(*) AS exposures, count(DISTINCT (id, target)) AS rows,
    count(DISTINCT epoch) AS epochs, coalesce(sum(tokens), 0)::BIGINT AS tokens
FROM exposures WHERE number = ?
"""
_BY_SOURCE = """
SELECT tbl AS "table", source, count(*) AS exposures, count(DISTINCT (id, target)) AS rows, max(times) AS most,
    sum(tokens)::BIGINT AS tokens,
    count(DISTINCT (id, target)) FILTER (chosen = 'model') AS own,
    count(DISTINCT (id, target)) FILTER (chosen = 'paraphrase') AS paraphrase,
    count(DISTINCT (id, target)) FILTER (chosen = 'gold') AS gold
FROM (SELECT *, count(*) OVER (PARTITION BY id, target) AS times FROM exposures WHERE number = ?)
GROUP BY tbl, source ORDER BY tbl, source
"""
_BY_TARGET = """
SELECT tbl AS "table", chosen, verdict(chosen, own_verdict, paraphrase_verdict) AS verdict, judge, judge_version,
    count(DISTINCT (id, target)) AS rows
FROM exposures WHERE number = ? GROUP BY ALL ORDER BY ALL
"""
