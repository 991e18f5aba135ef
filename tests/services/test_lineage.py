"""Which rows made a model, and which models saw a row, against a store whose content is known."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cuvee.errors import UserError
from services import sql
from services.commands import looking
from services.lineage import find_model, history, of_model, responds
from services.row_lineage import is_row, of_row
from services.store import Store
from tests.services.world import CHOSEN, MATH, QA, World, listed


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return World(tmp_path_factory.mktemp("world")).store


def test_models_by_what_people_type(store: Store) -> None:
    arm = "small:policy=s3ft,seed=1"
    assert find_model(store, f"{arm}:special") == "train-special1"
    assert find_model(store, arm) == find_model(store, f"{arm}:general") == find_model(store, "train-s3ft1")
    assert find_model(store, f"{arm}:base") == "model-b1"
    for word, why in (
        ("small:policy=x:special", "no arm 'policy=x'"),
        (f"{arm}:other", "no stage 'other'"),
        ("select-a3", "select-a3 is no model"),
        ("large:main", "0 runs match"),
    ):
        with pytest.raises(UserError, match=why):
            find_model(store, word)


def test_the_history_goes_back_to_the_base(store: Store) -> None:
    base, stages = history(store, "train-gold0")
    assert (base, [stage.train for stage in stages]) == ("model-b1", ["train-special0", "train-gold0"])
    assert stages[1].tables == {"math": "select-a3", "qa": "respond-gold"}
    assert history(store, "model-b1") == ("model-b1", [])
    assert [responds(store, key) for key in ("respond-gold", "select-a3")] == [["respond-gold"], []]


def test_which_rows_how_often_and_with_whose_target(store: Store, tmp_path: Path) -> None:
    found = of_model(store, "train-s3ft0", tmp_path / "rows.parquet")
    assert (found["rows"], found["base"]) == (7, {"key": "model-b1", "model": "tiny"})
    special, general = found["stages"]
    assert [special[k] for k in ("stage", "exposures", "rows", "epochs", "tokens")] == ["special", 8, 4, 2, 80]
    (math,) = special["sources"]
    assert (math["most"], math["gold"]) == (2, 4)
    assert [(s["table"], s["own"], s["paraphrase"], s["gold"]) for s in general["sources"]] == [
        ("math", 0, 0, 1), ("qa", 1, 1, 1),
    ]  # fmt: skip
    said = {(t["table"], t["chosen"], t["verdict"], t["judge"]): t["rows"] for t in general["targets"]}
    assert said == {
        ("math", "gold", None, None): 1,
        ("qa", "gold", "different", "text:exact"): 1,
        ("qa", "model", "equivalent", "text:exact"): 1,
        ("qa", "paraphrase", "equivalent", "text:exact"): 1,
    }
    assert found["used_by"] == [{"run": "small-0123456789ab", "arm": "policy=s3ft,seed=0", "stage": "general"}]


def test_the_whole_list(store: Store, tmp_path: Path) -> None:
    of_model(store, "train-s3ft0", tmp_path / "rows.parquet")
    rows = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert [(r["stage"], r["epoch"], r["position"]) for r in rows] == [
        *(("special", i // 4, i) for i in range(8)), *(("general", 0, i) for i in range(4)),
    ]  # fmt: skip
    assert Counter(r["id"] for r in rows if r["stage"] == "special") == dict.fromkeys(CHOSEN, 2)
    texts = {(r["table"], r["chosen"]): r["text"] for r in rows if r["table"] == "qa"}
    assert (texts["qa", "model"], texts["qa", "paraphrase"]) == ("model 0", "paraphrase 1")
    assert texts["qa", "gold"] == "a " + QA["messages"][2].as_py()[0]["content"].removeprefix("Who is ")[:-1]


def test_which_models_saw_a_row(store: Store) -> None:
    row = QA["id"][0].as_py()
    found = of_row(store, row[:10])
    assert (found["id"], found["source"]) == (row, "qa")
    texts = {(s["list"], s["chosen"], s["text"], s["verdict"]) for s in found["seen"]}
    assert texts == {
        *((f"compose-s3ft{seed}", "model", "model 0", "equivalent") for seed in (0, 1)),
        *((f"compose-gold{seed}", "gold", found["gold"], "different") for seed in (0, 1)),
    }
    assert all(s["positions"] == [{"epoch": 0, "position": 0}] for s in found["seen"])
    models = {m["model"]: m["directly"] for m in found["models"]}
    assert models == {f"train-{policy}{seed}": True for policy in ("s3ft", "gold") for seed in (0, 1)}


def test_a_model_that_started_from_one_that_saw_it(store: Store) -> None:
    found = of_row(store, CHOSEN[1])
    assert {s["list"]: [(p["epoch"], p["position"]) for p in s["positions"]] for s in found["seen"]} == {
        "compose-special0": [(0, 1), (1, 6)], "compose-special1": [(0, 2), (1, 5)],
    }  # fmt: skip
    direct = {m["model"] for m in found["models"] if m["directly"]}
    assert direct == {"train-special0", "train-special1"}
    assert len(found["models"]) == 6
    (step,) = found["steps"]
    number = MATH["id"].to_pylist().index(CHOSEN[1])
    assert (step["label"], step["what"], step["figures"]) == ("math · select", "selected", {"quality": float(number)})


def test_a_model_inside_a_stage_saw_its_epochs_alone(tmp_path: Path) -> None:
    world = World(tmp_path)
    plan = world.add("compose-c1", "late · list", {"tokens.math": "render-a4"},
                       late=listed("late", [[(CHOSEN[0], 0)], [(CHOSEN[1], 0)]], "math"))  # fmt: skip
    world.add("train-t1", "late · train", {"init": "model-b1", "plan": plan, "tokens.math": "render-a4"})
    world.add("epoch-e1", "late@1 · model", {"train": "train-t1"}, info={"epoch": 1})
    found = of_model(world.store, "epoch-e1", tmp_path / "rows.parquet")
    assert [(s["train"], s["exposures"]) for s in found["stages"]] == [("train-t1", 1)]
    assert pq.read_table(tmp_path / "rows.parquet")["id"].to_pylist() == [CHOSEN[0]]
    saw = [{m["model"] for m in of_row(world.store, row)["models"]} & {"train-t1", "epoch-e1"} for row in CHOSEN[:2]]
    assert saw == [{"train-t1", "epoch-e1"}, {"train-t1"}]


def test_a_row_that_was_not_chosen(store: Store) -> None:
    (left,) = [i for i in sorted(MATH["id"].to_pylist()) if i not in CHOSEN][:1]
    found = of_row(store, left)
    assert (found["seen"], found["models"]) == ([], [])
    assert found["steps"][0]["what"] == "not selected"


def test_what_is_a_row(store: Store) -> None:
    assert [is_row(word) for word in ("0a1b2c", "f" * 32)] == [True, True]
    assert [is_row(word) for word in ("0a1b2", "f" * 33, "train-0a1b2c", "small:main", "0A1B2C")] == [False] * 5
    with pytest.raises(UserError, match="0 rows of this store"):
        of_row(store, "0" * 32)


def test_files_come_through_the_store_and_models_stay_where_they_are(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they must from an object store, where a model is gigabytes away."""
    remote = Store(store.url)
    monkeypatch.setattr(remote, "scratch", tmp_path)
    fetched: list[str] = []

    def fetch(prefix: str, folder: Path) -> Path:
        fetched.append(prefix)
        return store.objects.fetch(prefix, folder)

    monkeypatch.setattr(remote.objects, "fetch", fetch)
    assert of_model(remote, "train-s3ft0") == of_model(store, "train-s3ft0")
    assert not any("/train-" in prefix or "/model-" in prefix for prefix in fetched)


