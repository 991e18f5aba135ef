"""Checkpoints of a run, and the optimiser state that one stage hands to the next.

Two forms. *Sharded* is DeepSpeed's own: every rank writes its part, nothing is gathered, and it continues at the same
ZeRO stage and number of workers (at stage 0, at any number). *Portable* holds whole fp32 tensors by parameter name
(weight, first and second moment of Adam) and the number of steps: slower, since one rank writes all, and it continues
at any stage and any number of workers. DeepSpeed's universal form fails between stages, which is why there is this one.

Neither holds random state: the trainer seeds every step by its number. Nor a scheduler: the rate is a function of the
step. What remains is weights, moments and the step number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cuvee.errors import CuveeError, DataError, UserError
from training.model import gathered

MOMENTS = ("exp_avg", "exp_avg_sq")
SHARD_BYTES = 2 * 10**9
_TAG = "state"


def save(engine: Any, folder: Path, *, form: str, facts: Mapping[str, Any]) -> None:
    """Write this rank's part of a checkpoint to `folder`. Every rank must call it. `facts` says where the run is."""
    folder.mkdir(parents=True, exist_ok=True)
    if form == "portable":
        save_portable(engine, folder, step=int(facts["step"]))
    else:
        engine.save_checkpoint(str(folder), tag=_TAG, save_latest=False, exclude_frozen_parameters=True)
    if _rank() == 0:
        (folder / "facts.json").write_text(json.dumps({**facts, "form": form}))


def read_facts(folder: Path) -> dict[str, Any]:
    """What `save` was told. Raises DataError when the folder is no checkpoint."""
    try:
        return json.loads((folder / "facts.json").read_text())
    except FileNotFoundError:
        raise DataError("no facts.json: not a whole checkpoint", path=str(folder)) from None


def refuse_other_run(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises UserError when a checkpoint is of another run, or in a form that this layout cannot read."""
    if found["fingerprint"] != expected["fingerprint"]:
        raise UserError(
            "the work folder holds a checkpoint of another plan, configuration or seed", remedy="give an empty folder"
        )
    if found["form"] == "portable":
        return
    same_stage = found["stage"] == expected["stage"] and found["precision"] == expected["precision"]
    if not same_stage or (found["world"] != expected["world"] and found["stage"] > 0):
        raise UserError(
            f"the checkpoint was written by {found['world']} workers at ZeRO {found['stage']} ({found['precision']}); "
            f"this run has {expected['world']} at ZeRO {expected['stage']} ({expected['precision']}), and DeepSpeed's "
            "sharded form does not carry over",
            remedy="continue with the first layout, or write checkpoints: portable from the start",
        )


def load_sharded(engine: Any, folder: Path) -> None:
    """Continue from DeepSpeed's own form. Every rank must call it."""
    path, _ = engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=False)
    if path is None:
        raise CuveeError(f"DeepSpeed could not read the checkpoint {folder}", remedy="remove it to start again")


