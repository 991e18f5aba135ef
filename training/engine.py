"""The trained model inside DeepSpeed: one update, one evaluation, one checkpoint.

Nothing here knows of Ray, plans or files of metrics. Every rank holds one and calls it alike.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cuvee.errors import UserError
from cuvee.rng import stream_seed
from training import checkpoint, deepspeed_config, packing
from training.batches import Micro
from training.model import decay_groups, keeps_logits, learning, load, sharded_loading
from training.objective import Objective
from training.reference import Reference
from training.regularise import Neftune, target_penalty
from training.settings import Execution, Precision, TrainConfig


@dataclass(frozen=True)
class Sums:
    """Over all ranks: loss and tokens of the batch; by source the weighted loss, the weight, and the trained tokens."""

    loss: float
    tokens: int
    weighted: np.ndarray
    weight: np.ndarray
    trained: np.ndarray
    clock: float
    """Rank 0's time of day, so that ranks agree on what is due."""

    def by_source(self, sources: Iterable[str]) -> dict[str, float]:
        """Mean loss per weighted token of each source that has any."""
        return {s: float(self.weighted[i] / self.weight[i]) for i, s in enumerate(sources) if self.weight[i] > 0}


class Engine:
    """`resume` is a checkpoint's folder, `init_state` the portable optimiser state of an earlier stage, or None."""

    def __init__(
        self,
        folder: Path,
        objective: Objective,
        config: TrainConfig,
        execution: Execution,
        precision: Precision,
        *,
        seed: int,
        device: Any,
        resume: Path | None = None,
        init_state: Path | None = None,
    ) -> None:
        import deepspeed
        import torch
        import torch.distributed as dist

        self.config, self.seed, self.device = config, seed, device
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.layout = deepspeed_config.layout(execution, precision)
        self.stage = int(self.layout["stage"])
        settings = deepspeed_config.settings(config, execution, precision)
        torch.manual_seed(stream_seed(seed, "init") % 2**63)
        if not execution.use_gpu:
            without_ops()
        with sharded_loading(settings):
            model = load(folder, config, execution, precision)
        native = resume is not None and checkpoint.is_native(resume, self.layout)
        state = None
        if resume and not native:
            state = checkpoint.read_portable(resume)
            checkpoint.load_weights(model, state)
        elif init_state and not resume:
            state = checkpoint.read_portable(init_state)
        if not config.qlora:
            model.to(device)
        self.engine, *_ = deepspeed.initialize(
            model=model, model_parameters=decay_groups(model, config.weight_decay), config=settings
        )
        if native and resume:
            checkpoint.load(self.engine, resume)
        elif state:
            checkpoint.load_moments(self.engine, state, weights=self.stage > 0)
        self.noise = Neftune(self.module.get_input_embeddings(), objective.neftune, seed) if objective.neftune else None
        self.kl, self.reference = objective.kl, None
        if objective.frozen_beside:
            self.reference = Reference(self.module, folder, config, execution, precision)
        self.keeps = keeps_logits(self.module)
        self.norm: float | None = None
        if self.stage == 0:
            self.engine.optimizer.register_step_pre_hook(self._clip)
        if config.packing:
            self._refuse_leak(precision)

    @property
    def module(self) -> Any:
        """The model, as transformers or peft know it."""
        return self.engine.module

    def update(self, step: int, micros: list[Micro], sources: int, rate: float) -> tuple[Sums, dict[str, float]]:
        """One optimiser step with learning rate `rate`; what it added up, and the seconds of its three parts."""
        import torch

        torch.manual_seed(stream_seed(self.seed, "step", step, self.rank) % 2**63)
        spent = {"forward": 0.0, "backward": 0.0, "step": 0.0}
        totals = torch.zeros(3 + 3 * sources, dtype=torch.float64)
        for number, micro in enumerate(micros):
            if self.noise:
                self.noise.reseed(step, self.rank, number)
            with _timed(spent, "forward"):
                loss, sums = self.forward(micro, sources)
            with _timed(spent, "backward"):
                # DeepSpeed averages the gradient over the ranks; the shares already add up to the global loss.
                self.engine.backward(loss * self.world)
            totals += sums
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        with _timed(spent, "step"):
            self.engine.step()
        if self.stage > 0:
            norm = self.engine.get_global_grad_norm()
            self.norm = None if norm is None else float(norm)
        return self._over_ranks(totals), spent

    def evaluate(self, batches: Iterable[list[Micro]], sources: int) -> Sums:
        """The likelihood of held-out rows; nothing changes."""
        import torch

        totals = torch.zeros(3 + 3 * sources, dtype=torch.float64)
        self.engine.eval()
        with torch.no_grad():
            for micros in batches:
                for micro in micros:
                    totals += self.forward(micro, sources)[1]
        self.engine.train()
        return self._over_ranks(totals)

    def forward(self, micro: Micro, sources: int) -> tuple[Any, Any]:
        """This micro-batch's part of the global loss, and what it adds to the totals (3 + 3 * sources,).

        What is summed by source is the likelihood alone; in training the loss has smoothing and the penalty besides.
        Logits are computed only where some row of the micro-batch has a trained token next: with a vocabulary of 50,000
        and long prompts they are much of the time and most of the memory.
        """
        import torch

        from cuvee.loss import token_nll

        put = partial(_put, device=self.device)
        before = np.flatnonzero(micro.weight[:, 1:].any(axis=0)) if self.keeps else np.arange(micro.ids.shape[1] - 1)

        def targets(array: np.ndarray) -> Any:
            """The columns of the trained tokens, behind one for the first token of a row, which nothing predicts."""
            return put(np.concatenate([array[:, :1] * 0, array[:, before + 1]], axis=1))

        inputs = {"input_ids": put(micro.ids), "position_ids": put(micro.positions), "use_cache": False}
        if self.keeps:
            # One more at the end, since the loss takes logits as long as the ids and has no use for the last.
            inputs["logits_to_keep"] = put(np.append(before, micro.ids.shape[1] - 1))
        ids, share, weight = targets(micro.ids), targets(micro.share), targets(micro.weight)
        logits = self.engine(**inputs).logits
        nll = token_nll(logits, ids)
        each = nll if micro.smoothing is None else token_nll(logits, ids, targets(micro.smoothing))
        if self.kl and self.module.training:
            if self.reference:
                penalty = self.reference.penalty(inputs, logits)
            else:
                assert micro.reference is not None
                penalty = target_penalty(nll, targets(-micro.reference))
            each = each + self.kl.weight * penalty
        loss = (each * share).sum()
        with torch.no_grad():
            columns = torch.stack([nll * weight, weight, (weight > 0).float()]).flatten(1).double()
            sums = columns.new_zeros(3, sources).index_add_(1, targets(micro.source).flatten(), columns)
            totals = torch.cat([torch.tensor([float(loss), micro.tokens, 0.0]).double(), sums.flatten().cpu()])
        return loss, totals

    def save(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Write this rank's part of a checkpoint. Every rank must call it."""
        checkpoint.save(self.engine, folder, {**facts, "layout": self.layout})

    def save_state(self, folder: Path, step: int) -> None:
        """Write the portable optimiser state. Every rank must call it."""
        checkpoint.save_portable(self.engine, folder, step=step)

    def _over_ranks(self, totals: Any) -> Sums:
        import torch.distributed as dist

        if self.rank == 0:
            totals[2] = time.time()
        totals = totals.to(self.device)
        dist.all_reduce(totals)
        loss, tokens, clock, *sums = totals.tolist()
        weighted, weight, trained = np.array(sums).reshape(3, -1)
        return Sums(loss, int(tokens), weighted, weight, trained, clock)

    def _clip(self, *_: Any) -> None:
        """At stage 0 in fp32 DeepSpeed would clip and forget the norm; at this point the gradients are reduced."""
        import torch

        limit = self.config.clip or float("inf")
        parameters = [parameter for _, parameter in learning(self.module)]
        self.norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))

    def _refuse_leak(self, precision: Precision) -> None:
        seen = packing.leaks(self.module, int(self.module.config.get_text_config().vocab_size))
        if seen > (1e-4 if precision == "fp32" else 0.05):
            raise UserError(
                f"packed rows of this model see each other (logits change by {seen:.2g})",
                remedy="set packing: false; length_grouping saves padding too",
            )


def _put(array: np.ndarray, device: Any) -> Any:
    import torch

    return torch.from_numpy(array).to(device, non_blocking=True)


@contextmanager
def _timed(spent: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    spent[name] += time.perf_counter() - began


def without_ops() -> None:
    """Before DeepSpeed starts on a CPU: leave out its operation for shared memory.

    DeepSpeed compiles it (a minute on two cores, under a guard file that outlives a killed process), and only inference
    would use it.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {}
