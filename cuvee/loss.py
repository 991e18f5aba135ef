"""The loss of a language model over weighted tokens, and how to average it over a global batch.

Three ways to average, since papers and trainers differ and the difference is real:

- `token`: sum of w*l over all tokens of the global batch, divided by the sum of w. Every token counts the same; a long
  row counts more than a short one. What a trainer must not do is average each micro-batch and then average those.
- `row`: the mean over rows of their own (sum of w*l) / (sum of w). Every row counts the same. This is what a trainer
  with one row a device and accumulation does, such as the released code of arXiv 2405.14394. A prompt that carries
  loss takes its share from the answer of its own row.
- `sum`: sum of w*l of a row, averaged over rows, which is the expectation of equation 4 of that paper. Adding prompt
  tokens does not shrink the weight of answer tokens. Under Adam the scale of the loss hardly matters, so `sum` and
  `token` differ in the weight of batches, not in the size of steps.

A trainer adds `weighted_sum` over micro-batches and ranks, adds `denominator` likewise (known before the forward pass),
and divides once.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

Normalise = Literal["token", "row", "sum"]

CHUNK = 2048
"""Positions whose logits are held in float32 at a time: 400 MB at 49k tokens of vocabulary."""


def token_nll(logits: Tensor, ids: Tensor, smoothing: float | Tensor | None = None) -> Tensor:
    """(B, T) float32: entry t is -log p(ids[t] | ids[<t]) in nats; entry 0, which nothing predicts, is 0.

    `logits` (B, T, V) of any float type, `ids` (B, T). `smoothing` (a number, or one a row: (B,); or a token: (B, T))
    mixes the target with the uniform distribution, as `torch.nn.functional.cross_entropy` does. Logits are turned to
    float32 a chunk at a time, forward and backward, and never kept in it.
    """
    import torch

    rows, length, vocabulary = logits.shape
    mix = torch.as_tensor(0.0 if smoothing is None else smoothing, dtype=torch.float32, device=logits.device)
    mix = mix[:, None] if mix.dim() == 1 else mix
    # Position t predicts token t + 1. All positions go in, so that the logits need not be copied; the last is dropped.
    nll = _nll().apply(
        logits.reshape(-1, vocabulary),
        ids.roll(-1, dims=1).reshape(-1),
        mix.expand(rows, length).roll(-1, dims=1).reshape(-1),
    )
    return torch.cat([nll.new_zeros(rows, 1), nll.view(rows, length)[:, :-1]], dim=1)


def weighted_sum(
    nll: Tensor, weights: Tensor, mode: Normalise, rows: Tensor | None = None, row_weights: Tensor | None = None
) -> Tensor:
    """The numerator of the global loss, differentiable; add it over micro-batches and ranks.

    `nll` and `weights` (B, T); `weights[b, t]` belongs to the token t as a target. `rows` (B, T) numbers the rows of a
    packed batch from 0 (-1 for padding); without it a line is a row. The first token of a row is never a target.
    `row_weights` (R,) matters to `row` only: there a factor of all of a row's tokens cancels, so it comes in here; in
    the other modes it is already in the weights.
    """
    weights = _targets(weights, rows)
    if mode != "row":
        return (weights * nll).sum()
    index, count = _index(weights, rows)
    loss = _by_row(weights * nll, index, count)
    total = _by_row(weights, index, count)
    mean = loss / total.where(total > 0, total.new_ones(()))
    return (mean if row_weights is None else mean * row_weights.to(mean)).sum()


def denominator(
    weights: Tensor, mode: Normalise, rows: Tensor | None = None, row_weights: Tensor | None = None
) -> Tensor:
    """The denominator (0-d, float64, no gradient); arguments as for `weighted_sum`; add it the same way.

    `token`: sum of weights. `row`: rows with a trained token, each counting as its row weight. `sum`: rows with a
    trained token.
    """
    import torch

    weights = _targets(weights.detach(), rows).to(torch.float64)
    if mode == "token":
        return weights.sum()
    trained = _by_row(weights, *_index(weights, rows)) > 0
    if mode == "row" and row_weights is not None:
        return (trained * row_weights.to(weights)).sum()
    return trained.sum().to(torch.float64)


def _targets(weights: Tensor, rows: Tensor | None) -> Tensor:
    """Weights with the first token of each row, and padding, set to 0."""
    import torch

    if rows is None:
        return torch.cat([torch.zeros_like(weights[:, :1]), weights[:, 1:]], dim=1)
    inner = torch.zeros_like(rows, dtype=torch.bool)
    inner[:, 1:] = (rows[:, 1:] == rows[:, :-1]) & (rows[:, 1:] >= 0)
    return weights * inner


def _index(weights: Tensor, rows: Tensor | None) -> tuple[Tensor, int]:
    """The row number of each position, and how many rows there are."""
    import torch

    if rows is None:
        lines = torch.arange(len(weights), device=weights.device)
        return lines[:, None].expand_as(weights), len(weights)
    return rows.clamp_min(0), int(rows.max()) + 1


def _by_row(values: Tensor, index: Tensor, count: int) -> Tensor:
    return values.new_zeros(count).index_add(0, index.reshape(-1), values.reshape(-1))


@cache
def _nll() -> Any:
    """The autograd function, made on first use, since torch is imported late."""
    import torch
    from torch.autograd.function import once_differentiable

    class NLL(torch.autograd.Function):
        """(N,) from logits (N, V), targets (N,) and smoothing (N,); keeps the logits and one number a position."""

        @staticmethod
        def forward(ctx: Any, logits: Tensor, targets: Tensor, mix: Tensor) -> Tensor:
            total = torch.empty(len(logits), device=logits.device, dtype=torch.float32)
            nll = torch.empty_like(total)
            for part in _parts(len(logits)):
                x = logits[part].float()
                total[part] = x.logsumexp(-1)
                hit = x.gather(-1, targets[part, None]).squeeze(-1)
                nll[part] = total[part] - (1 - mix[part]) * hit - mix[part] * x.mean(-1)
            ctx.save_for_backward(logits, targets, mix, total)
            return nll

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
            logits, targets, mix, total = ctx.saved_tensors
            result = torch.empty_like(logits)
            for part in _parts(len(logits)):
                x = logits[part].float().sub_(total[part, None]).exp_()
                x.sub_((mix[part] / logits.shape[-1])[:, None])
                x.scatter_add_(-1, targets[part, None], (mix[part] - 1)[:, None])
                result[part] = x.mul_(grad[part, None]).to(logits.dtype)
            return result, None, None

    return NLL


def _parts(length: int) -> list[slice]:
    return [slice(at, at + CHUNK) for at in range(0, length, CHUNK)]
