"""How much memory a stage needs on each worker, worked out before anything starts.

Weights, gradients and optimiser state per parameter, as in ZeRO's table (arXiv 1910.02054, section 3): in mixed
precision 2 + 2 + 12 bytes (16-bit weights and gradients; fp32 master weights and two moments), in fp32 4 + 4 + 8.
ZeRO 1 divides the optimiser state by the workers, 2 the gradients too, 3 the weights too. Activations as in arXiv
2205.05198 with a fused attention that keeps no scores: about 34 bytes per token, layer and hidden unit in 16 bit (twice
that in fp32), or the layer inputs alone with gradient checkpointing; and the logits, which outweigh them in small
models: in fp32 once for the loss and once for its gradient, and once in the training dtype.
The figures are for refusing what cannot work, not for filling a device to the last byte: 10% and a constant are added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cuvee.errors import UserError
from training.deepspeed_config import stage_of
from training.settings import Execution, Precision, TrainConfig

GB = 1e9
OVERHEAD_GB = {False: 0.6, True: 1.5}
"""Interpreter and libraries on a CPU; context and workspaces on a GPU."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on the device of one worker, and on its host when something is offloaded. `text` is the arithmetic."""

    device: float
    host: float
    text: str

    def require(self, *, device_gb: float, host_gb: float | None = None) -> None:
        """Raises UserError with the arithmetic when a worker has less."""
        for what, need, have in (("device", self.device, device_gb), ("host", self.host, host_gb)):
            if have is not None and need > have * GB:
                raise UserError(
                    f"a worker needs {need / GB:.1f} GB of {what} memory and there are {have:.1f}:\n{self.text}",
                    remedy="use a higher ZeRO stage with more workers, offload, a smaller micro_batch, "
                    "gradient_checkpointing, or lora",
                )


def parameters(model: Mapping[str, Any]) -> int:
    """Parameters of a decoder from its config.json, without loading it.

    Embeddings, attention (grouped heads, biases where the config says so), gated MLP (experts where there are several),
    norms. Exact for Llama-like models. Raises UserError when the config lacks the sizes.
    """
    text = model.get("text_config", model)
    try:
        hidden, layers, vocab = int(text["hidden_size"]), int(text["num_hidden_layers"]), int(text["vocab_size"])
        heads, wide = int(text["num_attention_heads"]), int(text["intermediate_size"])
    except KeyError as missing:
        raise UserError(f"config.json has no {missing}, so its memory cannot be planned") from None
    kv = int(text.get("num_key_value_heads") or heads)
    head = int(text.get("head_dim") or hidden // heads)
    attention = hidden * head * (2 * heads + 2 * kv)
    qwen2 = text.get("model_type") == "qwen2"
    if text.get("attention_bias") or qwen2:
        attention += head * (heads + 2 * kv) + (0 if qwen2 else hidden)
    mlp = 3 * hidden * wide + (2 * wide + hidden if text.get("mlp_bias") else 0)
    experts = int(text.get("num_local_experts") or text.get("num_experts") or 0)
    if experts:
        each = 3 * hidden * int(text.get("moe_intermediate_size") or wide)
        mlp = experts * each + experts * hidden
    tied = bool(text.get("tie_word_embeddings", model.get("tie_word_embeddings", False)))
    return vocab * hidden * (1 if tied else 2) + layers * (attention + mlp + 2 * hidden) + hidden


def adapter_parameters(model: Mapping[str, Any], config: TrainConfig) -> int | None:
    """Parameters that learn, where it is less than all: LoRA on all linear layers, IA3; None for full training."""
    text = model.get("text_config", model)
    hidden, layers, wide = (int(text[k]) for k in ("hidden_size", "num_hidden_layers", "intermediate_size"))
    heads = int(text["num_attention_heads"])
    head = int(text.get("head_dim") or hidden // heads)
    query, key = head * heads, head * int(text.get("num_key_value_heads") or heads)
    if config.lora:
        ends = 2 * (hidden + query) + 2 * (hidden + key) + 3 * (hidden + wide)
        return layers * config.lora.r * ends
    if config.ia3 or config.bias_only:
        return layers * (2 * key + wide)
    return None


def estimate(
    count: int,
    config: TrainConfig,
    execution: Execution,
    *,
    tokens: int,
    vocab: int,
    precision: Precision,
    hidden: int = 0,
    layers: int = 0,
    trained: int | None = None,
    reference: bool = False,
) -> MemoryPlan:
    """Memory of one worker. `count` parameters, of which `trained` learn (all when None); `tokens` per sequence.

    `reference`: a frozen model is kept beside the trained one, for a KL penalty.
    """
    stage, workers = stage_of(execution, precision), execution.workers
    learn = count if trained is None else trained
    half = precision != "fp32"
    width = 2 if half else 4
    weights = count * (0.5 if config.qlora else width) / (workers if stage == 3 else 1)
    gradients = learn * width / (workers if stage >= 2 else 1)
    state = learn * (12 if half else 8) / (workers if stage >= 1 else 1)
    if stage >= 1 and not half:
        state += learn * 4 / workers  # ZeRO keeps a flat fp32 copy also when the weights are fp32
    at_once = tokens * execution.micro_batch
    per_token = (width * layers * hidden) if execution.gradient_checkpointing else 17 * width * layers * hidden
    activations = at_once * per_token + (17 * width * hidden * at_once if execution.gradient_checkpointing else 0)
    logits = at_once * vocab * (8 + width)
    beside = (0 if learn < count else weights) + logits if reference else 0.0
    host = 0.0
    parts = {
        "weights": weights,
        "gradients": gradients,
        "optimiser": state,
        "activations": activations,
        "logits": logits,
    }
    if reference:
        parts["reference model"] = beside
    if execution.offload != "none" and execution.use_gpu:
        host += parts.pop("optimiser")
    if execution.offload == "parameters" and execution.use_gpu:
        host += parts.pop("weights")
    device = 1.1 * sum(parts.values()) + OVERHEAD_GB[execution.use_gpu] * GB
    lines = [
        f"{count / 1e6:.1f}M parameters, {learn / 1e6:.1f}M of them learn; {precision}, ZeRO {stage}, "
        f"{workers} workers, {execution.micro_batch} x {tokens} tokens",
        *(f"  {name}: {size / GB:.2f} GB" for name, size in parts.items()),
        f"  10% and {OVERHEAD_GB[execution.use_gpu]} GB besides: {device / GB:.2f} GB per worker",
    ]
    if host:
        lines.append(f"  offloaded to the host: {host / GB:.2f} GB")
    return MemoryPlan(device, host, "\n".join(lines))


def plan(
    model: Mapping[str, Any],
    config: TrainConfig,
    execution: Execution,
    precision: Precision,
    *,
    reference: bool = False,
) -> MemoryPlan:
    """`estimate` for a model's config.json at `max_len` tokens."""
    text = model.get("text_config", model)
    return estimate(
        parameters(model),
        config,
        execution,
        tokens=config.max_len,
        vocab=int(text["vocab_size"]),
        precision=precision,
        hidden=int(text["hidden_size"]),
        layers=int(text["num_hidden_layers"]),
        trained=adapter_parameters(model, config),
        reference=reference,
    )


def in_use_gb(use_gpu: bool) -> float:
    """What this process holds now: the device's peak on a GPU, resident memory elsewhere."""
    if use_gpu:
        import torch

        return torch.cuda.max_memory_allocated() / GB
    import psutil

    return psutil.Process().memory_info().rss / GB
