"""Entry of the confined interpreter: limits, then two processes.

Input arrives in two messages on standard input. The first has the program; the process then forks, and only the parent
reads the second, with the tests and the nonce. The child never has them in its memory, holds neither the descriptor of
the report nor that of the input, and cannot look into the parent: so it cannot forge a verdict.
"""

from __future__ import annotations

import _signal
import os
import resource
import sys
from time import sleep

from . import codec, remote, wire
from .worker import Worker

TYPE_CHECKING = False  # `typing` would cost half of a start
if TYPE_CHECKING:
    from typing import Any

_KILL = 9


def main(report: int) -> None:
    sys.set_int_max_str_digits(0)
    setup = _message()
    # Should whoever started this die, it ends all the same. (`signal` itself would import `enum` at every start.)
    _signal.signal(_signal.SIGALRM, lambda *_: os._exit(4))
    _signal.setitimer(_signal.ITIMER_REAL, setup["wall_s"] + 1)
    confine(setup)
    to_child, from_parent = os.pipe()
    to_parent, from_child = os.pipe()
    feed = os.memfd_create("stdin")
    os.write(feed, setup["stdin"].encode("utf-8", "surrogatepass"))
    os.lseek(feed, 0, 0)
    child = os.fork()
    if child == 0:
        _signal.setitimer(_signal.ITIMER_REAL, 0)
        _signal.signal(_signal.SIGALRM, _signal.SIG_DFL)
        os.dup2(feed, 0)
        for fd in (feed, report, from_parent, to_parent):
            os.close(fd)
        Worker(to_child, from_child).run(setup["program"], script=setup["script"])
        os._exit(0)
    for fd in (feed, to_child, from_child):
        os.close(fd)
    try:
        tests = _message()
        result = remote.verdict(remote.Channel(to_parent, from_parent), tests["tests"], tests["entry"])
        result["signal"] = _ended(child) if result.pop("gone", False) else 0
        result["nonce"] = tests["nonce"]
        wire.send(report, codec.dumps(result, _nothing))
    finally:
        sweep(setup["alone"])
    os._exit(0)


def confine(setup: dict[str, Any]) -> None:
    """From the weakest to the strongest, since the last may forbid what the others need."""
    for name, value in setup["rlimits"].items():
        soft, hard = value if isinstance(value, tuple) else (value, value)
        limit = getattr(resource, name)
        most = resource.getrlimit(limit)[1]
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(limit, (soft, hard))
    if setup["uid"]:
        os.setgroups([])
        os.setresgid(setup["uid"], setup["uid"], setup["uid"])
        os.setresuid(setup["uid"], setup["uid"], setup["uid"])
    os.chdir(setup["folder"])
    if setup["guard"]:
        from . import landlock

        landlock.guard()
        if setup["landlock"]:
            landlock.restrict(setup["landlock"]["read"], setup["landlock"]["write"])
        if setup["seccomp"]:
            landlock.seccomp(setup["seccomp"])


def sweep(alone: bool) -> None:
    """Kill everything that the program left.

    `alone`: this process is the first of its namespace, or the only one of its user, so "everybody else" is the
    program. Otherwise orphans have come to this process, and it waits to be killed together with them from outside.
    """
    if not alone:
        while os.read(0, 1):
            pass
        return
    try:
        while True:
            os.kill(-1, _KILL)
            os.waitpid(-1, 0)
    except (ProcessLookupError, ChildProcessError):
        return


def _ended(child: int) -> int:
    """The signal that ended the child; 0 if it left by itself, or only closed its pipes and is killed now."""
    for _ in range(50):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        sleep(0.01)
    os.kill(child, _KILL)
    return 0


def _message() -> Any:
    data = wire.receive(0)
    if data is None:
        os._exit(3)
    return codec.loads(data, lambda kind, name: None)


def _nothing(value: Any) -> bytes:
    raise TypeError(f"not plain: {value!r}")
