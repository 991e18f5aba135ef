"""Runs programs that nobody has read, and tells whether they passed their tests.

A program runs in a fresh light interpreter: no site packages, empty environment, own session, a folder in memory that
vanishes, no network, none of the user's files, limits of processor time, wall time, memory, processes, open files,
output and disk. At the deadline everything that it started is killed, daemons included.

The verdict does not come from the program. Tests, expected values and comparisons live in a second process in the same
sandbox, which the program can neither see nor signal; functions of the program are called from there and return plain
values (`inside/remote.py`). Leaving early, patching `assert` or `==`, returning an object that equals everything, or
writing to the judge's files gains nothing. The final word carries a nonce that only that process was given.

What it does not stop:
- A hole in the kernel. For adversaries, rather than careless models, use a virtual machine.
- A program that knows the answers: one that hard-codes what the tests ask for passes them.
- Tests that trust what the program itself defines: a helper (a few in HumanEval do), or the `==` between two objects
  of its own classes.
- Memory is limited for each process: at worst `processes` times `memory_mb` are used.
- Timing and cache side channels, and heat.
- Where namespaces and Landlock are missing, much more: `protection().missing` says what, every `Outcome` carries it,
  and a warning is given once.
Programs get the standard library only; `subprocess` finds nothing to run, sockets cannot be opened.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import selectors
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import IO, Any, Literal

from pydantic import Field

from cuvee.config import Config
from cuvee.errors import MissingError
from evaluation.sandbox import confine
from evaluation.sandbox.confine import Level, Protection
from evaluation.sandbox.inside import codec

__all__ = ["Job", "Outcome", "Protection", "SandboxConfig", "protection", "run", "run_many"]

Status = Literal["ok", "failed", "timeout", "killed", "error"]

_SIGXCPU, _SIGKILL = 24, 9
_uids = itertools.count()


class SandboxConfig(Config):
    """Limits of one program. `level`: "auto" takes the strongest protection that works on the machine."""

    wall_s: float = Field(default=15.0, gt=0, description="seconds from start to end, that of the sandbox included")
    cpu_s: int = Field(default=8, ge=1, description="seconds of processor time of one process")
    memory_mb: int = Field(default=512, ge=64, description="MiB of address space of one process")
    processes: int = Field(default=8, ge=2, description="processes and threads, the two of the sandbox included")
    files: int = Field(default=64, ge=16, description="open files of one process")
    output_kb: int = Field(default=64, ge=1, description="KiB of standard output, and of standard error")
    disk_mb: int = Field(default=16, ge=1, description="MiB that can be written")
    level: Literal["auto"] | Level = "auto"


@dataclass(frozen=True)
class Job:
    """`tests`: asserts or test code, run in order in one namespace with the program's names; without any, the program
    is a script and passes by running to its end. `entry`: the function under test, where it has a builtin's name."""

    program: str
    tests: tuple[str, ...] = ()
    stdin: str = ""
    entry: str = ""


@dataclass(frozen=True)
class Outcome:
    """`ok`: all tests passed (or the script ended well). `failed`: a test, an exception, an early end. `timeout`: wall
    or processor time. `killed`: over another limit. `error`: nothing was learnt about the program (a test that does
    not compile, a sandbox that does not start).

    `test` is the index of the failing test, -1 if there is none. `protection` names what was NOT protected.
    """

    status: Status
    stdout: str
    stderr: str
    seconds: float
    reason: str
    protection: tuple[str, ...] = ()
    test: int = -1


def run(
    program: str,
    *,
    limits: SandboxConfig | None = None,
    stdin: str = "",
    tests: Sequence[str] = (),
    entry: str = "",
) -> Outcome:
    """Run one program. Never raises on what the program does."""
    limits = limits or SandboxConfig()
    return _run(Job(program, tuple(tests), stdin, entry), limits, protection(limits.level))


def run_many(
    jobs: Iterable[Job | str], *, limits: SandboxConfig | None = None, workers: int | None = None
) -> list[Outcome]:
    """Outcomes in the order of the jobs, `workers` at a time (default: one for each processor of this process)."""
    limits = limits or SandboxConfig()
    found = protection(limits.level)
    whole = [job if isinstance(job, Job) else Job(job) for job in jobs]
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0)), thread_name_prefix="sandbox") as pool:
        return list(pool.map(lambda job: _run(job, limits, found), whole))


