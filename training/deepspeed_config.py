"""DeepSpeed's JSON from our settings.

Accumulation is ours (`managed_gradient_accumulation: false`): a step may have any number of micro-batches, which
packing needs, and the loss is normalised over the global batch beforehand, so nothing may be divided by a count of
micro-batches. ZeRO stages as in arXiv 1910.02054; offload as in arXiv 2101.06840.

A raw DeepSpeed JSON is merged in last. What the recipe already says must not be said again with another value there:
two truths about a learning rate are an error, not a preference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cuvee.errors import UserError
from training.settings import Execution, Precision, TrainConfig

OURS = {
    "train_batch_size": "train.global_batch",
    "train_micro_batch_size_per_gpu": "micro_batch",
    "gradient_accumulation_steps": "train.global_batch and micro_batch",
    "managed_gradient_accumulation": "nothing: accumulation is done by the trainer",
    "gradient_clipping": "train.clip",
    "scheduler": "train.schedule and train.warmup",
    "optimizer": "train.lr, train.betas, train.eps and train.weight_decay",
    "fp16.enabled": "train.precision",
    "bf16.enabled": "train.precision",
    "zero_optimization.stage": "zero",
    "zero_optimization.offload_optimizer.device": "offload",
    "zero_optimization.offload_param.device": "offload",
    "prescale_gradients": "nothing: the loss is normalised by the trainer",
    "gradient_predivide_factor": "nothing: the loss is normalised by the trainer",
}


def stage_of(execution: Execution, precision: Precision) -> int:
    """The ZeRO stage that runs: half precision keeps fp32 master weights, which begin at stage 1."""
    return max(1, execution.zero) if precision != "fp32" else execution.zero


def layout(execution: Execution, precision: Precision) -> dict[str, Any]:
    """What decides how DeepSpeed cuts up the state, and so which checkpoints it can read."""
    return {"stage": stage_of(execution, precision), "world": execution.workers, "offload": execution.offload}


def settings(config: TrainConfig, execution: Execution, precision: Precision) -> dict[str, Any]:
    """The JSON. Raises UserError when the raw part contradicts the recipe."""
    stage = stage_of(execution, precision)
    optimiser: dict[str, Any] = {"lr": config.lr, "betas": list(config.betas), "eps": config.eps, "weight_decay": 0.0}
    if not (execution.use_gpu and execution.offload != "none"):
        optimiser |= {"torch_adam": True, "fused": True}
    out: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": execution.micro_batch,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "optimizer": {"type": "AdamW", "params": optimiser},
        "zero_optimization": {"stage": stage},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    out["gradient_clipping"] = config.clip or 0.0
    if precision == "bf16":
        out["bf16"] = {"enabled": True}
    elif precision == "fp16":
        out["fp16"] = {"enabled": True, "loss_scale": 0, "initial_scale_power": 16}
    zero = out["zero_optimization"]
    if execution.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": execution.use_gpu}
    if execution.offload == "parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": execution.use_gpu}
    _refuse_conflicts(execution.deepspeed or {}, out)
    made = _merged(out, execution.deepspeed or {})
    if stage == 0:
        # There DeepSpeed clips before the norm can be seen (and at 1.0 unless told otherwise): the engine does it.
        made["gradient_clipping"] = 0.0
    return made


def _refuse_conflicts(raw: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    for path, instead in OURS.items():
        given, known = _at(raw, path), _at(ours, path)
        if given is not None and given != "auto" and given != known:
            raise UserError(
                f"deepspeed: {path} is {given!r}, the recipe says {known!r}",
                remedy=f"leave it out; it follows {instead}",
            )


def _at(tree: Mapping[str, Any], path: str) -> Any:
    node: Any = tree
    for key in path.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping):
            out[key] = _merged(out.get(key, {}), value)
        elif value != "auto":
            out[key] = value
    return out
