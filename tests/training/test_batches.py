from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee.errors import DataError
from tests.training.plain import make_rows, write_tokens
from training.batches import Batches, Micro, ahead, deal, grouped
from training.corpus import Corpus, build, open_corpus
from training.objective import Objective, token_weights
from training.settings import TrainConfig

CONFIG = TrainConfig(global_batch=8, max_len=64)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    made = make_rows(50)
    made[4]["weight"], made[5]["weight"], made[6]["smoothing"] = 0.25, 0.0, 0.2
    return made


@pytest.fixture(scope="module")
def corpus(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    build(None, [write_tokens(rows, folder / "tokens")], folder / "flat")
    return open_corpus(folder / "flat")


def batches(corpus: Corpus, config: TrainConfig = CONFIG, **given: Any) -> Batches:
    objective = given.pop("objective", Objective())
    options = {"normalise": objective.normalise, "seed": 0, "micro_batch": 3, **given}
    return Batches(corpus, partial(token_weights, objective), config, **options)


def all_ranks(corpus: Corpus, step: int, world: int, config: TrainConfig = CONFIG, **given: Any) -> list[Micro]:
    ranks = [batches(corpus, config, world=world, rank=rank, **given).micros(step) for rank in range(world)]
    assert len({len(micros) for micros in ranks}) == 1, "a rank with fewer micro-batches would leave others waiting"
    return [micro for micros in ranks for micro in micros]


def tokens_of(micros: list[Micro]) -> list[tuple[int, int, int, float]]:
    """(row, position, id, share) of all tokens, in an order that does not depend on the arrangement."""
    found = []
    for micro in micros:
        for line, column in zip(*np.nonzero(micro.row >= 0), strict=True):
            row = int(micro.rows[micro.row[line, column]])
            place = line, column
            found.append((row, int(micro.positions[place]), int(micro.ids[place]), float(micro.share[place])))
    return sorted(found)


@settings(max_examples=40, deadline=None)
@given(
    world=st.integers(1, 5),
    micro_batch=st.integers(1, 5),
    packing=st.booleans(),
    flat=st.booleans(),
    step=st.integers(0, 6),
    normalise=st.sampled_from(["token", "row", "sum"]),
)
def test_a_batch_is_the_same_however_it_is_arranged(
    corpus: Corpus, world: int, micro_batch: int, packing: bool, flat: bool, step: int, normalise: Any
) -> None:
    objective = Objective(normalise=normalise)
    plain = tokens_of(all_ranks(corpus, step, 1, objective=objective, micro_batch=8))
    config = CONFIG.model_copy(update={"packing": packing})
    other = all_ranks(corpus, step, world, config, objective=objective, micro_batch=micro_batch, flat=flat)
    assert tokens_of(other) == plain
    assert {row for row, *_ in plain} == set(batches(corpus).rows(step).tolist())
    assert sum(micro.tokens for micro in other) == len(plain)
    for micro in other:
        assert (micro.share[micro.row < 0] == 0).all()
        if packing and not flat:
            assert micro.ids.shape[1] <= config.max_len


@pytest.mark.parametrize("normalise", ["token", "row", "sum"])
def test_shares_are_the_losses_that_cuvee_loss_defines(corpus: Corpus, normalise: Any) -> None:
    import torch

    from cuvee.loss import denominator, weighted_sum

    rng = np.random.default_rng(0)
    objective = Objective(normalise=normalise, preset="im")
    for packing in (False, True):
        config = CONFIG.model_copy(update={"packing": packing, "global_batch": 16})
        micros = all_ranks(corpus, 0, 1, config, objective=objective, micro_batch=4)
        total = count = shares = 0.0
        for micro in micros:
            nll = torch.tensor(rng.uniform(1, 5, micro.ids.shape), dtype=torch.float64)
            # What the loss module takes: weights with the first token of a row included, and the rows' own weights.
            index, weights = torch.tensor(micro.row), torch.tensor(micro.weight)
            own = torch.tensor(np.nan_to_num(corpus.weight[micro.rows], nan=1.0))
            total += float(weighted_sum(nll, weights, normalise, index, own))
            count += float(denominator(weights, normalise, index, own))
            shares += float((nll * torch.tensor(micro.share)).sum())
        assert shares == pytest.approx(total / count, rel=1e-6)


def test_the_first_token_of_a_row_is_never_a_target(corpus: Corpus) -> None:
    config = CONFIG.model_copy(update={"packing": True})
    for micro in all_ranks(corpus, 1, 2, config, objective=Objective(preset="all")):
        assert (micro.weight[micro.positions == 0] == 0).all()


def test_positions_restart_at_rows_and_nowhere_else(corpus: Corpus) -> None:
    config = CONFIG.model_copy(update={"packing": True})
    for micro in all_ranks(corpus, 0, 1, config):
        for positions, row in zip(micro.positions, micro.row, strict=True):
            restarts = np.flatnonzero(np.diff(positions) != 1) + 1
            changes = np.flatnonzero(np.diff(row) != 0) + 1
            assert set(restarts) <= set(changes)
            assert set(changes[row[changes] >= 0]) <= set(restarts)


def test_over_long_rows_are_cut_or_dropped_and_counted(corpus: Corpus) -> None:
    long = int((corpus.lengths > 20).sum())
    cut = batches(corpus, TrainConfig(global_batch=8, max_len=20))
    assert (cut.truncated, cut.dropped, len(cut.order)) == (long, 0, 50)
    assert max(micro.ids.shape[1] for step in range(cut.steps) for micro in cut.micros(step)) == 20
    dropped = batches(corpus, TrainConfig(global_batch=8, max_len=20, over_long="drop"))
    assert (dropped.truncated, dropped.dropped, len(dropped.order)) == (0, long, 50 - long)
    with pytest.raises(DataError, match="no row is left"):
        batches(corpus, TrainConfig(max_len=2, over_long="drop"))


def test_smoothing_of_rows_overrides_the_objective(corpus: Corpus) -> None:
    micro = batches(corpus, smoothing=0.05, micro_batch=8).micros(0)[0]
    assert micro.smoothing is not None
    of_row = {int(micro.rows[r]): float(micro.smoothing[micro.row == r][0]) for r in range(len(micro.rows))}
    assert of_row == pytest.approx({row: 0.2 if row == 6 else 0.05 for row in range(8)})


@given(st.lists(st.integers(1, 500), min_size=1, max_size=900), st.integers(1, 9), st.integers(0, 99))
def test_grouping_permutes_rows_inside_windows(lengths: list[int], batch: int, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(lengths))
    out = grouped(order, np.array(lengths), batch, seed)
    window = 32 * batch
    for start in range(0, len(lengths) // batch * batch, window):
        stop = min(start + window, len(lengths) // batch * batch)
        assert sorted(out[start:stop]) == sorted(order[start:stop])
    assert (out == grouped(order, np.array(lengths), batch, seed)).all()
    assert (out[len(lengths) // batch * batch :] == order[len(lengths) // batch * batch :]).all()


def test_grouping_saves_padding(corpus: Corpus) -> None:
    def padding(config: TrainConfig) -> int:
        made = batches(corpus, config, micro_batch=4)
        micros = [micro for step in range(made.steps) for micro in made.micros(step)]
        return sum(micro.ids.size - micro.tokens for micro in micros)

    assert padding(CONFIG.model_copy(update={"length_grouping": True})) < 0.7 * padding(CONFIG)


def test_micro_batches_are_dealt_evenly() -> None:
    sizes = np.array([5, 9, 1, 7, 3, 8, 2])
    dealt = deal(sizes, 2, 2)
    assert [len(chunk) for chunk in dealt] == [2, 2, 2, 1]
    assert [sizes[chunk].tolist() for chunk in dealt] == [[9, 8], [7, 5], [3, 2], [1]]


def test_prepared_ahead_in_order_and_with_errors() -> None:
    assert list(ahead(lambda i: i * i, 2, 7)) == [4, 9, 16, 25, 36]
    assert list(ahead(lambda i: i, 3, 3)) == []
    with pytest.raises(ZeroDivisionError):
        list(ahead(lambda i: 1 / (i - 1), 0, 3))