@cache
def protection(level: Literal["auto"] | Level = "auto") -> Protection:
    """The strongest protection that works here, or the best variant of `level`. Found by running a program in each.

    Warns when something is missing. Raises MissingError when `level` does not work on this machine.
    """
    tried: list[str] = []
    for candidate in confine.levels():
        if level not in ("auto", candidate.name):
            continue
        outcome = _run(
            Job("import json, math\nx = math.floor(1.5)", ("assert x == 1",)), SandboxConfig(wall_s=60), candidate
        )
        if outcome.status == "ok":
            if candidate.missing:
                warnings.warn(
                    f"generated programs run without protection of: {', '.join(candidate.missing)} "
                    "(install bubblewrap, or allow user namespaces)",
                    RuntimeWarning,
                    stacklevel=3,
                )
            return candidate
        tried.append(f"{candidate.name}: {outcome.reason}")
    raise MissingError(f"no sandbox of level {level!r} works here: {'; '.join(tried)}", remedy="apt install bubblewrap")


def _run(job: Job, limits: SandboxConfig, held: Protection) -> Outcome:
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = "/work"
        if held.name != "bubblewrap":
            folder = tempfile.mkdtemp(prefix="cuvee-sandbox-")
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        uid = (0x40000000 | os.getpid() << 8 | next(_uids) % 256) if held.own_user else 0
        if uid and held.name != "bubblewrap":
            os.chown(folder, uid, uid)
        report, report_inside = os.pipe()
        stack.callback(os.close, report)
        filter_fd = os.memfd_create("seccomp")
        filter_code = confine.seccomp_filter()
        os.write(filter_fd, filter_code)
        os.lseek(filter_fd, 0, os.SEEK_SET)
        nonce = secrets.token_hex(16)
        setup, tests = _messages(job, limits, held, folder, uid, filter_code, nonce)
        try:
            process = subprocess.Popen(
                confine.command(held, report=report_inside, filter_fd=filter_fd, disk=limits.disk_mb << 20),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(report_inside, filter_fd),
                env={"LANG": "C.UTF-8", "PATH": os.defpath, "PYTHONHASHSEED": "0", "PYTHONUTF8": "1"},
                start_new_session=True,
                bufsize=0,
            )
        finally:
            os.close(report_inside)
            os.close(filter_fd)
        stack.callback(_end, process, held)
        talk = _Talk(process, report, confine.program(held) + setup + tests, limits, started + limits.wall_s)
        stopped = talk.run()
        if stopped or not held.alone:
            _kill_descendants(process.pid)
            process.kill()
        code = process.wait()  # the inside ends itself, and its namespace with it
    seconds = time.monotonic() - started
    out, err = (talk.texts[name].decode("utf-8", "replace") for name in ("stdout", "stderr"))
    status, reason, test = _verdict(talk.report, nonce, stopped, code, err)
    return Outcome(status, out, err, seconds, reason, held.missing, test)


def _messages(
    job: Job, limits: SandboxConfig, held: Protection, folder: str, uid: int, filter_code: bytes, nonce: str
) -> tuple[bytes, bytes]:
    """What the inside reads before and after it forks."""
    memory, disk = limits.memory_mb << 20, limits.disk_mb << 20
    rlimits: dict[str, Any] = {
        "RLIMIT_AS": memory,
        "RLIMIT_CPU": (limits.cpu_s, limits.cpu_s + 1),
        "RLIMIT_FSIZE": disk,
        "RLIMIT_NOFILE": limits.files,
        "RLIMIT_CORE": 0,
    }
    if held.alone and "limit of processes" not in held.missing:  # else it counts all processes of the user
        rlimits["RLIMIT_NPROC"] = limits.processes
    bare = held.name != "bubblewrap"
    setup = {
        "program": job.program,
        "stdin": job.stdin,
        "script": not job.tests,
        "rlimits": rlimits,
        "uid": uid,
        "folder": folder,
        "alone": held.alone,
        "guard": bare,
        "landlock": (
            {
                "read": [*confine.libraries(), "/dev/urandom", "/dev/zero"],
                "write": [folder, "/dev/null"],
            }
            if held.name == "landlock"
            else None
        ),
        "seccomp": filter_code if held.name in ("landlock", "seccomp") else b"",
        "wall_s": limits.wall_s,
    }
    return _framed(setup), _framed({"tests": list(job.tests), "entry": job.entry, "nonce": nonce})


