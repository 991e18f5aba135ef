# ruff: noqa: E501 - programs in strings
"""Attacks on the sandbox and on its verdict, and honest programs that must pass."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from cuvee.errors import MissingError
from evaluation.sandbox import Job, Outcome, SandboxConfig, protection, run, run_many

FAST = SandboxConfig(wall_s=20, cpu_s=10)


def held(level: str) -> SandboxConfig:
    try:
        protection(level)  # type: ignore[arg-type]
    except MissingError as error:
        pytest.skip(str(error))
    return FAST.model_copy(update={"level": level})


@pytest.fixture(params=["bubblewrap", "landlock"])
def strong(request: pytest.FixtureRequest) -> SandboxConfig:
    """The levels that hold files and network."""
    return held(request.param)


@pytest.fixture(params=["bubblewrap", "landlock", "rlimits"])
def any_level(request: pytest.FixtureRequest) -> SandboxConfig:
    return held(request.param)


def attempt(code: str, limits: SandboxConfig) -> Outcome:
    """Run `code`, which prints what it got; exceptions are printed, so that a denial can be told from a success."""
    body = "\n".join("    " + line for line in code.strip().splitlines())
    return run(f"try:\n{body}\nexcept BaseException as e:\n    print('denied', type(e).__name__, e)\n", limits=limits)


def inside(before: set[int]) -> list[int]:
    """Processes of a sandbox that were not there before. Files of other tests that run now do not count."""
    return [
        p.pid
        for p in psutil.process_iter(["cmdline", "status"])
        if p.pid not in before
        and 'sys.modules["inside"]' in " ".join(p.info["cmdline"] or [])
        and p.info["status"] != "zombie"
    ]


# Honest programs


def test_a_script_and_a_function_pass(any_level: SandboxConfig) -> None:
    script = run("import sys\nprint(sys.stdin.read()[::-1])", limits=any_level, stdin="abc")
    assert (script.status, script.stdout, script.stderr) == ("ok", "cba\n", "")
    tested = run(
        "def f(a, b=2):\n    return a + b\n", limits=any_level, tests=["assert f(1) == 3", "assert f(1, b=5) == 6"]
    )
    assert tested.status == "ok"


@pytest.mark.parametrize(
    ("program", "test"),
    [
        ("from collections import Counter\ndef f(s): return Counter(s)", "assert f('aab') == {'a': 2, 'b': 1}"),
        ("from collections import namedtuple\nP = namedtuple('P', 'a b')\ndef f(): return P(1, 2)", "assert f() == (1, 2)"),
        ("def f(x):\n    for i in range(x): yield i", "assert list(f(3)) == [0, 1, 2]"),
        ("def f(x): x.sort()", "v = [3, 1, 2]\nf(v)\nassert v == [1, 2, 3]"),
        ("def f(d, s): d['k'] = 1; s.add(2)", "d, s = {}, set()\nf(d, s)\nassert d == {'k': 1} and s == {2}"),
        ("class P:\n    def __init__(self, a): self.a = a\n    def twice(self): return 2 * self.a\n"
         "def f(p): return p.a", "p = P(4)\nassert f(p) == 4 and p.twice() == 8 and p.a == 4\nassert isinstance(p, P)"),
        ("class P:\n    def __init__(self, a): self.a = a\n    def __eq__(self, o): return self.a == o.a\n"
         "def f(a): return P(a)", "assert f(1) == P(1)\nassert f(1) != P(2)"),
        ("def f(g, x): return g(x) + 1", "assert f(lambda x: x * 10, 2) == 21"),
        ("def f(v, k): return sorted(v, key=k)", "assert f([-3, 1, 2], abs) == [1, 2, -3]"),
        ("def f(x):\n    if x < 0: raise ValueError('negative')\n    return x",
         "try:\n    f(-1)\n    assert False\nexcept ValueError as e:\n    assert 'negative' in str(e)"),
        ("def f(v, kind): return [type(x) for x in v if not isinstance(x, kind)]", "assert f([1, 'a', 2.0], str) == [int, float]"),
        ("import math\ndef f(x): return math.sqrt(x)", "assert math.isclose(f(2), 1.41421356, rel_tol=1e-6)"),
        ("def f(): return float('nan'), float('inf'), 10**5000, b'x', 1j, {1, 2}, frozenset({3}), range(3), None",
         "v = f()\nassert v[0] != v[0] and v[1] > 1 and v[2] == 10**5000 and v[3:] == (b'x', 1j, {1, 2}, frozenset({3}), range(3), None)"),
        ("from decimal import Decimal\nfrom fractions import Fraction\nimport datetime\n"
         "def f(): return Decimal('1.5'), Fraction(1, 3), datetime.date(2020, 1, 2)",
         "from decimal import Decimal\nfrom fractions import Fraction\nimport datetime\n"
         "assert f() == (Decimal('1.5'), Fraction(1, 3), datetime.date(2020, 1, 2))"),
        ("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: 'int'\ndef f(): return P(3)", "assert f().x == 3"),
        ("def sum(a, b): return a * b", "assert sum(10, 15) == 150"),
        ("def f(x): return x\nif __name__ == '__main__':\n    input()", "assert f(1) == 1"),
        ("def f():\n    a = []\n    a.append(a)\n    return a", "assert len(f()) == 1"),
        ("def f(s): return s + '\\ud800ä'", "assert f('ö') == 'öä'.replace('ä', '\\ud800ä')"),
        ("def f(x): print('noise'); return x", "assert f('') == ''"),
        ("def encode(s): return s[::-1]\ndef decode(s): return s[::-1]",
         "def check(candidate):\n    for s in ('ab', 'abc'):\n        assert candidate(encode(s)) == s\ncheck(decode)"),
        ("import asyncio\nasync def g(): return 4\ndef f(): return asyncio.run(g())", "assert f() == 4"),
        ("import threading\ndef f():\n    out = []\n    t = threading.Thread(target=lambda: out.append(1))\n"
         "    t.start(); t.join()\n    return out", "assert f() == [1]"),
    ],
)  # fmt: skip
def test_honest_programs_pass(program: str, test: str) -> None:
    outcome = run(program, tests=[test], limits=FAST)
    assert (outcome.status, outcome.reason) == ("ok", "1 tests passed")


@pytest.mark.parametrize(
    ("program", "tests", "status", "words"),
    [
        ("def f(): return 1", ["assert f() == 1", "assert f() == 2"], "failed", "test 1: AssertionError"),
        ("def f(: return", ["assert f() == 1"], "failed", "SyntaxError"),
        ("def f(): return 1 // 0", ["assert f() == 1"], "failed", "ZeroDivisionError"),
        ("x = 1", ["assert f() == 1"], "failed", "NameError"),
        ("raise OSError('no')", ["assert True"], "failed", "OSError"),
        ("def f(): return 1", ["assert f( == 1"], "error", "does not compile"),
        ("def f(x): return x", ["assert f(object()) == 1"], "error", "object"),
        ("def f(): return f()", ["assert f() == 1"], "failed", "RecursionError"),
        ("", [], "ok", "ran"),
        ("raise SystemExit(0)", [], "ok", "ran"),
        ("raise SystemExit(3)", [], "failed", "SystemExit"),
    ],
)
def test_what_is_wrong_is_said(program: str, tests: list[str], status: str, words: str) -> None:
    outcome = run(program, tests=tests, limits=FAST)
    assert outcome.status == status
    assert words in outcome.reason


# Forging the verdict

FORGERIES = {
    "leave": "import os\ndef f(x): os._exit(0)",
    "leave at once": "import os\nos._exit(0)",
    "sys.exit": "import sys\nsys.exit(0)",
    "exit in the function": "def f(x): raise SystemExit(0)",
    "equal to everything": "class Y:\n    def __eq__(self, o): return True\n    __ne__ = lambda s, o: False\n"
    "    def __hash__(self): return 4\ndef f(x): return Y()",
    "int equal to everything": "class Y(int):\n    def __eq__(self, o): return True\ndef f(x): return Y(7)",
    "list of such": "class Y:\n    def __eq__(self, o): return True\ndef f(x): return [Y()]",
    "builtins": "import builtins\nbuiltins.AssertionError = type('Q', (BaseException,), {})\nbuiltins.abs = lambda x: 0\n"
    "abs = lambda x: 0\nset = sorted = list = len = lambda *a: 4\ndef f(x): return 0",
    "math": "import math\nmath.isclose = lambda *a, **k: True\ndef f(x): return 0",
    "true division": "def f(x): return True",
    "frames": "import sys, gc\ndef f(x):\n    depth = 0\n    try:\n        while True:\n"
    "            g = sys._getframe(depth).f_globals\n            g['f'] = lambda x: 4\n            depth += 1\n"
    "    except ValueError: pass\n    return [o for o in gc.get_objects() if isinstance(o, str) and 'assert' in o]",
    "speak for itself": "import os\nfrom inside import codec, wire\n"
    "def f(x):\n    for fd in range(3, 64):\n        for m in (('value', 4, []), {'status': 'ok', 'nonce': '', 'signal': 0,"
    " 'reason': '', 'test': -1}):\n            try: wire.send(fd, codec.dumps(m, None))\n            except OSError: pass\n"
    "    os._exit(0)",
    "nonsense": "import os\ndef f(x):\n    for fd in range(3, 64):\n        try: os.write(fd, b'\\x08' + b'\\0' * 7 + b'X' * 64)\n"
    "        except OSError: pass\n    os._exit(0)",
    "huge": "import os\ndef f(x):\n    for fd in range(3, 64):\n        try: os.write(fd, b'\\xff' * 8)\n"
    "        except OSError: pass\n    os._exit(0)",
    "kill the judge": "import os\ndef f(x):\n    os.kill(os.getppid(), 9)\n    os.kill(os.getppid(), 19)\n    return 5",
    "kill the group": "import os\ndef f(x):\n    os.killpg(0, 9)\n    return 5",
    "read the judge": "import os\ndef f(x):\n    p = os.getppid()\n    open(f'/proc/{p}/mem', 'r+b').read(1)\n    return 4",
    "trace the judge": "import ctypes, os\ndef f(x):\n    c = ctypes.CDLL(None, use_errno=True)\n"
    "    return 4 if c.ptrace(16, os.getppid(), 0, 0) == 0 else 5",
    "the worker": "import sys\nw = sys.modules['inside.worker']\nw.Worker.do = lambda self, *a: (True, [])\n"
    "sys.modules['inside.remote'].verdict = lambda *a: {'status': 'ok'}\ndef f(x): return 0",
    "globals by name": "def f(x): return 0\n__name__ = 'tests'\n__builtins__ = {}\nassert_ = check = lambda *a: True",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(FORGERIES))
def test_the_verdict_cannot_be_forged(name: str) -> None:
    tests = [
        "assert f(2) == 4 and f(2) is not True",
        "import math\nassert math.isclose(f(2), 4)",
        "assert abs(f(2) - 4) < 1e-6",
        "assert sorted([f(2)]) == [4]",
        "assert f(3) == 9",
    ]
    outcome = run(FORGERIES[name], tests=tests, limits=FAST)
    assert outcome.status in ("failed", "killed", "error")
    assert "passed" not in outcome.reason


@pytest.mark.parametrize(
    "name", ["leave", "equal to everything", "kill the judge", "read the judge", "trace the judge", "speak for itself"]
)
def test_the_verdict_cannot_be_forged_on_weaker_levels(name: str) -> None:
    for level in ("landlock", "seccomp"):
        outcome = run(FORGERIES[name], tests=["assert f(2) == 4", "assert f(3) == 9"], limits=held(level))
        assert outcome.status in ("failed", "killed", "error")


# Files, network, other processes


def test_no_network(strong: SandboxConfig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        outcome = attempt(
            f"import socket\ns = socket.create_connection(('127.0.0.1', {port}), 2)\nprint('connected')", strong
        )
    assert outcome.stdout.startswith("denied")
    for family in ("AF_INET6", "AF_UNIX", "AF_NETLINK", "AF_VSOCK"):
        assert attempt(f"import socket\nsocket.socket(socket.{family})\nprint('made')", strong).stdout.startswith(
            "denied"
        )


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/etc/hostname", "/etc/shadow", "/proc/1/environ", "/proc/self/maps", "/var/log"]
)
def test_no_reading_of_the_system(strong: SandboxConfig, path: str) -> None:
    outcome = attempt(
        f"import os\nprint(os.listdir({path!r}) if os.path.isdir({path!r}) else open({path!r}).read())", strong
    )
    assert outcome.stdout.startswith("denied")


def test_no_reading_or_writing_of_the_users_files(strong: SandboxConfig, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("token")
    home = Path.home() / ".cuvee-sandbox-test"
    home.write_text("token")
    try:
        for path in (secret, home):
            assert attempt(f"print(open({str(path)!r}).read())", strong).stdout.startswith("denied")
            assert attempt(f"open({str(path)!r}, 'w').write('x')", strong).stdout.startswith("denied")
            assert path.read_text() == "token"
        assert attempt(f"open({str(tmp_path / 'new')!r}, 'w')", strong).stdout.startswith("denied")
        assert attempt(f"import os\nos.unlink({str(secret)!r})", strong).stdout.startswith("denied")
    finally:
        home.unlink()


def test_the_judges_own_files_are_out_of_reach(strong: SandboxConfig) -> None:
    import evaluation.sandbox.inside.remote as remote

    for path in (remote.__file__, __file__):
        assert attempt(f"open({path!r}, 'a').write('#')\nprint('wrote')", strong).stdout.startswith("denied")
        assert attempt(f"print(open({path!r}).read())", strong).stdout.startswith("denied")


def test_the_folder_can_be_written_and_vanishes(any_level: SandboxConfig) -> None:
    code = "import os\nopen('a', 'w').write('x')\nprint(os.getcwd(), open('a').read())"
    outcome = run(code, limits=any_level)
    folder, text = outcome.stdout.split()
    assert text == "x"
    assert not (Path(folder) / "a").exists()


def test_the_environment_is_empty(any_level: SandboxConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    outcome = run("import os\nprint(sorted(os.environ))", limits=any_level)
    assert "SECRET" not in outcome.stdout
    assert "HOME" not in outcome.stdout


def test_no_signals_to_others(strong: SandboxConfig) -> None:
    outcome = attempt(f"import os\nos.kill({os.getpid()}, 0)\nprint('reached')", strong)
    assert outcome.stdout.startswith("denied")


def test_no_new_namespaces_or_mounts(strong: SandboxConfig) -> None:
    code = (
        "import ctypes\nc = ctypes.CDLL(None, use_errno=True)\n"
        "print(c.unshare(0x10000000), c.mount(b'none', b'/', b'tmpfs', 0, None), c.ptrace(0, 0, 0, 0),"
        " c.syscall(425, 8, 0))"
    )
    assert attempt(code, strong).stdout.split() == ["-1"] * 4


# Using up the machine


def test_endless_loop_is_stopped_by_processor_and_by_wall_time(any_level: SandboxConfig) -> None:
    busy = run("while True: pass", limits=any_level.model_copy(update={"cpu_s": 1}))
    assert (busy.status, busy.reason) == ("timeout", "processor time")
    asleep = run("import time\ntime.sleep(60)", limits=any_level.model_copy(update={"wall_s": 1.0}))
    assert (asleep.status, asleep.reason) == ("timeout", "wall time")
    assert asleep.seconds < 15


def test_ignoring_the_processor_limit_does_not_help() -> None:
    stubborn = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    assert run(stubborn, limits=FAST.model_copy(update={"cpu_s": 1})).status in ("timeout", "killed")


def test_memory_bomb(any_level: SandboxConfig) -> None:
    outcome = run("x = []\nwhile True: x.append(bytearray(1 << 24))", limits=any_level)
    assert outcome.status == "failed"
    assert "MemoryError" in outcome.reason
    assert run("def f(): return 'x' * (1 << 27)", tests=["assert len(f()) == 1"], limits=any_level).status != "ok"


def test_fork_bomb() -> None:
    limits = held("bubblewrap").model_copy(update={"wall_s": 4})
    before = len(psutil.pids())
    most = [before]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            most[0] = max(most[0], len(psutil.pids()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    outcome = run("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", limits=limits)
    done.set()
    watcher.join()
    assert outcome.status == "timeout"
    assert most[0] < before + 200


def test_endless_output(any_level: SandboxConfig) -> None:
    outcome = run("while True: print('y' * 1000)", limits=any_level)
    assert (outcome.status, outcome.reason) == ("killed", "more output than allowed")
    assert len(outcome.stdout) <= FAST.output_kb << 10
    error = run("import sys\nwhile True: sys.stderr.write('y' * 1000)", limits=any_level)
    assert error.status == "killed"


def test_disk_and_files(any_level: SandboxConfig) -> None:
    big = attempt("f = open('a', 'wb')\nfor _ in range(100): f.write(b'x' * (1 << 20))\nprint('wrote')", any_level)
    assert "wrote" not in big.stdout
    many = attempt("x = [open('a', 'w') for _ in range(1000)]\nprint('opened')", any_level)
    assert many.stdout.startswith("denied")


def test_many_small_files_do_not_fill_the_machine() -> None:
    code = "for i in range(100): open(str(i), 'wb').write(b'x' * (1 << 20))\nprint('wrote')"
    assert attempt(code, held("bubblewrap")).stdout.startswith("denied OSError")


HANGS = {
    "atexit": "import atexit, time\natexit.register(time.sleep, 60)\ndef f(): return 1",
    "thread": "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\ndef f(): return 1",
    "destructor": "import time\nclass D:\n    def __del__(self): time.sleep(60)\nd = D()\ndef f(): return 1",
}


@pytest.mark.parametrize("name", sorted(HANGS))
def test_hanging_at_exit_is_not_waited_for(name: str) -> None:
    outcome = run(HANGS[name], tests=["assert f() == 1"], limits=FAST)
    assert outcome.status == "ok"
    assert outcome.seconds < 15


def test_daemons_are_killed(any_level: SandboxConfig) -> None:
    code = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        for fd in range(64):\n"
        "            try: os.close(fd)\n"
        "            except OSError: pass\n"
        "        while True: time.sleep(0.05)\n"
        "    os._exit(0)\n"
        "time.sleep(0.3)\n"
        "def f(): return 1\n"
    )
    before = {p.pid for p in psutil.process_iter()}
    outcome = run(code, tests=["assert f() == 1"], limits=any_level)
    assert outcome.status == "ok"
    time.sleep(0.3)
    assert inside(before) == []


def test_daemons_are_killed_at_the_deadline_too(any_level: SandboxConfig) -> None:
    code = "import os, time\nos.fork()\nos.setsid()\nos.fork()\nwhile True: time.sleep(0.05)\n"
    before = {p.pid for p in psutil.process_iter()}
    outcome = run(code, limits=any_level.model_copy(update={"wall_s": 1.5}))
    assert outcome.status in ("timeout", "failed")
    time.sleep(0.3)
    assert inside(before) == []


# Many, and what is missing


def test_it_ends_although_its_starter_is_killed(tmp_path: Path) -> None:
    code = (
        "from evaluation.sandbox import SandboxConfig, run\n"
        "run('import time\\nwhile True: time.sleep(0.1)', limits=SandboxConfig(wall_s=3))"
    )
    before = {p.pid for p in psutil.process_iter()}
    starter = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 30
    while not inside(before) and time.monotonic() < deadline:
        time.sleep(0.02)
    starter.kill()
    starter.wait()
    while inside(before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert inside(before) == []


def test_many_keep_their_order() -> None:
    jobs = [Job(f"def f(): return {i}", (f"assert f() == {i if i % 2 else -1}",)) for i in range(12)]
    outcomes = run_many(jobs, limits=FAST, workers=3)
    assert [o.status for o in outcomes] == ["failed", "ok"] * 6


def test_weaker_levels_warn_and_name_what_is_missing() -> None:
    protection.cache_clear()
    with pytest.warns(RuntimeWarning, match=r"network.*reading of files"):
        found = protection("rlimits")
    assert "network" in found.missing
    assert run("x = 1", limits=FAST.model_copy(update={"level": "rlimits"})).protection == found.missing
    assert protection("bubblewrap").missing == ()


def test_hash_order_is_the_same_in_every_run() -> None:
    texts = {run("print({'a', 'b', 'c', 'd', 'e'})", limits=FAST).stdout for _ in range(3)}
    assert len(texts) == 1
