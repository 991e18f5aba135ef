"""The loop that runs in each Ray Train worker.

A step is a pure function of weights, moments and the step number: its batch comes from the plan, its rate from the
schedule, its random numbers (dropout, noise) from a stream named by seed, step and rank. So resuming is "continue at
step t", and there is no loader, scheduler or random state to get wrong.

Rank 0 writes one line a step to `metrics.jsonl` in the work folder; Ray Train's own reports are few (they are polled
about every two seconds) and only carry checkpoints. What is wrong with the data or the settings is returned and not
raised, because Ray Train takes every exception for a reason to try again; all ranks agree on it first, so that none
waits for another that has gone.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cuvee.errors import CuveeError, UserError
from cuvee.rng import stream_seed
from training import checkpoint, corpus, deepspeed_config, export, memory, packing, schedule
from training.batches import Batches, Micro, ahead
from training.model import decay_groups, load, resolve_attention, sharded_loading, state_dict
from training.objective import Objective, token_weights
from training.reference import Reference
from training.regularise import Neftune
from training.settings import Execution, Precision, TrainConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """All that a worker is told. Folders are visible from every machine of the run."""

    model: Path
    plan: Path
    tokens: tuple[Path, ...]
    objective: Objective
    config: TrainConfig
    execution: Execution
    precision: Precision
    seed: int
    out: Path
    work: Path
    fingerprint: str
    card: Mapping[str, Any]
    recipe: str = ""
    init_state: Path | None = None
    keep_state: bool = False
    validation: Mapping[str, Path] = field(default_factory=dict)
    steps_before: int = 0
    steps_total: int | None = None


def run(arguments: dict[str, Any]) -> dict[str, Any]:
    """Entry point: `{"job": Job}` to the summary of `train.json`, or `{"error": CuveeError}`."""
    try:
        return _Run(arguments["job"]).go()
    except _Agreed as agreed:
        return {"error": agreed.error}


class _Agreed(Exception):
    """An error that every rank knows of."""

    def __init__(self, error: CuveeError) -> None:
        super().__init__(str(error))
        self.error = error


def agree(make: Callable[[], T]) -> T:
    """The value of `make()`; if it failed on any rank with an error of ours, all ranks raise the first one."""
    import torch.distributed as dist

    value, error = None, None
    try:
        value = make()
    except CuveeError as caught:
        error = caught
    errors: list[CuveeError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    first = next((e for e in errors if e is not None), None)
    if first is not None:
        raise _Agreed(first)
    return value  # type: ignore[return-value]


class _Run:
    def __init__(self, job: Job) -> None:
        import torch
        import torch.distributed as dist
        from ray import train

        self.job, self.config, self.execution = job, job.config, job.execution
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.local_rank = train.get_context().get_local_rank()
        if not job.execution.use_gpu:
            torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
            self.device = torch.device("cpu")
        else:
            from ray.train.torch import get_device

            self.device = get_device()
        self.begun = time.time()
        self.stage = deepspeed_config.stage_of(job.execution, job.precision)
        self.folders: list[Path] = []

    def go(self) -> dict[str, Any]:
        from ray import train

        found = train.get_checkpoint()
        with found.as_directory() if found else nullcontext() as folder:
            self.prepare(Path(folder) if folder else None)
        self.loop()
        return self.finish()

    # ---- before the first step

    def prepare(self, resume: Path | None) -> None:
        import torch

        job = self.job
        self.facts = {
            "fingerprint": job.fingerprint, "stage": self.stage, "world": self.world, "precision": job.precision,
        }  # fmt: skip
        found = agree(partial(self._found, resume)) if resume else None
        self.start = int(found["step"]) if found else 0
        self.batches = agree(partial(self._batches, job.plan, list(job.tokens)))
        self.validation = {
            name: agree(partial(self._batches, None, [path])) for name, path in sorted(job.validation.items())
        }
        self.total = job.steps_total or job.steps_before + self.batches.steps
        torch.manual_seed(stream_seed(job.seed, "init") % 2**63)
        self.engine = agree(partial(self._engine, resume, found))
        if self.config.packing:
            agree(self._refuse_leak)
        self.metrics_path = job.work / "metrics.jsonl"
        if self.rank == 0:
            _keep_lines(self.metrics_path, self.start)

    def _found(self, resume: Path) -> dict[str, Any]:
        found = checkpoint.read_facts(resume)
        checkpoint.refuse_other_run(found, self.facts)
        return found

    def _batches(self, plan: Path | None, tokens: list[Path]) -> Batches:
        """The first worker of each machine makes the copy; the others wait for it at the barrier in `agree`."""

        job = self.job
        name = corpus.digest(plan, tokens, str(job.work))
        folder = Path(tempfile.gettempdir()) / "cuvee-corpus" / name
        self.folders.append(folder)

        def build() -> None:
            if self.local_rank == 0 and not folder.exists():
                corpus.build(plan, tokens, folder)

        agree(build)
        return Batches(
            corpus.open_corpus(folder),
            partial(token_weights, job.objective),
            self.config,
            normalise=job.objective.normalise,
            smoothing=job.objective.smoothing or 0.0,
            seed=job.seed,
            micro_batch=self.execution.micro_batch,
            world=self.world,
            rank=self.rank,
            flat=resolve_attention(self.execution, job.precision).startswith("flash"),
        )

    def _engine(self, resume: Path | None, found: Mapping[str, Any] | None) -> Any:
        import deepspeed
        import torch

        job = self.job
        settings = deepspeed_config.settings(self.config, self.execution, job.precision)
        with sharded_loading(settings):
            model = load(job.model, self.config, self.execution, job.precision)
        state = None
        if found and found["form"] == "portable" and resume:
            state = checkpoint.read_portable(resume)
            checkpoint.load_weights(model, state)
        elif job.init_state and not found:
            state = checkpoint.read_portable(job.init_state)
        model.to(self.device)
        engine, *_ = deepspeed.initialize(
            model=model, model_parameters=decay_groups(model, self.config.weight_decay), config=settings
        )
        if state:
            checkpoint.load_moments(engine, state, weights=self.stage > 0)
        elif found and resume:
            checkpoint.load_sharded(engine, resume)
        objective = job.objective
        self.noise = (
            Neftune(engine.module.get_input_embeddings(), objective.neftune, job.seed) if objective.neftune else None
        )
        self.reference = (
            Reference(engine.module, job.model, objective.kl, self.config, self.execution, job.precision)
            if objective.kl
            else None
        )
        self.norm = float("nan")
        if self.stage == 0:
            # At stage 0 in fp32 DeepSpeed clips and forgets the norm; here the gradients are already reduced.
            def clip(*_: Any) -> None:
                limit = self.config.clip or float("inf")
                learning = [p for p in engine.module.parameters() if p.requires_grad]
                self.norm = float(torch.nn.utils.clip_grad_norm_(learning, limit))

            engine.optimizer.register_step_pre_hook(clip)
        return engine

    def _refuse_leak(self) -> None:
        seen = packing.leaks(self.engine.module, int(self.engine.module.config.get_text_config().vocab_size))
        if seen > (1e-4 if self.job.precision == "fp32" else 0.05):
            raise UserError(
                f"packed rows of this model see each other (logits change by {seen:.2g})",
                remedy="set packing: false; length_grouping saves padding too",
            )

    # ---- the steps

    def loop(self) -> None:
        job, config = self.job, self.config
        saved = time.time()
        for step, micros in zip(
            range(self.start, self.batches.steps),
            ahead(self.batches.micros, self.start, self.batches.steps),
            strict=True,
        ):
            began = time.perf_counter()
            line = self.step(step, micros)
            last = step + 1 == self.batches.steps
            if self.validation and (last or (config.validation_every and (step + 1) % config.validation_every == 0)):
                line["validation"] = self.validate()
            line["seconds"] = round(time.perf_counter() - began, 4)
            if self.rank == 0:
                with self.metrics_path.open("a") as file:
                    file.write(json.dumps(line) + "\n")
            self.last = line
            if not np.isfinite(line["loss"]) and job.precision != "fp16":
                raise _Agreed(
                    CuveeError(
                        f"the loss of step {step} is not finite", remedy="lower the learning rate or check the data"
                    )
                )
            due = config.checkpoint_minutes is not None and line["clock"] - saved > 60 * config.checkpoint_minutes
            if not last and (due or (config.checkpoint_every and (step + 1) % config.checkpoint_every == 0)):
                self.save(step + 1)
                saved = line["clock"]

    def step(self, step: int, micros: list[Micro]) -> dict[str, Any]:
        """One update; the line for the metrics file, the same on every rank."""
        import torch
        import torch.distributed as dist

        begun = time.perf_counter()
        sources = self.batches.corpus.sources
        # loss, all tokens, rank 0's clock; then for each source: weighted loss, weight, number of trained tokens
        totals = torch.zeros(3 + 3 * len(sources), dtype=torch.float64)
        torch.manual_seed(stream_seed(self.job.seed, "step", step, self.rank) % 2**63)
        spent = {"forward": 0.0, "backward": 0.0, "step": 0.0}
        for number, micro in enumerate(micros):
            clock = time.perf_counter()
            if self.noise:
                self.noise.reseed(step, self.rank, number)
            loss, sums = self.forward(micro, self.batches)
            spent["forward"] += time.perf_counter() - clock
            clock = time.perf_counter()
            # DeepSpeed averages the gradient over the ranks; the shares already add up to the global loss.
            self.engine.backward(loss * self.world)
            spent["backward"] += time.perf_counter() - clock
            totals[0] += loss.detach().double().cpu()
            totals[1] += micro.tokens
            totals[3:] += sums
        rate = schedule.learning_rate(self.config, self.job.steps_before + step, self.total)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        clock = time.perf_counter()
        self.engine.step()
        spent["step"] += time.perf_counter() - clock
        if self.rank == 0:
            totals[2] = time.time()
        totals = totals.to(self.device)
        dist.all_reduce(totals)
        loss, tokens, clock, *sums = totals.tolist()
        weighted, weight, trained = np.array(sums).reshape(3, len(sources))
        norm = self.norm if self.stage == 0 else self.engine.get_global_grad_norm()
        elapsed = time.perf_counter() - begun
        return {
            "step": step,
            "loss": loss,
            "loss_by_source": {s: weighted[i] / weight[i] for i, s in enumerate(sources) if weight[i] > 0},
            "tokens_trained": int(trained.sum()),
            "tokens": int(tokens),
            "rows": len(self.batches.rows(step)),
            "grad_norm": float(norm) if norm is not None else None,
            "lr": rate,
            "tokens_per_s": round(tokens / elapsed, 2),
            "memory_gb": round(memory.in_use_gb(self.execution.use_gpu), 3),
            "spent": {name: round(seconds, 4) for name, seconds in spent.items()},
            "clock": clock,
        }

    def forward(self, micro: Micro, batches: Batches) -> tuple[Any, Any]:
        """This micro-batch's part of the global loss, and by source: weighted loss, weight, trained tokens (3S,).

        What is summed by source is the likelihood alone; in training the loss has smoothing and the penalty besides.
        """
        import torch

        from cuvee.loss import token_nll

        put = partial(_put, device=self.device)
        ids, share, weight = put(micro.ids), put(micro.share), put(micro.weight)
        inputs = {"input_ids": ids, "position_ids": put(micro.positions), "use_cache": False}
        logits = self.engine(**inputs).logits
        nll = token_nll(logits, ids)
        each = nll if micro.smoothing is None else token_nll(logits, ids, put(micro.smoothing))
        if self.reference and self.engine.module.training:
            each = each + self.reference.penalty(inputs, logits, nll)
        loss = (each * share).sum()
        count = len(batches.corpus.sources)
        with torch.no_grad():
            source = put(micro.source).flatten()
            columns = torch.stack([(nll * weight).flatten(), weight.flatten(), (weight > 0).flatten().float()]).double()
            sums = torch.zeros(3, count, dtype=torch.float64, device=self.device).index_add_(1, source, columns)
        return loss, sums.flatten().cpu()

    def validate(self) -> dict[str, dict[str, float]]:
        """Mean loss per weighted token on held-out rows: by table, by source and over `all`."""
        import torch
        import torch.distributed as dist

        out: dict[str, dict[str, float]] = {}
        self.engine.eval()
        for name, batches in self.validation.items():
            sources = batches.corpus.sources
            sums = torch.zeros(3 * len(sources), dtype=torch.float64)
            with torch.no_grad():
                for micros in ahead(batches.micros, 0, batches.steps):
                    for micro in micros:
                        sums += self.forward(micro, batches)[1]
            sums = sums.to(self.device)
            dist.all_reduce(sums)
            weighted, weight, _ = sums.cpu().numpy().reshape(3, len(sources))
            out[name] = {s: float(weighted[i] / weight[i]) for i, s in enumerate(sources) if weight[i] > 0}
            out[name]["all"] = float(weighted.sum() / max(weight.sum(), 1e-12))
        self.engine.train()
        return out

    def save(self, step: int) -> None:
        """Report a checkpoint of `step` finished steps: written to this machine, carried to the storage meanwhile."""
        from ray import train
        from ray.train import Checkpoint, CheckpointUploadMode

        folder = Path(tempfile.mkdtemp(prefix="cuvee-checkpoint-"))
        checkpoint.save(self.engine, folder, form=self.execution.checkpoints, facts={**self.facts, "step": step})
        train.report(
            {"step": step, "loss": self.last["loss"]},
            checkpoint=Checkpoint.from_directory(folder),
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )

    # ---- after the last step

    def finish(self) -> dict[str, Any]:
        import torch.distributed as dist

        job = self.job
        weights = state_dict(self.engine.module)
        if job.keep_state:
            checkpoint.save_portable(self.engine, job.out / "state", step=job.steps_before + self.batches.steps)
        agree(lambda: None if self.rank else self._export(weights))
        dist.barrier()
        if not self.local_rank:
            import shutil

            for folder in self.folders:
                shutil.rmtree(folder, ignore_errors=True)
        lines = [json.loads(line) for line in self.metrics_path.read_text().splitlines()] if self.rank == 0 else []
        return {
            "steps": self.batches.steps,
            "loss": self.last["loss"] if self.start < self.batches.steps else None,
            "seconds": round(sum(line["seconds"] for line in lines), 3),
            "tokens": sum(line["tokens"] for line in lines),
            "tokens_trained": sum(line["tokens_trained"] for line in lines),
            "rows": len(self.batches.order),
            "truncated": self.batches.truncated,
            "dropped": self.batches.dropped,
            "resumed_at": self.start,
            "workers": self.world,
            "zero": self.stage,
            "precision": job.precision,
            "validation": self.last.get("validation", {}) if self.start < self.batches.steps else {},
        }

    def _export(self, weights: Mapping[str, Any]) -> None:
        job, batches = self.job, self.batches
        names = np.array(batches.corpus.sources)[batches.corpus.source[batches.order]]
        sources = {
            str(name): {
                "rows": int((names == name).sum()),
                "tokens": int(batches.lengths[batches.order][names == name].sum()),
            }
            for name in np.unique(names)
        }
        card = export.model_card({**job.card, "steps": batches.steps}, sources, job.recipe)
        export.export(job.model, weights, self.config, self.execution, job.precision, job.out / "model", card)


def _put(array: np.ndarray, device: Any) -> Any:
    import torch

    return torch.from_numpy(array).to(device, non_blocking=True)


def _keep_lines(path: Path, steps: int) -> None:
    """Drop what an interrupted attempt wrote after the checkpoint at `steps`."""
    lines = path.read_text().splitlines() if path.exists() else []
    kept: list[str] = []
    for line in lines:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break  # the line that the kill cut off is the last one
        if record["step"] < steps:
            kept.append(line)
    path.write_text("".join(line + "\n" for line in kept))
