"""What the kernel gives to hold a process, from the strongest to the weakest, and which of it works here.

1. `bubblewrap`: own user, process, network, mount and IPC namespaces; only Python and the C library are mounted, read
   only; one small folder in memory can be written. Under root no user namespace is made: the process takes an unused
   user id instead, because the kernel counts no processes for root.
2. `landlock`: Landlock for files, a seccomp filter without sockets; no namespaces. For containers that forbid those.
3. `seccomp`: the filter alone.
4. `rlimits`: resource limits and nothing else.

A level is taken if a small program runs in it.
"""

from __future__ import annotations

import marshal
import os
import shutil
import struct
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

Level = Literal["bubblewrap", "landlock", "seccomp", "rlimits"]

INSIDE = Path(__file__).parent / "inside"
_FLAGS = ("-s", "-S", "-P", "-B")
# The code of `inside` comes compiled through standard input: no file of ours needs to be seen in there, and nothing is
# compiled at every start.
_START = """
import marshal, os, sys
def read(size):
    data = b""
    while len(data) < size:
        data += os.read(0, size - len(data)) or os._exit(3)
    return data
package = sys.modules["inside"] = type(sys)("inside")
package.__path__ = []
for name, code in marshal.loads(read(int.from_bytes(read(8), "little"))):
    module = sys.modules["inside." + name] = type(sys)("inside." + name)
    module.__package__ = "inside"
    exec(code, module.__dict__)
    setattr(package, name, module)
module.main(int(sys.argv[1]))
"""


@dataclass(frozen=True)
class Protection:
    """`missing`: in words, what a program can do here that the strongest level would stop.

    `own_user`: under root, programs run as an unused user id, a new one each.
    """

    name: Level
    missing: tuple[str, ...] = ()
    own_user: bool = False

    @property
    def alone(self) -> bool:
        """Whether the runner can kill all that is left by itself."""
        return self.name == "bubblewrap" or self.own_user


def levels() -> list[Protection]:
    """Those that could work here, best first. Which do is found by trying."""
    root = os.geteuid() == 0
    found: list[Protection] = []
    if shutil.which("bwrap"):
        if root:
            found.append(Protection("bubblewrap", own_user=True))
        found.append(Protection("bubblewrap", ("limit of processes",) if root else ()))
    users = (True, False) if root else (False,)
    found += [Protection("landlock", ("sight of other processes", *_shared(own_user)), own_user) for own_user in users]
    files = ("reading of files", "writing of files", "sight of other processes")
    found += [Protection("seccomp", (*files, *_shared(own_user)), own_user) for own_user in users]
    bare = ("network", "tracing of the judge", *files)
    found += [Protection("rlimits", (*bare, *_shared(own_user)), own_user) for own_user in users]
    return found


def _shared(own_user: bool) -> tuple[str, ...]:
    """What is missing when the program runs as the user who asked, without namespaces."""
    return () if own_user else ("limit of processes", "signals to processes of the same user")


def interpreter() -> str:
    """The real interpreter, outside any virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def libraries() -> list[str]:
    """Paths that Python needs to start."""
    prefix = os.path.realpath(sys.base_prefix)
    needed = ["/lib", "/lib64", "/usr/lib", "/usr/lib64"]
    return [prefix, *(path for path in needed if os.path.exists(path) and not path.startswith(prefix + "/"))]


@cache
def program(protection: Protection) -> bytes:
    """The modules of `inside` for `_START`, in the order of their imports."""
    bare = ("landlock",) if protection.name != "bubblewrap" else ()
    names = ("codec", "wire", "worker", "remote", *bare, "main")
    codes = [(name, compile((INSIDE / f"{name}.py").read_bytes(), f"inside/{name}.py", "exec")) for name in names]
    data = marshal.dumps(codes)
    return len(data).to_bytes(8, "little") + data


def command(protection: Protection, *, report: int, filter_fd: int, disk: int) -> list[str]:
    """The command line. `report` and `filter_fd` are inherited descriptors, `disk` the bytes that can be written."""
    python = [interpreter(), *_FLAGS, "-c", _START, str(report)]
    if protection.name != "bubblewrap":
        return python
    mounts: list[str] = []
    for path in libraries():
        for parent in reversed(Path(path).parents[:-1]):  # bubblewrap would make them for root alone
            mounts += ["--perms", "0755", "--dir", str(parent)]
        link = os.path.islink(path)
        mounts += ["--symlink", os.readlink(path), path] if link else ["--ro-bind", path, path]
    devices = [word for name in ("null", "zero", "urandom") for word in ("--dev-bind", f"/dev/{name}", f"/dev/{name}")]
    user = (
        ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if protection.own_user
        else ["--unshare-user"]
    )  # fmt: skip
    return [
        "bwrap", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try",
        "--die-with-parent", "--new-session", "--as-pid-1", "--cap-drop", "ALL", *user, "--hostname", "sandbox",
        *mounts, *devices,
        "--perms", "0777", "--size", str(disk), "--tmpfs", "/work", "--remount-ro", "/",
        "--seccomp", str(filter_fd), "--chdir", "/work", "--", *python,
    ]  # fmt: skip


# System calls that no program for a judge needs: looking into other processes, mounts, namespaces, kernel interfaces
# with a history of holes, and sockets (some, such as vsock, know no namespaces). `socketpair` stays, for asyncio.
_DENIED = {
    "x86_64": (
        41, 101, 103, 135, 155, 161, 163, 165, 166, 167, 168, 169, 175, 176, 179, 246, 248, 249, 250, 272, 279, 298,
        303, 304, 308, 310, 311, 312, 313, 320, 321, 323,
    ),
    "aarch64": (
        39, 40, 41, 51, 60, 89, 92, 97, 104, 105, 106, 116, 117, 142, 198, 217, 218, 219, 224, 225, 239, 241, 264, 265,
        268, 270, 271, 272, 273, 280, 282, 294,
    ),
}  # fmt: skip
# The same numbers everywhere: io_uring, mount interface of 5.2, pidfd_open, pidfd_getfd, mount_setattr.
_DENIED_BOTH = (425, 426, 427, 428, 429, 430, 431, 432, 433, 434, 438, 442)
_ARCH = {"x86_64": (0xC000003E, 56), "aarch64": (0xC00000B7, 220)}  # audit number, and that of clone
_CLONE3, _ENOSYS, _EPERM, _EACCES = 435, 38, 1, 13
_NAMESPACES = 0x7E020000  # every CLONE_NEW* flag
_LOAD, _EQUAL, _GREATER, _SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000


def seccomp_filter() -> bytes:
    """A filter in the kernel's classic BPF; empty for an architecture whose numbers are not known here."""
    machine = os.uname().machine
    if machine not in _ARCH:
        return b""
    arch, clone = _ARCH[machine]
    code = [
        (_LOAD, 0, 0, 4), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        (_GREATER, 0, 1, 0x40000000), (_RETURN, 0, 0, _ERRNO | _ENOSYS),  # the x32 numbers
        (_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | _ENOSYS),  # its flags are in memory: make libc use clone
    ]  # fmt: skip
    for number in (*_DENIED[machine], *_DENIED_BOTH):
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | _EPERM)]
    code += [
        (_EQUAL, 0, 3, clone), (_LOAD, 0, 0, 16), (_SET, 0, 1, _NAMESPACES), (_RETURN, 0, 0, _ERRNO | _EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]  # fmt: skip
    return b"".join(struct.pack("HBBI", *step) for step in code)
