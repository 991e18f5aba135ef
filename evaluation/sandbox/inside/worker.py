"""The untrusted side: runs the program, then does with its objects what the tests ask.

Nothing here is trusted by anybody: the program may change all of it. It holds no secret, no expected value and no test.
"""

from __future__ import annotations

import builtins
import os
import sys

from . import codec, wire

TYPE_CHECKING = False  # `typing` would cost half of a start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MUTABLE = (list, dict, set, bytearray)


class Worker:
    """Objects that stay here are known to the tests by a number."""

    def __init__(self, inbox: int, outbox: int) -> None:
        self.inbox, self.outbox = inbox, outbox
        self.objects: list[Any] = []

    def run(self, program: str, *, script: bool) -> None:
        """Run the program, tell its names, then serve until the tests close the pipe."""
        name = "__main__" if script else "program"
        module = type(sys)(name)
        sys.modules[name] = module
        sys.argv = ["program.py"]
        try:
            exec(compile(program, "program.py", "exec"), module.__dict__)  # noqa: S102 - this is what it is for
        except SystemExit as stop:
            self.flush()
            if script and stop.code in (None, 0):
                self.send(("ended", {}))
            else:
                self.send(("raised", *described(stop)))
            return
        except BaseException as error:
            self.flush()
            self.send(("raised", *described(error)))
            return
        self.flush()
        names = {k: v for k, v in module.__dict__.items() if isinstance(k, str) and not k.startswith("__")}
        try:
            self.send(("ended", names))
        except RecursionError:
            self.send(("ended", {name: Opaque(value) for name, value in names.items()}))
        while (message := self.receive()) is not None:
            self.reply(message)
        self.flush()

    def flush(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            try:  # noqa: SIM105 - contextlib is another millisecond
                stream.flush()
            except (OSError, ValueError, AttributeError):
                pass  # the program may have closed or replaced it

    def reply(self, message: tuple[Any, ...]) -> None:
        try:
            result, touched = self.do(*message)
        except BaseException as error:
            self.send(("raised", *described(error)))
            return
        try:
            self.send(("value", result, touched))
        except RecursionError:  # it contains itself: hand it over as an object
            self.send(("value", Opaque(result), []))

    def do(self, action: str, *args: Any) -> tuple[Any, list[Any]]:
        """The result, and the mutable arguments of a call as they are afterwards."""
        if action == "call":
            function, given, named = args
            result = function(*given, **named)
            return result, [item for item in (*given, *named.values()) if isinstance(item, MUTABLE)]
        return getattr(self, "do_" + action)(*args), []

    def do_get(self, thing: Any, name: str) -> Any:
        return getattr(thing, name)

    def do_set(self, thing: Any, name: str, value: Any) -> None:
        setattr(thing, name, value)

    def do_item(self, thing: Any, key: Any) -> Any:
        return thing[key]

    def do_setitem(self, thing: Any, key: Any, value: Any) -> None:
        thing[key] = value

    def do_iter(self, thing: Any) -> Any:
        return iter(thing)

    def do_next(self, thing: Any) -> Any:
        return next(thing)

    def do_len(self, thing: Any) -> int:
        return len(thing)

    def do_contains(self, thing: Any, item: Any) -> bool:
        return item in thing

    def do_text(self, thing: Any) -> str:
        return str(thing)

    def do_repr(self, thing: Any) -> str:
        return repr(thing)

    def do_truth(self, thing: Any) -> bool:
        return bool(thing)

    def do_equal(self, thing: Any, other: Any) -> bool:
        return bool(thing == other)

    def do_less(self, thing: Any, other: Any) -> bool:
        return bool(thing < other)

    def do_isinstance(self, thing: Any, kind: Any) -> bool:
        return isinstance(thing, kind)

    # Talking

    def send(self, message: tuple[Any, ...]) -> None:
        wire.send(self.outbox, codec.dumps(message, self.outside))

    def receive(self) -> Any:
        data = wire.receive(self.inbox)
        return None if data is None else codec.loads(data, self.inside)

    def outside(self, value: Any) -> bytes:
        if isinstance(value, Opaque):
            value = value.value
        if type(value) is type(sys):
            return codec.reference("module", value.__name__)
        if codec.is_builtin(value):
            return codec.reference("builtin", value.__name__)
        self.objects.append(value)
        return codec.reference("object", str(len(self.objects) - 1))

    def inside(self, kind: str, name: str) -> Any:
        if kind == "builtin":
            return getattr(builtins, name)
        return self.callback(name) if kind == "callback" else self.objects[int(name)]

    def callback(self, name: str) -> Callable[..., Any]:
        """A function of the tests, such as a key or a predicate, called from the program."""

        def call(*args: Any) -> Any:
            self.send(("back", name, args))
            while True:
                message = self.receive()
                if message is None:
                    os._exit(1)
                if message[0] == "backed":
                    return message[1]
                self.reply(message)

        return call


class Opaque:
    """A value to be sent by reference."""

    def __init__(self, value: Any) -> None:
        self.value = value


def described(error: BaseException) -> tuple[list[str], str, int]:
    """Class names from the most special, the message, and the last line of the program that was running."""
    kinds = [kind.__name__ for kind in type(error).__mro__]
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "program.py":
            line = trace.tb_lineno
        trace = trace.tb_next
    if isinstance(error, SyntaxError):
        line = error.lineno or 0
    try:
        text = str(error)[:500]
    except BaseException:
        text = ""
    return kinds, text, line
