"""What every process of ours finds in its environment, and whether the machine has accelerators.

Threads that wait must not spin: with two jobs on two cores busy-waiting costs a factor of ten. Telemetry is off.
"""

from __future__ import annotations

import os
from pathlib import Path

ENVIRONMENT: dict[str, str] = {
    # libgomp reads these once, when torch is loaded.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
"""What every process of ours is started with, unless the user has set it otherwise."""


def has_accelerator() -> bool:
    """Whether a GPU driver is there. Looks at device files, so that torch need not be loaded."""
    return any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/kfd", "/dev/dxg"))


def quiet_environment(*, offline: bool = False) -> dict[str, str]:
    """Put `ENVIRONMENT` into this process and return what workers must be given. Call it before torch is loaded.

    `offline` is for runs with built-in and local models only: nothing then waits for a network.
    """
    wanted = ENVIRONMENT | ({"HF_HUB_OFFLINE": "1"} if offline else {})
    for key, value in wanted.items():
        os.environ.setdefault(key, value)
    if not has_accelerator():
        # Of this machine alone: a head without accelerators has workers with some.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    return {key: os.environ[key] for key in wanted}
