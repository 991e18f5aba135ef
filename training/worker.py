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
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cuvee.errors import CuveeError, DataError, UserError
from cuvee.files import Carrier, SharedDisk
from training import checkpoint, corpus, deepspeed_config, export, memory, schedule
from training.batches import Batches, ahead
from training.engine import Engine
from training.model import resolve_attention, state_dict
from training.objective import Objective, token_weights
from training.settings import Execution, Precision, TrainConfig

T = TypeVar("T")
CARRY = 10.0
"""Seconds between copies of the metrics to the command, where machines share no disk."""

PATIENCE = 10
"""Steps without a single trained token after which a run is given up."""

MARKED = "marked"
"""Folder, in `work`, of the models at the marks."""


@dataclass(frozen=True)
class Job:
    """All that a worker is told. Paths are those of the command's machine; see `here`."""

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
    reference: tuple[Path, ...] = ()
    init_state: Path | None = None
    keep_state: bool = False
    validation: Mapping[str, Path] = field(default_factory=dict)
    marks: Mapping[str, int] = field(default_factory=dict)
    steps_before: int = 0
    steps_total: int | None = None
    carrier: Carrier = field(default_factory=SharedDisk)

    def here(self) -> Job:
        """The job with the paths of this machine."""
        carrier = self.carrier
        if carrier.shared:
            return self
        base = Path(tempfile.gettempdir()) / "cuvee-train" / self.work.name
        for name in ("out", "work"):
            (base / name).mkdir(parents=True, exist_ok=True)
        return replace(
            self,
            model=carrier.here(self.model),
            plan=carrier.here(self.plan),
            tokens=tuple(carrier.here(folder) for folder in self.tokens),
            reference=tuple(carrier.here(folder) for folder in self.reference),
            init_state=carrier.here(self.init_state) if self.init_state else None,
            validation={name: carrier.here(folder) for name, folder in self.validation.items()},
            out=base / "out",
            work=base / "work",
        )


def run(arguments: dict[str, Any]) -> dict[str, Any]:
    """Entry point: `{"job": Job}` to the summary of `train.json`, or `{"error": CuveeError}`."""
    try:
        return _Run(arguments["job"]).go()
    except Agreed as agreed:
        return {"error": agreed.error}


class Agreed(Exception):
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
        raise Agreed(first)
    return value  # type: ignore[return-value]


