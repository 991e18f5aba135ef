"""One Ray and one tiny model for the whole session."""

from __future__ import annotations

import os

# Before anything loads torch: busy-waiting threads starve the other processes on two cores.
os.environ.update(
    OMP_WAIT_POLICY="PASSIVE",
    GOMP_SPINCOUNT="0",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    RAY_USAGE_STATS_ENABLED="0",
    MLFLOW_DISABLE_TELEMETRY="true",
    VLLM_NO_USAGE_STATS="1",
    DS_ACCELERATOR="cpu",
)

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.tiny import make_tiny_model, tiny_tokenizer

# A busy machine is no wrong result.
hypothesis.settings.register_profile("cuvee", deadline=None)
hypothesis.settings.load_profile("cuvee")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tokenizer() -> object:
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray with two CPUs, shared by every test that needs one."""
    import ray

    ray.init(address="local", num_cpus=2, log_to_driver=False, object_store_memory=500_000_000)
    yield
    ray.shutdown()
