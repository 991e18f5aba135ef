"""A build guard that a killed process has left does not stop the next training."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.mark.timeout(120)
def test_a_guard_file_of_the_dead_is_removed() -> None:
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder
    from torch.utils.cpp_extension import _get_build_directory

    from training.ops import build_cpu_op

    guard = Path(_get_build_directory(ShareMemCommBuilder().name, verbose=False)) / "lock"
    guard.touch()
    build_cpu_op()
    assert not guard.exists()