class _Run:
    def __init__(self, job: Job) -> None:
        import torch
        import torch.distributed as dist
        from ray import train

        self.told, self.carried = job, 0.0
        self.job = job = agree(job.here)
        self.config, self.execution = job.config, job.execution
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.local_rank = train.get_context().get_local_rank()
        if job.execution.use_gpu:
            from ray.train.torch import get_device

            self.device = get_device()
        else:
            torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
            self.device = torch.device("cpu")
        self.metrics = job.work / "metrics.jsonl"
        self.copies: list[Path] = []
        self.last: dict[str, Any] = {}

    def go(self) -> dict[str, Any]:
        from ray import train

        found = train.get_checkpoint()
        with found.as_directory() if found else nullcontext() as folder:
            self.prepare(Path(folder) if folder else None)
        self.loop()
        return self.finish()

    def prepare(self, resume: Path | None) -> None:
        """Data and engine, or an error that all ranks know of."""
        job = self.job
        agree(self.see)
        found = agree(partial(checkpoint.read_facts, resume, job.fingerprint)) if resume else {}
        self.start = int(found.get("step", 0))
        self.batches = self.open(job.plan, job.tokens, job.reference)
        self.validation = {name: self.open(None, [path]) for name, path in sorted(job.validation.items())}
        self.marks = {name: self.batches.steps_after(rows) for name, rows in job.marks.items()}
        self.total = job.steps_total or job.steps_before + self.batches.steps
        if resume and not checkpoint.is_native(resume, deepspeed_config.layout(self.execution, job.precision)):
            portable = job.work / "portable"
            maker = self.rank == 0 if job.carrier.shared else self.local_rank == 0
            agree(partial(checkpoint.to_portable, resume, portable) if maker else lambda: None)
            resume = portable
        self.engine = agree(
            lambda: Engine(
                job.model,
                job.objective,
                self.config,
                self.execution,
                job.precision,
                seed=job.seed,
                device=self.device,
                resume=resume,
                init_state=job.init_state,
            )
        )
        if self.rank == 0:
            shutil.rmtree(job.work / "portable", ignore_errors=True)
            if resume and not job.carrier.shared:
                # The attempt before this one may have run on another machine.
                job.carrier.fetch(self.told.work / "metrics.jsonl", self.metrics)
            _keep_lines(self.metrics, self.start)

    def see(self) -> None:
        """Every machine must see the same folders."""
        job = self.job
        needed = [job.model, job.plan, *job.tokens, *job.reference, job.work, job.out]
        needed += [job.init_state] if job.init_state else []
        absent = [str(path) for path in needed if not path.exists()]
        if absent:
            raise UserError(
                f"{socket.gethostname()} does not see {', '.join(absent)}",
                remedy="keep the store in a folder that all machines of the cluster share",
            )

    def open(self, plan: Path | None, tokens: Sequence[Path], reference: Sequence[Path] = ()) -> Batches:
        """The first worker of each machine makes the copy; the others wait for it in `agree`."""
        job = self.job

        def build() -> Path:
            folder = (
                Path(tempfile.gettempdir()) / "cuvee-corpus" / corpus.digest(plan, [*tokens, *reference], str(job.work))
            )
            if self.local_rank == 0 and not folder.exists():
                corpus.build(plan, tokens, folder, reference)
            return folder

        folder = agree(build)
        self.copies.append(folder)
        return agree(
            lambda: Batches(
                corpus.open_corpus(folder),
                partial(token_weights, job.objective),
                self.config,
                normalise=job.objective.normalise,
                smoothing=job.objective.smoothing,
                seed=job.seed,
                micro_batch=self.execution.micro_batch,
                world=self.world,
                rank=self.rank,
                flat=resolve_attention(self.execution, job.precision).startswith("flash"),
            )
        )

    def loop(self) -> None:
        """The steps, each with its line of metrics, and validation and checkpoints where they are due."""
        job, config, steps = self.job, self.config, self.batches.steps
        sources = self.batches.corpus.sources
        saved, trained = time.time(), 0
        waited = time.perf_counter()
        for step, micros in enumerate(ahead(self.batches.micros, self.start, steps), self.start):
            began = time.perf_counter()
            rate = schedule.learning_rate(config, job.steps_before + step, self.total)
            sums, spent = self.engine.update(step, micros, len(sources), rate)
            ended = time.perf_counter()
            line: dict[str, Any] = {
                "step": step,
                "clock": round(sums.clock, 3),
                "loss": sums.loss,
                "loss_by_source": sums.by_source(sources),
                "tokens_trained": int(sums.trained.sum()),
                "tokens": sums.tokens,
                "rows": len(self.batches.rows(step)),
                "rows_untrained": self.batches.untrained.pop(step),
                "grad_norm": self.engine.norm,
                "lr": rate,
                "tokens_per_s": round(sums.tokens / (ended - waited), 2),
                "seconds": round(ended - waited, 4),
                "spent": {"data": round(began - waited, 4), **{k: round(v, 4) for k, v in spent.items()}},
                "memory_gb": round(memory.in_use_gb(self.execution.use_gpu), 3),
            }
            last = step + 1 == steps
            if self.validation and (last or (config.validation_every and (step + 1) % config.validation_every == 0)):
                line["validation"] = self.validate()
            self.write(line)
            if not np.isfinite(sums.loss) and job.precision != "fp16":
                remedy = "lower the learning rate, or look at the rows of this step in the plan"
                raise Agreed(CuveeError(f"the loss of step {step} is not finite", remedy=remedy))
            trained += line["tokens_trained"]
            if not trained and step + 1 == min(PATIENCE, steps):
                raise Agreed(
                    DataError(
                        f"no token of the first {step + 1} batches carries loss",
                        remedy="look at the weights with `cuvee mask`; max_len may cut the answers off",
                    )
                )
            # Before the checkpoint, so that a run that goes on after this step need not come back for them.
            for name in (name for name, at in self.marks.items() if at == step + 1):
                self.export(job.work / MARKED / name, step + 1)
                if self.rank == 0:
                    job.carrier.send(job.work / MARKED / name, self.told.work / MARKED / name)
            due = config.checkpoint_minutes is not None and sums.clock - saved > 60 * config.checkpoint_minutes
            if not last and (due or (config.checkpoint_every and (step + 1) % config.checkpoint_every == 0)):
                self.save(step + 1)
                saved = sums.clock
            waited = time.perf_counter()

    def write(self, line: dict[str, Any]) -> None:
        self.last = line
        if self.rank == 0:
            with self.metrics.open("a") as file:
                file.write(json.dumps(line) + "\n")
            if time.monotonic() - self.carried > CARRY:
                self.carry_metrics()

    def carry_metrics(self) -> None:
        self.job.carrier.send(self.metrics, self.told.work / "metrics.jsonl")
        self.carried = time.monotonic()

    def validate(self) -> dict[str, dict[str, float]]:
        """Mean loss per weighted token on held-out rows: by table, then by source and over `all`."""
        out = {}
        for name, batches in self.validation.items():
            sources = batches.corpus.sources
            sums = self.engine.evaluate(ahead(batches.micros, 0, batches.steps), len(sources))
            out[name] = {**sums.by_source(sources), "all": float(sums.weighted.sum() / max(sums.weight.sum(), 1e-12))}
        return out

    def save(self, step: int) -> None:
        """A checkpoint of `step` finished steps: written to this machine, carried to the storage in the background."""
        from ray import train
        from ray.train import Checkpoint, CheckpointUploadMode

        folder = Path(tempfile.mkdtemp(prefix="cuvee-checkpoint-"))
        self.engine.save(folder, {"step": step, "fingerprint": self.job.fingerprint})
        train.report(
            {"step": step, "loss": self.last["loss"]},
            checkpoint=Checkpoint.from_directory(folder),
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )

    def finish(self) -> dict[str, Any]:
        """Export, clean up, and the summary."""
        job, batches = self.job, self.batches
        if job.keep_state:
            self.engine.save_state(job.out / "state", job.steps_before + batches.steps)
        self.export(job.out / "model", batches.steps)
        if self.local_rank == 0:
            for folder in self.copies:
                shutil.rmtree(folder, ignore_errors=True)
        if self.rank:
            return {}
        self.carry_metrics()
        job.carrier.send(job.out, self.told.out)
        if not job.carrier.shared:
            shutil.rmtree(job.out)
        lines = [json.loads(line) for line in self.metrics.read_text().splitlines()]
        return {
            "steps": batches.steps,
            "loss": lines[-1]["loss"],
            "seconds": round(sum(line["seconds"] for line in lines), 3),
            "tokens": sum(line["tokens"] for line in lines),
            "tokens_trained": sum(line["tokens_trained"] for line in lines),
            "rows": len(batches.order),
            "rows_untrained": sum(line["rows_untrained"] for line in lines),
            "truncated": batches.truncated,
            "dropped": batches.dropped,
            "resumed_at": self.start,
            "workers": self.world,
            "zero": self.engine.stage,
            "precision": job.precision,
            "validation": lines[-1].get("validation", {}),
        }

    def export(self, folder: Path, after: int) -> None:
        """The model as it is after so many steps, gathered from all ranks and written by the first."""
        weights = state_dict(self.engine.module)
        agree(partial(self.write_model, weights, folder, after) if self.rank == 0 else lambda: None)

    def write_model(self, weights: Mapping[str, Any], folder: Path, after: int) -> None:
        job, batches = self.job, self.batches
        names = np.array(batches.corpus.sources)[batches.corpus.source[batches.order]]
        tokens = batches.lengths[batches.order]
        table = {
            str(name): {"rows": int((names == name).sum()), "tokens": int(tokens[names == name].sum())}
            for name in np.unique(names)
        }
        facts = {**job.card, "steps": batches.steps, **({"taken after step": after} if after < batches.steps else {})}
        card = export.model_card(facts, table, job.recipe)
        export.export(job.model, weights, self.config, job.precision, folder, card)


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
