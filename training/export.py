"""The trained model as a Hugging Face folder that other tools load without us.

The weights are gathered whole on rank 0 and put into a fresh plain model of the base's class: adapters are merged
there, and nothing of DeepSpeed or peft remains. Tokenizer, chat template and generation settings are the base's files,
copied and not re-serialised. What was written is then read back and compared with what the class expects: ZeRO 3 has
been known to save empty tensors (DeepSpeed issues 3841, 5405).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from cuvee.errors import CuveeError
from training.settings import Precision, TrainConfig

_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".index.json", ".h5", ".msgpack", ".onnx")
_OWN = ("config.json", "README.md")


def export(
    base: Path,
    state: Mapping[str, Any],
    config: TrainConfig,
    precision: Precision,
    out: Path,
    card: str,
) -> None:
    """Write the model folder to `out`, whole or not at all. `state` is `training.model.state_dict` of the engine.

    Raises CuveeError when a tensor is missing, has another shape or dtype, or is not finite.
    """
    import torch

    fresh = plain_model(base, state, config, precision)
    scratch = out.with_name(f".{out.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    fresh.config.use_cache = True
    fresh.save_pretrained(scratch)
    for path in sorted(base.iterdir()):
        if path.is_file() and path.name not in _OWN and not path.name.endswith(_WEIGHTS):
            shutil.copyfile(path, scratch / path.name)
    (scratch / "README.md").write_text(card)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    verify(scratch, fresh, dtype)
    shutil.rmtree(out, ignore_errors=True)
    scratch.rename(out)


def plain_model(base: Path, state: Mapping[str, Any], config: TrainConfig, precision: Precision) -> Any:
    """A model of the base's class with the trained weights, on the host; adapters merged."""
    import torch
    from transformers import AutoModelForCausalLM

    from training.model import adapted

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, trust_remote_code=False)
    merged = bool(config.lora or config.ia3)
    if merged:
        model = adapted(model, config)
    expected = dict(model.named_parameters())
    # A base of 4 bits stays what it was: only what learnt is taken over.
    taken = {n: t for n, t in state.items() if not config.qlora or (n in expected and expected[n].requires_grad)}
    wrong = [n for n, t in taken.items() if n in expected and t.shape != expected[n].shape]
    absent = sorted(n for n, p in expected.items() if n not in taken and not (config.qlora and not p.requires_grad))
    if wrong or absent:
        raise CuveeError(f"the trained weights do not fit the model: {(wrong + absent)[:3]}")
    with torch.no_grad():
        for name, parameter in expected.items():
            if name in taken:
                parameter.copy_(taken[name])
        for name, tensor in model.named_buffers():
            if name in taken:
                tensor.copy_(taken[name])
    if merged:
        model = cast("Any", model).merge_and_unload()
    return model.eval()


def verify(folder: Path, model: Any, dtype: Any) -> None:
    """Every saved tensor against the model's: name, shape, dtype of floating tensors, finite. Ties may be left out."""
    import torch
    from safetensors import safe_open

    expected = {name: tensor for name, tensor in model.state_dict().items()}
    storage = {name: tensor.data_ptr() for name, tensor in expected.items()}
    found: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                tensor = file.get_tensor(name)
                if name not in expected:
                    raise CuveeError(f"{path.name} holds {name}, which the model does not have")
                if tensor.shape != expected[name].shape or tensor.numel() == 0:
                    raise CuveeError(f"{name} was saved as {tuple(tensor.shape)}, not {tuple(expected[name].shape)}")
                if tensor.is_floating_point() and tensor.dtype not in (dtype, expected[name].dtype):
                    raise CuveeError(f"{name} was saved as {tensor.dtype}, not {dtype}")
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                    raise CuveeError(f"{name} is not finite", remedy="lower the learning rate")
                found.add(name)
    there = {storage[name] for name in found}
    absent = [name for name in expected if name not in found and storage[name] not in there]
    if absent:
        raise CuveeError(f"not saved: {', '.join(absent[:3])}")


def model_card(facts: Mapping[str, Any], sources: Mapping[str, Mapping[str, int]], recipe: str = "") -> str:
    """README.md: what the model is, its data table, its settings and the recipe, in hub format."""
    table = "\n".join(f"| {name} | {row['rows']} | {row['tokens']} |" for name, row in sorted(sources.items()))
    lines = "\n".join(f"| {name} | {json.dumps(value)} |" for name, value in facts.items())
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [cuvee, sft]\n---",
        "# Model trained with Cuvee",
        "## Data\n\n| source | rows in the plan | tokens |\n|---|---|---|\n" + table,
        "## Settings\n\n| | |\n|---|---|\n" + lines,
    ]
    if recipe:
        parts.append(f"## Recipe\n\n```yaml\n{recipe.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"
