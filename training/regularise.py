"""What may be added to the loss or the embeddings: noise, and a penalty for leaving the model one started from.

**NEFTune** (arXiv 2310.05914) adds uniform noise in [-a, a], a = alpha / sqrt(L * d), to the embeddings in training;
L is the padded length of the batch, as in the code of the instruction-modelling paper. The noise is drawn from a
generator that is seeded anew for each micro-batch, so that a resumed run meets the same noise.

**KL** (arXiv 2405.14394, section 4.3) adds lambda times a penalty to every trained token:

- `full` is KL(p || p_ref) over the vocabulary. It needs the reference model in memory beside the trained one.
- `target` is the released code's log p - log p_ref at the target token. It needs one stored number a token. Under
  teacher forcing it is no estimate of KL, since the tokens come from the data; and as log p_ref is a constant, its
  gradient is that of the loss times -lambda. With the same mask as the loss the sum is therefore (1 - lambda) times
  the plain gradient, and at the paper's lambda = 1 nothing is learnt. That is how its Table 3 comes by scores of the
  base model (49.26 and 49.31 against 49.32, AlpacaEval 0.06 and 0.04 against 0.01). It is here to reproduce that.

Penalties are (B, T) like the loss of `cuvee.loss.token_nll` and are averaged with the same weights.
"""

from __future__ import annotations

import math
from types import TracebackType
from typing import TYPE_CHECKING, Any

from cuvee.loss import CHUNK
from cuvee.rng import stream_seed

if TYPE_CHECKING:
    from torch import Tensor


class Neftune:
    """Noise on the output of an embedding, while attached and while the module is in training mode.

        with Neftune(model.get_input_embeddings(), alpha=5, seed=0) as noise:
            noise.reseed(step, rank, micro)
            model(...)

    Without `reseed` the noise goes on from the last draw.
    """

    def __init__(self, embedding: Any, alpha: float, seed: int) -> None:
        self.alpha = alpha
        self.seed = seed
        self._generator: Any = None
        self._path: tuple[int, ...] = ()
        self._hook = embedding.register_forward_hook(self._add)

    def reseed(self, *path: int) -> None:
        """Name the next draws, e.g. by step, rank and micro-batch."""
        self._path = path
        self._generator = None

    def remove(self) -> None:
        """Detach from the embedding."""
        self._hook.remove()

    def __enter__(self) -> Neftune:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _add(self, module: Any, inputs: Any, output: Tensor) -> Tensor:
        import torch

        if not module.training or not self.alpha:
            return output
        if self._generator is None:
            self._generator = torch.Generator(output.device)
            self._generator.manual_seed(stream_seed(self.seed, "neftune", *self._path) % 2**63)
        # In float32 whatever the model's type, so that the noise has the range of the paper.
        noise = torch.rand(output.shape, generator=self._generator, device=output.device, dtype=torch.float32)
        return output + ((2 * noise - 1) * neftune_range(self.alpha, output.shape[1], output.shape[2])).to(output)


def neftune_range(alpha: float, length: int, hidden: int) -> float:
    """Half the width of the noise: alpha / sqrt(L * d)."""
    return alpha / math.sqrt(length * hidden)


def target_penalty(nll: Tensor, reference_nll: Tensor) -> Tensor:
    """(B, T) log p - log p_ref of the target tokens, from both negative log-likelihoods. See above on what it does."""
    return reference_nll.detach().to(nll) - nll


def kl_penalty(logits: Tensor, reference: Tensor) -> Tensor:
    """(B, T) KL(p || p_ref) in nats of the distributions that predict each token; entry 0 is 0.

    `logits` and `reference` (B, T, V), the latter without gradient. Turned to float32 a chunk at a time; the chunks
    are computed again in the backward pass, so that beyond the two logits only one chunk is in memory.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    rows, length, vocabulary = logits.shape
    flat, base = logits.reshape(-1, vocabulary), reference.detach().reshape(-1, vocabulary)
    parts = [
        checkpoint(_kl, flat[at : at + CHUNK], base[at : at + CHUNK], use_reentrant=False)
        for at in range(0, len(flat), CHUNK)
    ]
    # Position t predicts token t + 1.
    penalty = torch.cat(parts).view(rows, length)
    return torch.cat([penalty.new_zeros(rows, 1), penalty[:, :-1]], dim=1)


def _kl(logits: Tensor, reference: Tensor) -> Tensor:
    p, q = logits.float().log_softmax(-1), reference.float().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)