def _framed(value: Any) -> bytes:
    def refuse(other: Any) -> bytes:
        raise TypeError(f"not plain: {other!r}")

    data = codec.dumps(value, refuse)
    return len(data).to_bytes(8, "little") + data


class _Talk:
    """Feeds the input, collects output and report, and stops at a limit."""

    def __init__(
        self, process: subprocess.Popen[bytes], report: int, feed: bytes, limits: SandboxConfig, deadline: float
    ) -> None:
        self.process, self.deadline = process, deadline
        self.most = limits.output_kb << 10
        self.feed = memoryview(feed)
        self.texts = {"stdout": bytearray(), "stderr": bytearray(), "report": bytearray()}
        self._report_fd = report

    @property
    def report(self) -> bytes:
        """The message, without its length; empty until it is whole."""
        data = bytes(self.texts["report"])
        size = int.from_bytes(data[:8], "little")
        return data[8 : 8 + size] if len(data) >= 8 + size and size else b""

    def run(self) -> str:
        """Why it was stopped: "time", "output", or "" when it said its last word or ended."""
        process = self.process
        assert process.stdin is not None
        with selectors.DefaultSelector() as selector:
            for name, source in (("stdout", process.stdout), ("stderr", process.stderr), ("report", self._report_fd)):
                assert source is not None
                selector.register(source, selectors.EVENT_READ, name)
            os.set_blocking(process.stdin.fileno(), False)
            selector.register(process.stdin, selectors.EVENT_WRITE, "stdin")
            while True:
                ready = selector.select(max(0.0, self.deadline - time.monotonic()))
                if not ready:
                    return "time"
                for key, _ in ready:
                    if key.data == "stdin":
                        if self._write(process.stdin):
                            selector.unregister(process.stdin)
                        continue
                    piece = os.read(key.fd, 65536)
                    self.texts[key.data] += piece
                    if not piece:
                        selector.unregister(key.fileobj)
                    if key.data != "report" and len(self.texts[key.data]) > self.most:
                        del self.texts[key.data][self.most :]
                        return "output"
                if self.report:
                    self._rest(selector)
                    return ""
                if all(key.data == "stdin" for key in selector.get_map().values()):
                    return ""

    def _write(self, stdin: IO[bytes]) -> bool:
        """Whether all has been written, or nobody reads."""
        try:
            self.feed = self.feed[os.write(stdin.fileno(), self.feed) :]
        except BrokenPipeError:
            return True
        return not self.feed

    def _rest(self, selector: selectors.BaseSelector) -> None:
        """What is already in the pipes when the last word has come."""
        for key in list(selector.get_map().values()):
            if key.data in ("stdout", "stderr"):
                os.set_blocking(key.fd, False)
                with contextlib.suppress(BlockingIOError):
                    self.texts[key.data] += os.read(key.fd, self.most)
                del self.texts[key.data][self.most :]


def _verdict(report: bytes, nonce: str, stopped: str, code: int, stderr: str) -> tuple[Status, str, int]:
    if stopped == "time":
        return "timeout", "wall time", -1
    if stopped == "output":
        return "killed", "more output than allowed", -1
    try:
        found = codec.loads(report, lambda kind, name: None) if report else None
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("nonce") != nonce:
        last = stderr.strip().splitlines()[-1:] or [f"exit code {code}"]
        return "error", f"the sandbox gave no verdict: {last[0][:300]}", -1
    if found["signal"] == _SIGXCPU:
        return "timeout", "processor time", found["test"]
    if found["signal"]:
        return "killed", f"{found['reason']}: signal {found['signal']}", found["test"]
    return found["status"], found["reason"], found["test"]


def _kill_descendants(pid: int) -> None:
    """All below the process, until none is left.

    Killing bubblewrap itself is not enough: a process that has changed its user no longer dies with its parent. Without
    a namespace orphans stay below the inside, which is their subreaper.
    """
    import psutil

    for _ in range(100):
        try:
            below = [p for p in psutil.Process(pid).children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
        except psutil.NoSuchProcess:
            continue  # one of them ended while we looked
        if not below:
            return
        for process in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.001)


def _end(process: subprocess.Popen[bytes], held: Protection) -> None:
    """Also on an exception in between: nothing that was started here stays."""
    process.kill()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
    process.wait()
