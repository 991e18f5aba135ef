from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.packing import balance, leaks, pack

lengths_and_capacity = st.integers(1, 200).flatmap(
    lambda capacity: st.tuples(st.lists(st.integers(1, capacity), max_size=200), st.just(capacity))
)


@given(lengths_and_capacity)
def test_every_row_is_in_one_bin_and_no_bin_overflows(case: tuple[list[int], int]) -> None:
    lengths, capacity = case
    bins = pack(lengths, capacity)
    assert sorted(row for bin_ in bins for row in bin_) == list(range(len(lengths)))
    assert all(0 < sum(lengths[row] for row in bin_) <= capacity for bin_ in bins)


@given(lengths_and_capacity)
def test_bins_are_those_of_best_fit_decreasing(case: tuple[list[int], int]) -> None:
    """As many bins as the textbook algorithm, searched without any index."""
    lengths, capacity = case
    spaces: list[int] = []
    for size in sorted(lengths, reverse=True):
        fitting = [space for space in spaces if space >= size]
        if fitting:
            spaces.remove(min(fitting))
            spaces.append(min(fitting) - size)
        else:
            spaces.append(capacity - size)
    assert len(pack(lengths, capacity)) == len(spaces)


@given(lengths_and_capacity, st.integers(1, 5))
def test_balanced_bins_keep_every_row_and_the_capacity(case: tuple[list[int], int], ranks: int) -> None:
    lengths, capacity = case
    bins = balance(lengths, capacity, ranks)
    assert sorted(row for bin_ in bins for row in bin_) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in bin_) <= capacity for bin_ in bins)


def test_two_ranks_get_equal_shares() -> None:
    bins = balance([30, 30, 20, 20, 10, 10], 200, 2)
    assert [sum([30, 30, 20, 20, 10, 10][row] for row in bin_) for bin_ in bins] == [60, 60]


@pytest.mark.parametrize("lengths", [[0], [11], [-1]])
def test_rows_that_cannot_be_packed_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="between 1 and 10"):
        pack(lengths, 10)


def test_bins_are_nearly_full() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 0.8, 5000).astype(int).clip(1, 2048)
    assert len(pack(lengths, 2048)) <= np.ceil(lengths.sum() / 2048) * 1.01


def test_packed_rows_do_not_see_each_other(tiny_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    for attention in ("eager", "sdpa"):
        model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, attn_implementation=attention)
        assert leaks(model, 1024) < 1e-5


def test_a_model_that_ignores_the_restart_is_found_out(tiny_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    class Recurrent(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)

        def forward(self, input_ids: Any, position_ids: Any, use_cache: bool) -> Any:
            return self.inner(input_ids=input_ids, use_cache=use_cache)

    assert leaks(Recurrent(), 1024) > 1e-2
