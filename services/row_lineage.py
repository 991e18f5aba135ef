"""Which models saw a row: in which stage, at which positions, with which target; and what became of it on the way.

All tables and lists of the store are looked at, since a row keeps its id wherever it goes: the same row in two recipes
is found in both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cuvee.errors import UserError
from services import sql
from services.lineage import list_file, responds, rows_folder, used_by
from services.store import Done, Store

if TYPE_CHECKING:
    import duckdb

SHORTEST = 6
"""Hex digits that a beginning of a row id needs."""
_FILES = {
    "selection.parquet": "selected",
    "removed.parquet": "removed",
    "clusters.parquet": "clustered",
    "responses.parquet": "answered",
    "held": "held out",
}
"""What a step that writes this says of its rows."""


def is_row(word: str) -> bool:
    """Whether a word can be a row id or the beginning of one."""
    return re.fullmatch(rf"[0-9a-f]{{{SHORTEST},32}}", word) is not None


def of_row(store: Store, word: str) -> dict[str, Any]:
    """What `cuvee lineage ROW` shows. UserError when no row, or more than one, has an id that begins so."""
    done = store.artifacts()
    with sql.connect() as connection:
        row = _find(connection, store, done, word)
        seen = [exposure for each in done if each.step == "compose" for exposure in _seen(connection, store, each, row)]
        steps = [step for each in done for step in _steps(connection, store, each, row)]
    labels = {key: node["label"] for run in store.runs().values() for key, node in run["nodes"].items()}
    lists: dict[str, int] = {}
    for exposure in seen:
        first = exposure["positions"][0]["epoch"]
        lists[exposure["list"]] = min(first, lists.get(exposure["list"], first))
    return {
        **row,
        "seen": seen,
        "models": list(_models(store, done, lists)),
        "steps": [{"label": labels.get(step["key"], step["step"]), **step} for step in steps],
    }


def _find(connection: duckdb.DuckDBPyConnection, store: Store, done: list[Done], word: str) -> dict[str, Any]:
    """id, source, prompt and gold answer of the one row that the word means, as it was loaded."""
    found: dict[str, dict[str, Any]] = {}
    for each in done:
        if each.step != "load":
            continue
        sql.view(connection, "rows", rows_folder(store, each.key))
        query = 'SELECT id, source, messages, answer(messages) AS gold, "references" FROM rows WHERE starts_with(id, ?)'
        found |= {row["id"]: row for row in sql.ask(connection, query, [word])}
    if len(found) != 1:
        some = f", e.g. {', '.join(sorted(found)[:3])}" if found else ""
        raise UserError(f"{len(found)} rows of this store have an id that begins with {word}{some}")
    (row,) = found.values()
    return row


def _seen(
    connection: duckdb.DuckDBPyConnection, store: Store, listed: Done, row: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """The row in one list: a record for each of its targets."""
    sql.view(connection, "list", list_file(store, listed.key))
    query = """
        SELECT stage, target, count(*) AS times, any_value(tokens) AS tokens,
               list({'epoch': epoch, 'position': position} ORDER BY epoch, position) AS positions
        FROM list WHERE id = ? GROUP BY stage, target ORDER BY target"""
    for found in sql.ask(connection, query, [row["id"]]):
        yield {"list": listed.key, **found, **_target(connection, store, listed, row["id"], found["target"])}


def _target(connection: duckdb.DuckDBPyConnection, store: Store, listed: Done, row: str, target: int) -> dict[str, Any]:
    """The text that was trained on, and who wrote it: of the first table of the mix that has the row."""
    for name, tokens in sorted(listed.inputs.items()):
        rendered = store.done(tokens)
        if not name.startswith("tokens.") or rendered is None or store.done(rendered.inputs["rows"]) is None:
            continue
        key = rendered.inputs["rows"]
        sql.view(connection, "rows", rows_folder(store, key))
        query = "SELECT answer(messages) AS text FROM rows WHERE (id, target) = (?, ?)"
        texts = sql.ask(connection, query, [row, target])
        if not texts:
            continue
        found = {"table": name.removeprefix("tokens."), **texts[0], "chosen": "gold", "verdict": None, "judge": None}
        if answered := responds(store, key):
            sql.view(connection, "answered", *(store.local(each) / "responses.parquet" for each in answered))
            query = """SELECT chosen, verdict(chosen, own_verdict, paraphrase_verdict) AS verdict, judge
                FROM answered WHERE (id, target) = (?, ?) ORDER BY text = ? DESC NULLS LAST LIMIT 1"""
            for answer in sql.ask(connection, query, [row, target, found["text"]]):
                found |= answer
        return found
    return {"table": None, "text": None, "chosen": None, "verdict": None, "judge": None}


def _models(store: Store, done: list[Done], lists: dict[str, int]) -> Iterator[dict[str, Any]]:
    """The models that were trained on one of the lists, and those that started from them.

    `lists` has the first epoch in which the row is in a list: a model that was taken earlier did not see it.
    """
    trained = {each.key: each for each in done if each.step == "train"}
    direct = {each.key for each in trained.values() if each.inputs["plan"] in lists}
    saw = set(direct)
    for each in done:  # oldest first, so that a model comes after what it started from
        if each.step == "train" and each.inputs["init"] in saw:
            saw.add(each.key)
        elif each.step == "epoch" and (whole := trained.get(each.inputs["train"])) is not None:
            early = lists.get(whole.inputs["plan"], each.info["epoch"]) < each.info["epoch"]
            direct |= {each.key} if early else set()
            saw |= {each.key} if early or whole.inputs["init"] in saw else set()
        if each.key in saw:
            yield {
                "model": each.key,
                "path": store.where(each.key),
                "directly": each.key in direct,
                "used_by": used_by(store, each.key),
            }


def _steps(
    connection: duckdb.DuckDBPyConnection, store: Store, done: Done, row: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """What one step says of the row, with the figures that it has."""
    if done.step in ("train", "model", "encoder", "evaluate", "embed", "render", "compose"):
        return
    folder = store.local(done.key)
    for name, what in _FILES.items():
        if not (folder / name).exists():
            continue
        sql.view(connection, "rows", folder / name)
        for found in sql.ask(connection, "SELECT * FROM rows WHERE id = ?", [row["id"]]):
            figures = {k: v for k, v in found.items() if k not in _ROW and v is not None}
            said = what if figures.pop("selected", True) else "not selected"
            yield {"key": done.key, "step": done.step, "what": said, "figures": figures}
    if done.step == "score":
        sql.view(connection, "rows", folder / "rows")
        for found in sql.ask(connection, "SELECT COLUMNS('score[.].*') FROM rows WHERE id = ?", [row["id"]]):
            yield {"key": done.key, "step": done.step, "what": "scored", "figures": found}


_ROW = ("id", "source", "row", "messages", "references", "tests", "meta")
