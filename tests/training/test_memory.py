from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cuvee.errors import UserError
from training.memory import adapter_parameters, estimate, parameters, plan
from training.model import adapted, read_config
from training.settings import Execution, Lora, TrainConfig

SMALL = dict(
    vocab_size=500, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, head_dim=16,
    num_key_value_heads=2,
)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("Llama", {}),
        ("Llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
        ("Mistral", {"num_key_value_heads": 4}),
        ("Qwen2", {}),
        ("Mixtral", {"num_local_experts": 4}),
    ],
)
def test_parameters_are_those_of_the_class(kind: str, more: dict[str, Any]) -> None:
    import torch
    import transformers

    config = getattr(transformers, f"{kind}Config")(**{**SMALL, **more})
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
    assert parameters(config.to_dict()) == sum(p.numel() for p in model.parameters())


def test_lora_parameters_are_those_of_peft(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    config = TrainConfig(lora=Lora(r=4))
    model = adapted(AutoModelForCausalLM.from_pretrained(tiny_model), config)
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert adapter_parameters(read_config(tiny_model), config) == learning


def test_zero_divides_what_it_says() -> None:
    """7B in bf16 on 8 workers, without activations: 16 bytes a parameter, as in ZeRO's own table."""

    def gigabytes(stage: int) -> float:
        execution = Execution(workers=8, zero=stage, micro_batch=1, use_gpu=True)  # type: ignore[arg-type]
        made = estimate(7_500_000_000, TrainConfig(), execution, tokens=0, vocab=0, precision="bf16")
        return (made.device / 1e9 - 1.5) / 1.1

    assert gigabytes(1) == pytest.approx(7.5 * (4 + 12 / 8))
    assert gigabytes(2) == pytest.approx(7.5 * (2 + 14 / 8))
    assert gigabytes(3) == pytest.approx(7.5 * 16 / 8)


def test_what_cannot_fit_is_refused_with_the_arithmetic(tiny_model: Path) -> None:
    made = plan(read_config(tiny_model), TrainConfig(max_len=512), Execution(), "fp32")
    made.require(device_gb=made.device / 1e9 + 0.01)
    with pytest.raises(UserError, match=r"optimiser: .* GB"):
        made.require(device_gb=0.1)


def test_a_config_without_sizes_is_refused() -> None:
    with pytest.raises(UserError, match="hidden_size"):
        parameters({"model_type": "unknown"})
