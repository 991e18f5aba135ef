"""Landlock and seccomp for the calling process, through the C library: for machines without bubblewrap.

Landlock (kernel 5.13 and later) takes away every path that is not listed; it needs no privilege and no namespace, so it
works in containers that forbid those. The seccomp filter comes ready made from outside (`confine.seccomp_filter`).
"""

from __future__ import annotations

import ctypes
import os

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same on all architectures
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 22, 38, 4, 36
_READ = 1 << 2 | 1 << 3  # files and folders
_WRITE = 1 << 1 | 0b1_1111_1111_0000 & ~(1 << 6 | 1 << 11)  # all but devices
# Rights that each version of the interface added: rename across folders, truncate, ioctl on devices.
_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}

_libc = ctypes.CDLL(None, use_errno=True)


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Path(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def version() -> int:
    """Of the kernel's interface; 0 without Landlock."""
    return max(_libc.syscall(_CREATE, None, 0, 1), 0)


def restrict(read: list[str], write: list[str]) -> None:
    """From now on only `read` can be read and `write` changed, by this process and all that come from it."""
    known = version()
    every = _RIGHTS[min(known, 5)]
    rules = _Ruleset(every, 3 if known >= 4 else 0, 3 if known >= 6 else 0)
    size = 24 if known >= 6 else 16 if known >= 4 else 8
    ruleset = _checked(_libc.syscall(_CREATE, ctypes.byref(rules), size, 0))
    for paths, allowed in ((read, _READ), (write, _READ | _WRITE | 1 << 14)):
        for path in paths:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rights = allowed & every if os.path.isdir(path) else (allowed & every & (1 << 1 | 1 << 2 | 1 << 14))
            rule = _Path(rights, fd)
            _checked(_libc.syscall(_ADD, ruleset, 1, ctypes.byref(rule), 0))
            os.close(fd)
    no_new_privileges()
    _checked(_libc.syscall(_RESTRICT, ruleset, 0))
    os.close(ruleset)


def seccomp(code: bytes) -> None:
    no_new_privileges()
    program = _Filter(len(code) // 8, code)
    _checked(_libc.prctl(_PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0))


def no_new_privileges() -> None:
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def guard() -> None:
    """Nobody of the same user may look into this process, and orphans of its children come to it."""
    _checked(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0))
    _checked(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def _checked(result: int) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
