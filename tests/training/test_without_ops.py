"""DeepSpeed on a CPU starts without compiling anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

START = """
import deepspeed
from training.engine import without_ops

without_ops()
deepspeed.init_distributed("gloo", auto_mpi_discovery=False, init_method="file://{file}", rank=0, world_size=1)
"""


def test_no_compiler_is_called(tmp_path: Path) -> None:
    built = tmp_path / "built"
    built.mkdir()
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(built), "CXX": "/bin/false"}
    script = START.format(file=tmp_path / "store")
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(built.iterdir()) == []
