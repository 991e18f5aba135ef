"""DeepSpeed's CPU communication op, built under a lock that dies with its holder.

torch guards the build of an extension by a file, waits for that file for ever, and leaves it behind when the process
that builds is killed: the next training would hang. Here the kernel's lock comes first. Whoever holds it knows that no
worker of ours is building, so a guard file that is still there belongs to the dead.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path


def build_cpu_op() -> None:
    """Build or load the op before DeepSpeed does; seconds the first time on a machine, nothing later."""
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder
    from torch.utils.cpp_extension import _get_build_directory

    builder = ShareMemCommBuilder()
    folder = Path(_get_build_directory(builder.name, verbose=False))
    with (Path(tempfile.gettempdir()) / f"cuvee-build-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "lock").unlink(missing_ok=True)
        builder.load(verbose=False)