def save_portable(engine: Any, folder: Path, *, step: int) -> None:
    """Write `state-*.safetensors` (`<name>.weight|exp_avg|exp_avg_sq`, fp32) and `state.json`, by rank 0.

    Every rank must call it, since gathering is collective.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    shard: dict[str, Any] = {}
    shards = size = 0
    for key, tensor in _whole_state(engine):
        if _rank() != 0:
            continue
        shard[key] = tensor.detach().to("cpu", copy=True).contiguous()
        size += tensor.numel() * 4
        if size > SHARD_BYTES:
            save_file(shard, folder / f"state-{shards:05d}.safetensors")
            shard, shards, size = {}, shards + 1, 0
    if _rank() == 0:
        if shard:
            save_file(shard, folder / f"state-{shards:05d}.safetensors")
        (folder / "state.json").write_text(json.dumps({"format": 1, "step": step, "updates": _updates(engine)}))


def read_portable(folder: Path) -> dict[str, Any]:
    """`state.json`, with `keys`: which file holds which tensor. Raises DataError when it is not a portable state."""
    from safetensors import safe_open

    try:
        state = json.loads((folder / "state.json").read_text())
    except FileNotFoundError:
        raise DataError("no state.json: not a portable optimiser state", path=str(folder)) from None
    state["keys"] = {}
    for path in sorted(folder.glob("state-*.safetensors")):
        with safe_open(path, framework="pt") as file:
            state["keys"] |= dict.fromkeys(file.keys(), path)
    return state


def load_weights(model: Any, state: Mapping[str, Any]) -> None:
    """Put the fp32 weights of a portable state into the model, before DeepSpeed takes it. Every rank must call it."""
    import torch

    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            value = _tensor(state, f"{name}.weight")
            with torch.no_grad(), gathered([parameter], write=True):
                parameter.copy_(value)


def load_moments(engine: Any, state: Mapping[str, Any], *, weights: bool) -> None:
    """Put Adam's moments (and with `weights` the fp32 master weights) into a fresh engine. Every rank must call it."""
    import torch
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    updates = float(state["updates"])
    if engine.zero_optimization_stage() == 0:
        for name, parameter in engine.module.named_parameters():
            if parameter.requires_grad:
                engine.optimizer.state[parameter] = {
                    "step": torch.tensor(updates, dtype=torch.float32),
                    **{moment: _tensor(state, f"{name}.{moment}").to(parameter.device) for moment in MOMENTS},
                }
        return
    _prime(engine, updates)
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if weights:
            safe_set_full_fp32_param(parameter, _tensor(state, f"{name}.weight").to(engine.device))
        for moment in MOMENTS:
            safe_set_full_optimizer_state(parameter, _tensor(state, f"{name}.{moment}").to(engine.device), moment)


def _flat(engine: Any) -> list[Any]:
    """The flat fp32 partitions that the inner optimiser of ZeRO steps on."""
    zero = engine.optimizer
    return list(zero.fp32_partitioned_groups_flat if hasattr(zero, "fp32_partitioned_groups_flat") else
                zero.single_partition_of_fp32_groups)  # fmt: skip


def _prime(engine: Any, updates: float) -> None:
    """Give the inner optimiser the empty state that torch's Adam makes at its first step only."""
    import torch

    zero = engine.optimizer
    for partition in _flat(engine):
        zero.optimizer.state[partition] = {
            "step": torch.tensor(updates, dtype=torch.float32),
            **{moment: torch.zeros_like(partition) for moment in MOMENTS},
        }
    link = getattr(zero, "_lazy_init_hp_params_optimizer_state", None)
    if link:
        link()


def _updates(engine: Any) -> float:
    """How many updates Adam has made, for its bias correction; skipped fp16 steps do not count."""
    inner = engine.optimizer if engine.zero_optimization_stage() == 0 else engine.optimizer.optimizer
    steps = [float(entry["step"]) for entry in inner.state.values() if "step" in entry]
    return max(steps, default=0.0)


def _whole_state(engine: Any) -> Iterator[tuple[str, Any]]:
    """(key, whole fp32 tensor) of every parameter that learns."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if engine.zero_optimization_stage() == 0:
            yield f"{name}.weight", parameter
            for moment in MOMENTS:
                yield f"{name}.{moment}", engine.optimizer.state[parameter][moment]
        else:
            yield f"{name}.weight", safe_get_full_fp32_param(parameter)
            for moment in MOMENTS:
                yield f"{name}.{moment}", safe_get_full_optimizer_state(parameter, moment)


def _tensor(state: Mapping[str, Any], key: str) -> Any:
    from safetensors import safe_open

    if key not in state["keys"]:
        raise UserError(f"the optimiser state has no {key}", remedy="it is of another model or other adapters")
    with safe_open(state["keys"][key], framework="pt") as file:
        return file.get_tensor(key)


def _rank() -> int:
    import torch.distributed as dist

    return dist.get_rank() if dist.is_initialized() else 0
