"""The model that a stage trains: precision, attention, and which parameters learn."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cuvee.errors import MissingError, UserError
from training.settings import Execution, Precision, TrainConfig


def resolve_precision(config: TrainConfig, *, use_gpu: bool) -> Precision:
    """`auto` is bf16 on GPUs that compute it and fp32 elsewhere. The resolved value belongs to the step's key.

    Raises UserError for fp16 without a GPU.
    """
    if config.precision == "fp16" and not use_gpu:
        raise UserError("precision fp16 needs a GPU", remedy="use fp32 or bf16")
    if config.precision != "auto":
        return config.precision
    if not use_gpu:
        return "fp32"
    import torch

    return "bf16" if not torch.cuda.is_available() or torch.cuda.is_bf16_supported() else "fp16"


def resolve_attention(execution: Execution, precision: Precision) -> str:
    """`auto` is FlashAttention 2 where it is installed and can run, else torch's fused attention."""
    if execution.attention != "auto":
        return execution.attention
    flash = execution.use_gpu and precision != "fp32" and importlib.util.find_spec("flash_attn") is not None
    return "flash_attention_2" if flash else "sdpa"


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder. Raises UserError when there is none."""
    try:
        return json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise UserError(f"{folder} has no config.json", remedy="give the folder of a Hugging Face model") from None


def tensor_names(folder: Path) -> list[str]:
    """Names of the saved tensors, from the headers alone; empty when they are in no safetensors files."""
    from safetensors import safe_open

    names: list[str] = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            names += file.keys()
    return names


def check(config: TrainConfig, execution: Execution, folder: Path) -> None:
    """Refuse, before anything starts, what this model or machine cannot do."""
    model = read_config(folder)
    text = model.get("text_config", model)
    longest = text.get("max_position_embeddings")
    if longest and config.max_len > longest:
        raise UserError(
            f"max_len {config.max_len} is above the model's {longest} positions", remedy=f"set max_len to {longest}"
        )
    if config.qlora:
        if not execution.use_gpu:
            raise MissingError("qlora needs a GPU", remedy="train with lora, or set use_gpu")
        if importlib.util.find_spec("bitsandbytes") is None:
            raise MissingError("qlora needs the package bitsandbytes", remedy="pip install 'cuvee[gpu]'")
        if execution.zero == 3:
            raise UserError("qlora cannot be sharded by ZeRO 3", remedy="use zero: 2")
    if config.bias_only:
        names = tensor_names(folder)
        if names and not any(name.endswith("bias") for name in names):
            raise UserError("nothing would train: this model has no biases", remedy="use lora or ia3")
    if execution.attention.startswith("flash") and not execution.use_gpu:
        raise UserError(f"attention {execution.attention} needs a GPU", remedy="use sdpa, or auto")


def load(folder: Path, config: TrainConfig, execution: Execution, precision: Precision) -> Any:
    """The model in its training dtype, with adapters or frozen parts as asked, and dropout on.

    Raises UserError when nothing would train. Under ZeRO 3 call it inside `sharded_loading`.
    """
    import torch
    from transformers import AutoModelForCausalLM

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    options: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": resolve_attention(execution, precision),
        "trust_remote_code": False,
    }
    if config.qlora:
        from transformers import BitsAndBytesConfig

        options["device_map"] = {"": torch.cuda.current_device()}
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, **options)
    except (OSError, ValueError) as error:
        raise UserError(f"the model {folder.name} could not be loaded: {error}") from None
    model.config.use_cache = False
    if execution.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.qlora:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=execution.gradient_checkpointing)
    return adapted(model, config).train()


@contextlib.contextmanager
def sharded_loading(deepspeed: dict[str, Any]) -> Iterator[None]:
    """While inside, transformers loads models in shards where DeepSpeed's settings say ZeRO 3."""
    if deepspeed["zero_optimization"]["stage"] != 3:
        yield
        return
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    # transformers keeps a weak reference to it: loading is sharded as long as this name lives.
    settings = HfDeepSpeedConfig(deepspeed)
    yield
    del settings


def adapted(model: Any, config: TrainConfig) -> Any:
    """The model with LoRA or IA3 added, or frozen up to its biases; as it is when neither is asked for."""
    if config.lora or config.ia3:
        from peft import IA3Config, LoraConfig, TaskType, get_peft_model

        if config.lora:
            targets = config.lora.targets
            peft: Any = LoraConfig(
                task_type=TaskType.CAUSAL_LM,
                r=config.lora.r,
                lora_alpha=config.lora.alpha,  # type: ignore[arg-type]  # a float scales as well
                lora_dropout=config.lora.dropout,
                target_modules=targets if isinstance(targets, str) else list(targets),
            )
        else:
            peft = IA3Config(task_type=TaskType.CAUSAL_LM)
        try:
            model = get_peft_model(model, peft)
        except ValueError as error:
            raise UserError(f"the adapter does not fit this model: {error}", remedy="name its modules") from None
    elif config.bias_only:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith("bias"))
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError("nothing would train", remedy="this model has no biases; use lora or ia3")
    return model


def learning(model: Any) -> list[tuple[str, Any]]:
    """(name, parameter) of what learns."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def keeps_logits(model: Any) -> bool:
    """Whether the model can compute the logits of some positions only."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(base.forward).parameters


def decay_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters that learn: matrices with weight decay; biases, norms and other vectors without."""
    parameters = [parameter for _, parameter in learning(model)]
    matrices = [p for p in parameters if len(getattr(p, "ds_shape", p.shape)) > 1]
    vectors = [p for p in parameters if len(getattr(p, "ds_shape", p.shape)) <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


@contextlib.contextmanager
def gathered(parameters: list[Any], *, write: bool = False) -> Iterator[None]:
    """Whole parameters while inside, also under ZeRO 3; with `write`, what rank 0 writes reaches all ranks."""
    sharded = [p for p in parameters if hasattr(p, "ds_id")]
    if not sharded:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded, modifier_rank=0 if write else None):
        yield


def state_dict(model: Any) -> dict[str, Any]:
    """All weights on the host, whole. Every rank must call it; only rank 0 keeps and returns them."""
    import torch.distributed as dist

    keep = not dist.is_initialized() or dist.get_rank() == 0
    out: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        with gathered([parameter]):
            if keep:
                out[name] = parameter.detach().to("cpu", copy=True)
    if keep:
        persistent = model.state_dict().keys()
        out |= {name: b.detach().to("cpu", copy=True) for name, b in model.named_buffers() if name in persistent}
    return out