def test_the_command_quotes_what_comes_from_data(store: Store, tmp_path: Path) -> None:
    def said(*words: str) -> str:
        found = CliRunner().invoke(looking.lineage, [*words, "--store", store.url])
        assert found.exception is None, found.exception
        return found.output

    assert "qa: 1 targets model, verdict equivalent by text:exact 1" in said("small:policy=s3ft,seed=0:general")
    assert json.loads(said("train-s3ft0", "--json"))["model"] == "train-s3ft0"
    assert "epoch 0 position 1, epoch 1 position 6" in said(CHOSEN[1])
    assert f"rows  {tmp_path}/r.parquet" in said("train-s3ft0", "--rows", str(tmp_path / "r.parquet"))
    assert "no model of this store saw it" in said(next(i for i in MATH["id"].to_pylist() if i not in CHOSEN))
    assert looking.quoted("\x1b[31m\n") == '"\\u001b[31m\\n"'
    with pytest.raises(UserError, match="--rows is for a model"):
        raise CliRunner().invoke(looking.lineage, [CHOSEN[1], "--rows", "x", "--store", store.url]).exception  # type: ignore[misc]


def test_macros() -> None:
    with sql.connect() as connection:
        query = "SELECT answer([{'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': 'a'}]) AS text"
        assert sql.ask(connection, query) == [{"text": "a"}]
        assert sql.ask(connection, "SELECT answer([{'role': 'user', 'content': 'q'}]) AS text") == [{"text": None}]
