from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cuvee.errors import CuveeError
from tests.training.plain import weights_of
from training.export import export, model_card, verify
from training.model import adapted, state_dict
from training.settings import Lora, TrainConfig

CONFIG = TrainConfig(precision="fp32")


def loaded(folder: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, **options)


@pytest.mark.parametrize(
    "config", [CONFIG, TrainConfig(lora=Lora(r=4)), TrainConfig(ia3=True)], ids=["full", "lora", "ia3"]
)
def test_the_exported_model_gives_the_same_logits(tiny_model: Path, tmp_path: Path, config: TrainConfig) -> None:
    import torch

    torch.manual_seed(0)
    model = adapted(loaded(tiny_model), config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    export(tiny_model, state_dict(model), config, "fp32", tmp_path / "out", "card")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        expected, found = model(ids).logits, loaded(tmp_path / "out")(ids).logits
    tolerance = 0 if config == CONFIG else 1e-5
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    assert not torch.equal(expected, loaded(tiny_model)(ids).logits)


def test_the_files_of_the_base_come_along(tiny_model: Path, tmp_path: Path) -> None:
    export(tiny_model, state_dict(loaded(tiny_model)), CONFIG, "bf16", tmp_path / "out", "card")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tiny_model / name).read_bytes()
    assert (tmp_path / "out" / "README.md").read_text() == "card"
    assert {str(t.dtype) for t in weights_of(tmp_path / "out").values()} == {"torch.bfloat16"}
    assert not list(tmp_path.glob(".*partial"))


def test_weights_that_do_not_fit_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    state = state_dict(loaded(tiny_model))
    name = "model.layers.0.mlp.up_proj.weight"
    for wrong in ({**state, name: torch.zeros(0)}, {n: t for n, t in state.items() if n != name}):
        with pytest.raises(CuveeError, match="up_proj"):
            export(tiny_model, wrong, CONFIG, "fp32", tmp_path / "out", "")
    with pytest.raises(CuveeError, match="not finite"):
        export(tiny_model, {**state, name: state[name] / 0}, CONFIG, "fp32", tmp_path / "out", "")
    assert not (tmp_path / "out").exists()


def test_what_was_saved_is_read_back(tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    model, weights = loaded(tiny_model), weights_of(tiny_model)
    verify(tiny_model, model, torch.float32)
    name = "model.norm.weight"
    for number, (wrong, message) in enumerate(
        [
            ({**weights, name: torch.zeros(0)}, "saved as"),
            ({**weights, name: weights[name].half()}, "float16"),
            ({**weights, "extra": torch.zeros(1)}, "does not have"),
            ({n: t for n, t in weights.items() if n != name}, "not saved"),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        save_file(wrong, folder / "model.safetensors")
        with pytest.raises(CuveeError, match=message):
            verify(folder, model, torch.float32)


def test_the_card_has_data_settings_and_recipe() -> None:
    card = model_card({"plan": "abc"}, {"math": {"rows": 3, "tokens": 70}}, "version: 1\n")
    assert card.startswith("---\nlibrary_name: transformers")
    assert "| math | 3 | 70 |" in card
    assert '| plan | "abc" |' in card
    assert "```yaml\nversion: 1\n```" in card
