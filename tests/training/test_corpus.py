from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cuvee.errors import DataError
from tests.training.plain import make_rows, write_plan, write_reference, write_tokens
from training.corpus import build, digest, open_corpus


def test_rows_come_in_the_order_of_the_plan(tmp_path: Path) -> None:
    rows = make_rows(30)
    order = [int(i) for i in np.random.default_rng(0).permutation(30)][:20] * 2
    first = write_tokens(rows[:13], tmp_path / "first")
    second = write_tokens(rows[10:], tmp_path / "second", parts=3)
    build(write_plan(rows, order, tmp_path / "plan.parquet"), [first, second], tmp_path / "corpus")
    corpus = open_corpus(tmp_path / "corpus")
    assert len(corpus.lengths) == 20, "only rows of the plan are copied, each once"
    assert len(corpus.order) == 40
    for position, i in enumerate(order):
        row = int(corpus.order[position])
        part = slice(corpus.starts[row], corpus.starts[row + 1])
        assert (corpus.ids[part] == rows[i]["ids"]).all()
        assert (corpus.roles[part] == rows[i]["roles"]).all()
        assert (corpus.turns[part] == rows[i]["turns"]).all()
        assert corpus.sources[corpus.source[row]] == rows[i]["source"]
    assert corpus.scale is None
    assert np.isnan(corpus.weight).all()


def test_scales_weights_and_smoothing_of_some_rows(tmp_path: Path) -> None:
    rows = make_rows(5)
    rows[3]["scale"] = np.linspace(0, 1, len(rows[3]["ids"])).astype(np.float32)
    rows[1]["weight"], rows[2]["smoothing"] = 0.5, 0.1
    build(None, [write_tokens(rows, tmp_path / "tokens")], tmp_path / "corpus")
    corpus = open_corpus(tmp_path / "corpus")
    assert corpus.scale is not None
    assert (corpus.order == np.arange(5)).all()
    assert (corpus.scale[corpus.starts[3] : corpus.starts[4]] == rows[3]["scale"]).all()
    assert (corpus.scale[: corpus.starts[3]] == 1).all()
    np.testing.assert_array_equal(corpus.weight, np.array([np.nan, 0.5, np.nan, np.nan, np.nan], np.float32))
    np.testing.assert_array_equal(corpus.smoothing, np.array([np.nan, np.nan, 0.1, np.nan, np.nan], np.float32))


def test_a_row_of_the_plan_without_tokens_is_an_error(tmp_path: Path) -> None:
    rows = make_rows(6)
    plan = write_plan(rows, [0, 5, 2], tmp_path / "plan.parquet")
    with pytest.raises(DataError, match=rows[5]["id"]):
        build(plan, [write_tokens(rows[:4], tmp_path / "tokens")], tmp_path / "corpus")


def test_two_texts_under_one_name_are_an_error(tmp_path: Path) -> None:
    rows, others = make_rows(4), make_rows(4, seed=1)
    plan = write_plan(rows, [0, 1], tmp_path / "plan.parquet")
    folders = [write_tokens(rows, tmp_path / "one"), write_tokens(others, tmp_path / "two")]
    with pytest.raises(DataError, match="another number of tokens"):
        build(plan, folders, tmp_path / "corpus")


def test_a_folder_without_parts_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no Parquet parts"):
        build(None, [tmp_path], tmp_path / "corpus")


def test_log_probabilities_of_a_frozen_model_follow_their_rows(tmp_path: Path) -> None:
    rows = make_rows(20)
    values = [(np.arange(len(row["ids"])) + 100 * i).astype(np.float32) for i, row in enumerate(rows)]
    cut = [value[: 5 + i] for i, value in enumerate(values)]
    tokens = [write_tokens(rows[:12], tmp_path / "one"), write_tokens(rows[9:], tmp_path / "two", parts=3)]
    beside = [
        write_reference(rows[:12], cut[:12], tmp_path / "one.reference"),
        write_reference(rows[9:], cut[9:], tmp_path / "two.reference", parts=3),
    ]
    order = [int(i) for i in np.random.default_rng(0).permutation(20)[:15]]
    build(write_plan(rows, order, tmp_path / "plan.parquet"), tokens, tmp_path / "corpus", beside)
    corpus = open_corpus(tmp_path / "corpus")
    assert corpus.reference is not None
    assert corpus.referenced is not None
    for position, i in enumerate(order):
        row = int(corpus.order[position])
        found = corpus.reference[corpus.starts[row] : corpus.starts[row + 1]]
        known = len(cut[i])
        assert corpus.referenced[row] == known
        np.testing.assert_array_equal(found[:known], cut[i])
        assert np.isnan(found[known:]).all()


def test_log_probabilities_of_other_rows_are_refused(tmp_path: Path) -> None:
    rows = make_rows(6)
    values = [np.zeros(len(row["ids"]), np.float32) for row in rows]
    tokens = write_tokens(rows, tmp_path / "tokens", parts=1)
    beside = write_reference(rows[::-1], values[::-1], tmp_path / "reference", parts=1)
    with pytest.raises(DataError, match="other rows"):
        build(None, [tokens], tmp_path / "corpus", [beside])


def test_the_copy_is_keyed_by_its_files(tmp_path: Path) -> None:
    rows = make_rows(4)
    folder = write_tokens(rows, tmp_path / "tokens")
    plan = write_plan(rows, [0], tmp_path / "plan.parquet")
    before = digest(plan, [folder])
    assert before == digest(plan, [folder])
    assert before != digest(None, [folder])
    write_plan(rows, [0, 1], plan)
    assert before != digest(plan, [folder])
