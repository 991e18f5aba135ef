"""Checkpoints of a run, and the optimiser state that one stage hands to the next.

A checkpoint is DeepSpeed's own: every rank writes its part, nothing is gathered, and it continues in the same layout
(ZeRO stage, number of workers, offload). For any other layout it is first turned into the *portable* form: whole fp32
tensors by parameter name (weight, first and second moment of Adam) and the number of updates. DeepSpeed's converter to
its universal form brings the tensors together; its loader is not used, since it fails between stages. The portable
form is also what a stage leaves for the next one to go on with.

Neither holds random state: the trainer seeds every step by its number. Nor a scheduler: the rate is a function of the
step. What remains is weights, moments and the step number.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cuvee.errors import CuveeError, DataError, UserError
from training.model import decay_groups, gathered, learning

MOMENTS = ("exp_avg", "exp_avg_sq")
SHARD_BYTES = 2 * 10**9
_TAG = "state"


def save(engine: Any, folder: Path, facts: Mapping[str, Any]) -> None:
    """Write this rank's part of a checkpoint to `folder`. Every rank must call it. `facts` says where the run is."""
    folder.mkdir(parents=True, exist_ok=True)
    engine.save_checkpoint(str(folder), tag=_TAG, save_latest=False, exclude_frozen_parameters=True)
    if _rank() == 0:
        named = {id(parameter): name for name, parameter in learning(engine.module)}
        order = [named[id(p)] for group in decay_groups(engine.module, 0) for p in group["params"]]
        shapes = {name: list(getattr(p, "ds_shape", p.shape)) for name, p in learning(engine.module)}
        known = {"updates": _updates(engine), "shapes": {name: shapes[name] for name in order}}
        (folder / "facts.json").write_text(json.dumps({**facts, **known}))


def read_facts(folder: Path, fingerprint: str) -> dict[str, Any]:
    """What `save` was told. Raises DataError when the folder is no checkpoint, UserError when it is of another run."""
    try:
        found = json.loads((folder / "facts.json").read_text())
    except FileNotFoundError:
        raise DataError("no facts.json: not a whole checkpoint", path=str(folder)) from None
    if found["fingerprint"] != fingerprint:
        raise UserError(
            "the work folder holds a checkpoint of another plan, configuration or seed", remedy="give an empty folder"
        )
    return found


def is_native(folder: Path, layout: Mapping[str, Any]) -> bool:
    """Whether DeepSpeed itself can go on from the checkpoint in this layout."""
    path = folder / "facts.json"
    return path.exists() and json.loads(path.read_text())["layout"] == layout


def load(engine: Any, folder: Path) -> None:
    """Continue from a checkpoint in the layout that wrote it. Every rank must call it."""
    path, _ = engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=False)
    if path is None:
        raise CuveeError(f"DeepSpeed could not read the checkpoint {folder}", remedy="remove it to start again")


def to_portable(folder: Path, out: Path) -> None:
    """Turn a whole checkpoint into the portable form, on one rank. Needs room for about 12 bytes a parameter, twice."""
    facts = json.loads((folder / "facts.json").read_text())
    shutil.rmtree(out, ignore_errors=True)
    made = _from_stage_0(folder, facts) if facts["layout"]["stage"] == 0 else _from_universal(folder, facts, out)
    _write_portable(out, made, step=facts["step"], updates=facts["updates"])


