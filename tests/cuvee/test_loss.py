"""Against torch's own cross entropy in float64, and averaging against a loop over rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from cuvee import loss
from cuvee.loss import denominator, token_nll, weighted_sum


def draw(seed: int = 0, shape: tuple[int, int, int] = (3, 7, 11)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), torch.randint(shape[2], shape[:2], generator=generator)


def reference(logits: torch.Tensor, ids: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    flat = functional.cross_entropy(
        logits[:, :-1].double().transpose(1, 2), ids[:, 1:], reduction="none", label_smoothing=smoothing
    )
    return torch.cat([torch.zeros(len(ids), 1, dtype=torch.float64), flat], 1)


@pytest.mark.parametrize("smoothing", [None, 0.1])
@pytest.mark.parametrize("chunk", [1, 5, 2048])
def test_value_and_gradient_are_those_of_cross_entropy(
    smoothing: float | None, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "CHUNK", chunk)
    logits, ids = draw()
    weights = torch.rand(ids.shape)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().double().requires_grad_()
    a, b = token_nll(ours, ids, smoothing), reference(theirs, ids, smoothing or 0.0)
    torch.testing.assert_close(a.double(), b, atol=1e-5, rtol=1e-5)
    (a * weights).sum().backward()
    (b * weights).sum().backward()
    torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=1e-6, rtol=1e-5)


def test_smoothing_may_differ_by_row() -> None:
    logits, ids = draw()
    mixed = token_nll(logits, ids, torch.tensor([0.0, 0.2, 0.5]))
    for row, value in enumerate([0.0, 0.2, 0.5]):
        torch.testing.assert_close(mixed[row].double(), reference(logits, ids, value)[row], atol=1e-5, rtol=1e-5)


def test_low_precision_logits_give_a_float32_loss_and_a_gradient_of_their_own_type() -> None:
    logits, ids = draw()
    low = logits.bfloat16().requires_grad_()
    nll = token_nll(low, ids)
    torch.testing.assert_close(nll.double(), reference(low.detach(), ids), atol=1e-5, rtol=1e-5)
    nll.sum().backward()
    assert nll.dtype == torch.float32
    assert low.grad.dtype == torch.bfloat16


def test_a_position_of_weight_zero_gets_a_gradient_of_exactly_zero() -> None:
    logits, ids = draw()
    logits.requires_grad_()
    weights = torch.ones(ids.shape)
    weights[:, 4] = 0
    weighted_sum(token_nll(logits, ids), weights, "token").backward()
    assert (logits.grad[:, 3] == 0).all()
    assert (logits.grad[:, -1] == 0).all()
    assert (logits.grad[:, 2] != 0).all()


def by_hand(nll: np.ndarray, weights: np.ndarray, mode: str, row_weights: np.ndarray) -> float:
    """One row at a time."""
    top = bottom = 0.0
    for loss_row, weight_row, row_weight in zip(nll, weights, row_weights, strict=True):
        weight_row = np.array([0.0, *weight_row[1:]])
        total, mass = float((loss_row * weight_row).sum()), float(weight_row.sum())
        if mode == "token":
            top, bottom = top + total, bottom + mass
        elif mass:
            top += row_weight * total / mass if mode == "row" else total
            bottom += row_weight if mode == "row" else 1
    return top / bottom


@pytest.mark.parametrize("mode", ["token", "row", "sum"])
def test_averages_over_micro_batches_equal_a_loop_over_rows(mode: Any) -> None:
    rng = np.random.default_rng(0)
    nll = rng.random((6, 9)).astype(np.float32)
    weights = (rng.random((6, 9)) * (rng.random((6, 9)) > 0.4)).astype(np.float32)
    weights[2] = 0
    weights[3, 1:] = 0  # only its first token has a weight, which is never a target
    row_weights = np.array([1, 0.5, 1, 1, 2, 1], np.float32)
    top = bottom = 0.0
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        arguments = (torch.tensor(weights[part]), mode, None, torch.tensor(row_weights[part]))
        top += float(weighted_sum(torch.tensor(nll[part]), *arguments))
        bottom += float(denominator(*arguments))
    assert top / bottom == pytest.approx(by_hand(nll, weights, mode, row_weights), rel=1e-6)


@pytest.mark.parametrize("mode", ["token", "row", "sum"])
def test_packed_rows_give_what_separate_rows_give(mode: Any) -> None:
    rng = np.random.default_rng(1)
    lengths = [4, 3, 5]
    nll, weights = torch.tensor(rng.random((3, 5))), torch.tensor(rng.random((3, 5)))
    for row, length in enumerate(lengths):
        weights[row, length:] = 0
    pad = 16 - sum(lengths)
    lines = [torch.cat([x[r, :n] for r, n in enumerate(lengths)] + [torch.ones(pad)]) for x in (nll, weights)]
    rows = torch.cat([torch.full((n,), r) for r, n in enumerate(lengths)] + [torch.full((pad,), -1)])
    row_weights = torch.tensor([1.0, 2.0, 0.5])
    packed = (lines[1][None], mode, rows[None], row_weights)
    apart = (weights, mode, None, row_weights)
    assert float(denominator(*packed)) == pytest.approx(float(denominator(*apart)))
    assert float(weighted_sum(lines[0][None], *packed)) == pytest.approx(float(weighted_sum(nll, *apart)))


def test_gradients_of_masked_positions_are_exactly_zero_in_a_model(tiny_model: Any) -> None:
    """Two targets at a masked position give the very same parameter gradients."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    ids = torch.randint(1024, (1, 8), generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([[0.0, 0, 0, 1, 1, 1, 1, 0]])
    gradients = []
    for last in (5, 900):
        targets = ids.clone()
        targets[0, 7] = last  # masked, and nothing attends to it that is trained
        model.zero_grad()
        weighted_sum(token_nll(model(ids).logits, targets), weights, "token").backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert any((g != 0).any() for g in gradients[0])
