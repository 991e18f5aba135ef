"""Supervised fine-tuning of one stage: Ray Train runs the workers, DeepSpeed shards the state.

    train(model=…, plan=…, tokens=[…], objective=…, config=TrainConfig(…), execution=Execution(…), seed=0,
          out=…, work=…, stage="special")

Ray must already be initialised: which cluster to use is not for the trainer to decide. `work` keeps what an
interrupted run needs, under one name, so that calling `train` again with the same arguments continues it; only one
run may use it at a time. `out` appears when the stage is done:

    model/         Hugging Face folder (safetensors, tokenizer, chat template, generation settings, README.md)
    metrics.jsonl  one JSON object per step
    train.json     the summary
    state/         portable optimiser state, when asked for
    marked/        models inside the stage, when asked for: a folder for each mark
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from cuvee.environment import defaults
from cuvee.errors import CuveeError, DataError, Unavailable, UserError
from cuvee.files import Carrier, SharedDisk
from cuvee.signals import own_handler
from training import corpus, deepspeed_config, memory
from training import model as models
from training.objective import Objective
from training.settings import Execution, Lora, Precision, TrainConfig

__all__ = ["Execution", "Lora", "TrainConfig", "TrainResult", "link", "train"]

Progress = Callable[[Mapping[str, Any]], None]

_RUN = "run"
_SPARE_CPU = 0.2
_FETCH = 5.0
"""Seconds between looks at the metrics, where they come from another machine."""


@dataclass(frozen=True)
class TrainResult:
    """What a stage made. `summary` is `train.json`."""

    model: Path
    metrics: Path
    summary: Mapping[str, Any]
    state: Path | None = None


def train(
    *,
    model: Path,
    plan: Path,
    tokens: Sequence[Path],
    objective: Objective,
    config: TrainConfig,
    execution: Execution,
    seed: int,
    out: Path,
    work: Path,
    stage: str,
    reference: Sequence[Path] = (),
    init_state: Path | None = None,
    keep_state: bool = False,
    validation: Mapping[str, Path] | None = None,
    env: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    steps_before: int = 0,
    steps_total: int | None = None,
    marks: Mapping[str, int] | None = None,
    recipe: str = "",
    carrier: Carrier | None = None,
) -> TrainResult:
    """Train `model` on the rows of `plan` in their order, and write the result to `out`.

    `reference` has, for each folder of `tokens`, one of the same parts with the log-probabilities of its rows under
    the frozen model (`id`, `target`, `logprobs`), as the KL penalty at target tokens needs.
    `init_state` is the `state/` folder of an earlier stage whose optimiser goes on. `steps_before` of `steps_total`
    place this stage in a schedule that spans several. `marks` names numbers of rows of the plan: the model is kept as
    it is when these have been trained on. `validation` maps names to token folders of held-out rows. `progress` is
    called with each line of the metrics, in a thread of its own. `recipe` is text for the model card. `carrier` brings
    files to and from machines that do not see the folders of this one (default: all do).

    Raises UserError for settings, data or a machine that cannot work, Unavailable when Ray is not initialised or the
    workers failed more often than `execution.max_failures`.
    """
    import ray

    if not ray.is_initialized():
        raise Unavailable("Ray is not initialised", remedy="connect to a cluster, or start a local one, first")
    described = models.read_config(model)
    models.check(config, execution, model)
    if init_state and (config.lora or config.ia3):
        raise UserError(
            "adapters are merged at the end of a stage, so there is no optimiser to keep for them",
            remedy="set optimiser: restart",
        )
    if objective.reads_reference and len(reference) != len(tokens):
        raise UserError(
            "the penalty at target tokens needs the frozen model's log-probabilities of all tokens",
            remedy="give `reference`, or take kl: {variant: full}",
        )
    precision = models.resolve_precision(config, use_gpu=execution.use_gpu)
    deepspeed_config.settings(config, execution, precision)
    if not plan.is_file():
        raise DataError("no such plan", path=str(plan))
    parts = corpus.parts_of([*tokens, *(validation or {}).values()])
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = execution.cpus_per_worker or cpus_per_worker(execution, nodes)
    _require_memory(described, config, execution, precision, nodes, reference=objective.frozen_beside)
    with plan.open("rb") as file:
        plan_hash = hashlib.file_digest(file, "sha256").hexdigest()[:32]
    facts = {
        "plan": plan_hash,
        "config": config.key(),
        "seed": seed,
        "precision": precision,
        "objective": objective.model_dump(mode="json"),
        "stage": stage,
    }
    from training.worker import MARKED, Job

    job = Job(
        model=model.resolve(),
        plan=plan.resolve(),
        tokens=tuple(Path(folder).resolve() for folder in tokens),
        reference=tuple(Path(folder).resolve() for folder in reference),
        objective=objective,
        config=config,
        execution=execution,
        precision=precision,
        seed=seed,
        out=out.resolve(),
        work=work.resolve(),
        fingerprint=hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest(),
        card={**facts, "base model": model.name, "token parts": len(parts)},
        recipe=recipe,
        init_state=init_state.resolve() if init_state else None,
        keep_state=keep_state,
        validation={name: Path(folder).resolve() for name, folder in (validation or {}).items()},
        steps_before=steps_before,
        steps_total=steps_total,
        marks=dict(marks or {}),
        carrier=carrier or SharedDisk(),
    )
    job.work.mkdir(parents=True, exist_ok=True)
    job.out.mkdir(parents=True, exist_ok=True)
    metrics = job.work / "metrics.jsonl"
    with _following(metrics, progress, job.carrier), own_handler(signal.SIGINT), defaults(_ray_train_settings()):
        summary = _fit(job, cpus, env or {})
    for made in (metrics, job.out, *(job.work / MARKED / name for name in job.marks)):
        job.carrier.fetch(made)
    shutil.copyfile(metrics, job.out / "metrics.jsonl")
    for name in job.marks:
        # Copied and not moved: a training that is killed here finds them again.
        shutil.copytree(job.work / MARKED / name, job.out / MARKED / name, copy_function=link)
    _write(job.out / "train.json", json.dumps(summary, indent=1))
    return TrainResult(job.out / "model", job.out / "metrics.jsonl", summary, job.out / "state" if keep_state else None)


def cpus_per_worker(execution: Execution, nodes: Sequence[Mapping[str, float]]) -> float:
    """CPUs for each worker if none are asked: as many as fit, a little left for those who wait and watch.

    Raises UserError when the cluster can never hold the workers, who would otherwise be waited for.
    """
    gpus = 1 if execution.use_gpu else 0

    def fit(cpus: float) -> int:
        counts = [math.floor((n.get("CPU", 0.0) - _SPARE_CPU) / cpus + 1e-9) for n in nodes]
        if gpus:
            counts = [min(c, int(n.get("GPU", 0))) for c, n in zip(counts, nodes, strict=True)]
        return sum(max(0, count) for count in counts)

    most = max((n.get("CPU", 0.0) for n in nodes), default=0.0) - _SPARE_CPU
    for share in range(1, execution.workers + 1):
        cpus = math.floor(10 * most / share) / 10
        if cpus > 0 and fit(cpus) >= execution.workers:
            return cpus
    have = f"{sum(n.get('CPU', 0) for n in nodes):g} CPUs and {sum(n.get('GPU', 0) for n in nodes):g} GPUs"
    raise UserError(
        f"{execution.workers} workers do not fit this cluster, which has {have} on {len(nodes)} nodes",
        remedy="ask for fewer workers or fewer CPUs per worker, or add machines",
    )


def _require_memory(
    described: Mapping[str, Any],
    config: TrainConfig,
    execution: Execution,
    precision: Precision,
    nodes: Sequence[Mapping[str, float]],
    *,
    reference: bool,
) -> None:
    try:
        planned = memory.plan(described, config, execution, precision, reference=reference)
    except UserError:
        return  # an architecture whose size config.json does not tell: the run will show
    if execution.memory_gb:
        planned.require(device_gb=execution.memory_gb)
    elif not execution.use_gpu:
        import psutil

        # Of a machine elsewhere Ray knows what it may use; of this one the whole counts.
        most = psutil.virtual_memory().total if len(nodes) == 1 else max(node.get("memory", 0) for node in nodes)
        planned.require(device_gb=most / memory.GB / math.ceil(execution.workers / len(nodes)))


def _fit(job: Any, cpus: float, env: Mapping[str, str]) -> dict[str, Any]:
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError

    from training.worker import run

    execution = job.execution
    variables = {"OMP_NUM_THREADS": str(max(1, math.ceil(cpus))), "TOKENIZERS_PARALLELISM": "false"}
    variables |= {"PYTHONWARNINGS": "ignore::FutureWarning", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    if not execution.use_gpu:
        # Busy-waiting threads starve whatever else runs on the machine.
        variables |= {"DS_ACCELERATOR": "cpu", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    asked = {"CPU": cpus, **({"GPU": 1} if execution.use_gpu else {})}
    if execution.memory_gb:
        asked["memory"] = execution.memory_gb * 1e9
    environment = dict(execution.runtime_env)
    environment["env_vars"] = {**variables, **env, **environment.get("env_vars", {})}
    trainer: Any = TorchTrainer(
        cast("Any", run),
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if execution.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=execution.workers,
            use_gpu=execution.use_gpu,
            resources_per_worker=asked,
            label_selector=dict(execution.labels) or None,
        ),
        run_config=RunConfig(  # type: ignore[arg-type]  # typed as the first version of Ray Train
            name=_RUN,
            storage_path=execution.storage or str(job.work),
            failure_config=FailureConfig(max_failures=execution.max_failures, controller_failure_limit=3),
            checkpoint_config=CheckpointConfig(num_to_keep=job.config.keep),
            worker_runtime_env=environment,
        ),
    )
    try:
        result = trainer.fit()
    except TrainingFailedError as failed:
        raise Unavailable(_first_cause(failed), remedy=f"more is in the logs of {job.work}") from failed
    summary = result.return_value
    if summary is None:
        raise CuveeError("the workers ended without a result", remedy=f"see the logs under {job.work}")
    if "error" in summary:
        raise summary["error"]
    return dict(summary)


def _first_cause(failed: Exception) -> str:
    failures = getattr(failed, "worker_failures", None) or {}
    for rank, cause in sorted(failures.items()):
        return f"worker {rank} failed: {str(cause).strip().splitlines()[-1]}"
    return f"training failed: {str(failed).strip().splitlines()[-1]}"


def _ray_train_settings() -> dict[str, str]:
    """What Ray Train reads from the driver's environment only.

    A busy machine takes longer than the default minute to start workers, and one that a cluster starts on demand has to
    install its packages first; and where there is one machine there is none to be preempted, so that the watcher for it
    would only cost another process.
    """
    import ray

    wanted = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1800"}
    if sum(node["Alive"] for node in ray.nodes()) == 1:
        wanted["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    return wanted


@contextlib.contextmanager
def _following(metrics: Path, progress: Progress | None, carrier: Carrier) -> Iterator[None]:
    """Calls `progress` with the lines of `metrics` as they appear."""
    if progress is None:
        yield
        return
    done = threading.Event()

    def follow() -> None:
        seen = -1
        while True:
            last = done.is_set()
            with contextlib.suppress(OSError):
                carrier.fetch(metrics)
            for line in metrics.read_text().splitlines() if metrics.exists() else []:
                with contextlib.suppress(json.JSONDecodeError):
                    record = json.loads(line)
                    if record["step"] > seen:
                        seen = record["step"]
                        progress(record)
            if last:
                return
            done.wait(1 if carrier.shared else _FETCH)

    thread = threading.Thread(target=follow, name="training-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def link(source: str, target: str) -> None:
    """The file under another name if that can be; else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _write(path: Path, text: str) -> None:
    scratch = path.with_name(path.name + ".partial")
    scratch.write_text(text)
    os.replace(scratch, path)