def _from_stage_0(folder: Path, facts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """At stage 0 one file has everything; the optimiser numbers its parameters in the order of its groups."""
    import torch

    stored = torch.load(folder / _TAG / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)
    moments = stored["optimizer"]["state"]
    for number, name in enumerate(facts["shapes"]):
        yield f"{name}.weight", stored["module"][name].float()
        for moment in MOMENTS:
            yield f"{name}.{moment}", moments[number][moment]


def _from_universal(folder: Path, facts: Mapping[str, Any], out: Path) -> Iterator[tuple[str, Any]]:
    import torch
    from deepspeed.checkpoint import ds_to_universal

    scratch = out.with_name(f"{out.name}.universal")
    shutil.rmtree(scratch, ignore_errors=True)
    arguments = Namespace(
        input_folder=str(folder / _TAG),
        output_folder=str(scratch),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=False,
        inject_missing_state=True,
    )
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        ds_to_universal.main(arguments)
    for name, shape in facts["shapes"].items():
        for kind, key in (("weight", "fp32"), *((moment, moment) for moment in MOMENTS)):
            found = torch.load(scratch / "zero" / name / f"{key}.pt", map_location="cpu", weights_only=False)
            yield f"{name}.{kind}", (found["param"] if isinstance(found, Mapping) else found).reshape(shape)
    shutil.rmtree(scratch, ignore_errors=True)


def save_portable(engine: Any, folder: Path, *, step: int) -> None:
    """Write the portable form of a live engine, by rank 0. Every rank must call it, since gathering is collective."""
    updates = _updates(engine)
    if _rank() == 0:
        _write_portable(folder, _whole_state(engine), step=step, updates=updates)
    else:
        for _ in _whole_state(engine):
            pass


def _write_portable(folder: Path, state: Iterable[tuple[str, Any]], *, step: int, updates: float) -> None:
    """`state-*.safetensors` with `<name>.weight|exp_avg|exp_avg_sq` in fp32, and `state.json` when all are there."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    shard: dict[str, Any] = {}
    shards = size = 0
    for key, tensor in state:
        shard[key] = tensor.detach().to("cpu", copy=True).contiguous()
        size += tensor.numel() * 4
        if size > SHARD_BYTES:
            save_file(shard, folder / f"state-{shards:05d}.safetensors")
            shard, shards, size = {}, shards + 1, 0
    if shard:
        save_file(shard, folder / f"state-{shards:05d}.safetensors")
    (folder / "state.json").write_text(json.dumps({"format": 1, "step": step, "updates": updates}))


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

    for name, parameter in learning(model):
        value = _tensor(state, f"{name}.weight")
        with torch.no_grad(), gathered([parameter], write=True):
            parameter.copy_(value)


def load_moments(engine: Any, state: Mapping[str, Any], *, weights: bool) -> None:
    """Put Adam's moments (and with `weights` the fp32 master weights) into a fresh engine. Every rank must call it."""
    import torch
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    updates = float(state["updates"])
    if engine.zero_optimization_stage() == 0:
        for name, parameter in learning(engine.module):
            engine.optimizer.state[parameter] = {
                "step": torch.tensor(updates, dtype=torch.float32),
                **{moment: _tensor(state, f"{name}.{moment}").to(parameter.device) for moment in MOMENTS},
            }
        return
    _prime(engine, updates)
    for name, parameter in learning(engine.module):
        if weights:
            safe_set_full_fp32_param(parameter, _tensor(state, f"{name}.weight").to(engine.device))
        for moment in MOMENTS:
            safe_set_full_optimizer_state(parameter, _tensor(state, f"{name}.{moment}").to(engine.device), moment)


def _flat(engine: Any) -> list[Any]:
    """The flat fp32 partitions that the inner optimiser of ZeRO steps on."""
    names = ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition")
    return list(next(getattr(engine.optimizer, name) for name in names if hasattr(engine.optimizer, name)))


def _prime(engine: Any, updates: float) -> None:
    """Give the inner optimiser the empty state that torch's Adam makes at its first step only."""
    import torch

    zero = engine.optimizer
    for partition in _flat(engine):
        zero.optimizer.state[partition] = {
            "step": torch.tensor(updates, dtype=torch.float32),
            **{moment: torch.zeros_like(partition) for moment in MOMENTS},
        }
    _link(zero)


def _link(zero: Any) -> None:
    """Let DeepSpeed see the moments of every parameter group: its stages 1 and 2 look once, after the first group."""
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _updates(engine: Any) -> float:
    """How many updates Adam has made, for its bias correction; skipped fp16 steps do not count."""
    inner = engine.optimizer if engine.zero_optimization_stage() == 0 else engine.optimizer.optimizer
    steps = [float(entry["step"]) for entry in inner.state.values() if "step" in entry]
    return max(steps, default=0.0)


def _whole_state(engine: Any) -> Iterator[tuple[str, Any]]:
    """(key, whole fp32 tensor) of every parameter that learns."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    _link(engine.optimizer)
    for name, parameter in learning(engine.module):
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
