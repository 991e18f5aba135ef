"""The step that stores a frozen model's log-probabilities, with a stand-in for the engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cuvee.errors import DataError
from cuvee.protocols import Scored, ScoreRequest
from services.steps.base import Context
from services.steps.train import reference
from tests.training.plain import make_rows, write_tokens
from training.corpus import build, open_corpus

MAX_LEN = 20


def backwards(requests: Iterable[ScoreRequest]) -> Iterator[Scored]:
    """A token's log-probability is minus its id; answers come in another order than they were asked."""
    for request in reversed(list(requests)):
        each = tuple(-float(i) for i in request.ids[1:])
        yield Scored(request.id, request.draw, sum(each), len(each), each=each)


def context(tmp_path: Path, tokens: Path, score: Any) -> Context:
    out, work = tmp_path / "out", tmp_path / "work"
    out.mkdir()
    runtime: Any = SimpleNamespace(engine_for=lambda context, name: SimpleNamespace(score=score))
    inputs = {"model": tmp_path, "tokens": tokens}
    return Context({"max_len": MAX_LEN}, inputs, out, work, None, {}, runtime, lambda done, total: None)


def test_training_finds_each_token_of_each_row(tmp_path: Path) -> None:
    rows = make_rows(30)
    tokens = write_tokens(rows, tmp_path / "table" / "tokens", parts=3)
    found = reference(context(tmp_path, tmp_path / "table", backwards))
    assert found["rows"] == 30
    assert found["tokens"] == sum(min(len(row["ids"]), MAX_LEN) for row in rows)
    build(None, [tokens], tmp_path / "flat", [tmp_path / "out" / "reference"])
    corpus = open_corpus(tmp_path / "flat")
    assert corpus.reference is not None
    for i, row in enumerate(rows):
        mine = corpus.reference[corpus.starts[i] : corpus.starts[i + 1]]
        np.testing.assert_array_equal(mine[1:MAX_LEN], -row["ids"][1:MAX_LEN].astype(np.float32))
        assert np.isnan(mine[MAX_LEN:]).all()


def test_a_row_that_cannot_be_scored_ends_the_step(tmp_path: Path) -> None:
    def one_fails(requests: Iterable[ScoreRequest]) -> Iterator[Scored]:
        for number, answer in enumerate(backwards(requests)):
            yield Scored(answer.id, answer.draw, 0.0, 0, error="no memory") if number == 1 else answer

    write_tokens(make_rows(6), tmp_path / "table" / "tokens")
    with pytest.raises(DataError, match=r"no log-probabilities of row .*: no memory"):
        reference(context(tmp_path, tmp_path / "table", one_fails))
