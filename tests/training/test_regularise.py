"""Noise in its range and reproducible; penalties against torch, and what the target-token one really does."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from cuvee.loss import token_nll, weighted_sum
from training import regularise
from training.regularise import Neftune, kl_penalty, neftune_range, target_penalty


def embedding() -> torch.nn.Embedding:
    return torch.nn.Embedding(11, 64)


def test_noise_has_the_papers_range_and_only_in_training() -> None:
    table, ids = embedding(), torch.zeros(4, 100, dtype=torch.long)
    clean = table(ids)
    with Neftune(table, alpha=5, seed=0):
        noise = (table(ids) - clean).detach()
        table.eval()
        assert torch.equal(table(ids), clean)
    table.train()
    assert torch.equal(table(ids), clean)  # detached
    largest = 5 / math.sqrt(100 * 64)
    assert neftune_range(5, 100, 64) == largest
    assert float(noise.abs().max()) <= largest * 1.0001  # it was taken back out of a float32 sum
    assert float(noise.abs().max()) > 0.99 * largest
    assert float(noise.mean()) == pytest.approx(0, abs=largest * 0.03)
    assert float(noise.std()) == pytest.approx(largest / math.sqrt(3), rel=0.03)  # uniform


def test_a_resumed_run_meets_the_same_noise() -> None:
    table, ids = embedding(), torch.zeros(1, 5, dtype=torch.long)
    state = torch.random.get_rng_state()
    with Neftune(table, alpha=5, seed=1) as noise:
        drawn = []
        for path in ((3, 0), (4, 0), (3, 0)):
            noise.reseed(*path)
            drawn.append(table(ids))
        first, second = table(ids), table(ids)
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(first, second)
    assert torch.equal(state, torch.random.get_rng_state())  # dropout elsewhere is not disturbed


def test_alpha_zero_is_no_noise() -> None:
    table, ids = embedding(), torch.zeros(1, 5, dtype=torch.long)
    with Neftune(table, alpha=0, seed=1):
        assert torch.equal(table(ids), table(ids))


@pytest.mark.parametrize("chunk", [4, 2048])
def test_the_full_penalty_is_torchs_divergence(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regularise, "CHUNK", chunk)
    logits, reference = torch.randn(2, 6, 11, requires_grad=True), torch.randn(2, 6, 11)
    twin = logits.detach().clone().requires_grad_()
    ours = kl_penalty(logits, reference)
    p, q = twin.log_softmax(-1), reference.log_softmax(-1)
    theirs = functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)  # KL(p || q)
    assert (ours[:, 0] == 0).all()
    torch.testing.assert_close(ours[:, 1:], theirs[:, :-1])
    ours.sum().backward()
    theirs[:, :-1].sum().backward()
    torch.testing.assert_close(logits.grad, twin.grad)
    assert float(kl_penalty(logits, logits.detach()).detach().abs().max()) < 1e-6


@pytest.mark.parametrize("weight", [0.1, 1.0])
def test_the_target_penalty_only_scales_the_gradient(weight: float) -> None:
    """With the mask of the loss, as in the released code; at weight 1 nothing is left."""
    ids, reference = torch.randint(11, (2, 6)), torch.randn(2, 6, 11)
    mask = torch.ones(2, 6)
    gradients = []
    for factor in (0.0, weight):
        logits = torch.randn(2, 6, 11, generator=torch.Generator().manual_seed(0)).requires_grad_()
        nll = token_nll(logits, ids)
        penalty = target_penalty(nll, token_nll(reference, ids))
        weighted_sum(nll + factor * penalty, mask, "token").backward()
        gradients.append(logits.grad)
    torch.testing.assert_close(gradients[1], (1 - weight) * gradients[0], atol=1e-6, rtol=1e-5)


def test_the_target_penalty_is_the_difference_of_log_probabilities() -> None:
    assert target_penalty(torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 3.0]])).tolist() == [[0.0, 1.0]]
