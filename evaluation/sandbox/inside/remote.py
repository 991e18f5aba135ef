"""The trusted side: runs the tests, with the program's functions as remote ones.

Tests, expected values and comparisons live in this process, where the program has never run. What a function of the
program returns arrives as a plain value, so replacing `assert`, `==`, `isclose` or the builtins over there changes
nothing here. Objects of the program's own classes stay there; they are equal to each other if their class says so,
and never to a plain value.
"""

from __future__ import annotations

import builtins
import sys

from . import codec, wire

TYPE_CHECKING = False  # `typing` would cost half of a start
if TYPE_CHECKING:
    from typing import Any


class ProgramEnded(Exception):
    """The program's process is gone."""


class Unsupported(Exception):
    """Something that cannot be handed to the program: the test cannot be run this way."""


class Channel:
    """Asks the worker. `functions` are callbacks handed over so far."""

    def __init__(self, inbox: int, outbox: int) -> None:
        self.inbox, self.outbox = inbox, outbox
        self.functions: list[Any] = []

    def ask(self, action: str, *args: Any) -> Any:
        self.send((action, *args))
        while True:
            message = self.receive()
            if message[0] == "back":
                self.send(("backed", self.functions[int(message[1])](*message[2])))
                continue
            if message[0] == "raised":
                raise rebuilt(*message[1:])
            _, result, touched = message
            if action == "call":
                _copy_back((*args[1], *args[2].values()), touched)
            return result

    def send(self, message: tuple[Any, ...]) -> None:
        try:
            wire.send(self.outbox, codec.dumps(message, self.outside))
        except BrokenPipeError:
            raise ProgramEnded from None
        except RecursionError:
            raise Unsupported("an argument that contains itself") from None

    def receive(self) -> Any:
        try:
            data = wire.receive(self.inbox)
            if data is not None:
                return codec.loads(data, self.inside)
        except (ValueError, OSError):  # nonsense on the pipe is as good as its end
            pass
        raise ProgramEnded

    def outside(self, value: Any) -> bytes:
        if isinstance(value, Remote):
            return codec.reference("object", value._name)
        if codec.is_builtin(value):
            return codec.reference("builtin", value.__name__)
        if callable(value):
            self.functions.append(value)
            return codec.reference("callback", str(len(self.functions) - 1))
        raise Unsupported(f"an argument of type {type(value).__name__}")

    def inside(self, kind: str, name: str) -> Any:
        if kind == "module":
            # Never the program's copy, which it may have changed.
            return __import__(name, fromlist=["_"]) if name.split(".")[0] in sys.stdlib_module_names else None
        if kind == "builtin":
            return getattr(builtins, name, None)
        return Remote(self, name)


def _copy_back(given: tuple[Any, ...], touched: list[Any]) -> None:
    """Lists, dicts and sets that the call changed in place, changed here too."""
    mutable: list[Any] = [item for item in given if isinstance(item, list | dict | set | bytearray)]
    for mine, theirs in zip(mutable, touched, strict=True):
        if type(theirs) is type(mine) and mine != theirs:
            mine.clear()
            mine.extend(theirs) if isinstance(mine, list | bytearray) else mine.update(theirs)


class Remote:
    """An object of the program."""

    __slots__ = ("_channel", "_name")

    def __init__(self, channel: Channel, name: str) -> None:
        object.__setattr__(self, "_channel", channel)
        object.__setattr__(self, "_name", name)

    def _ask(self, action: str, *args: Any) -> Any:
        return self._channel.ask(action, self, *args)

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._ask("call", args, named)

    def __getattr__(self, name: str) -> Any:
        return self._ask("get", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("set", name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._ask("item", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._ask("setitem", key, value)

    def __iter__(self) -> Any:
        items = self._ask("iter")
        while True:
            try:
                yield self._channel.ask("next", items)
            except StopIteration:
                return

    def __next__(self) -> Any:
        return self._ask("next")

    def __len__(self) -> int:
        return int(self._ask("len"))

    def __contains__(self, item: Any) -> bool:
        return self._ask("contains", item) is True

    def __bool__(self) -> bool:
        return self._ask("truth") is True

    def __str__(self) -> str:
        return str(self._ask("text"))

    def __repr__(self) -> str:
        return str(self._ask("repr"))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and (self._name == other._name or self._ask("equal", other) is True)

    def __lt__(self, other: object) -> bool:
        return self._ask("less", other) is True if isinstance(other, Remote) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._name)

    def __instancecheck__(self, thing: object) -> bool:
        return isinstance(thing, Remote) and self._channel.ask("isinstance", thing, self) is True


def rebuilt(kinds: list[str], text: str, line: int) -> BaseException:
    """The program's exception as the nearest builtin one, so that tests may expect it; says where it was raised."""
    for kind in kinds:
        known = getattr(builtins, kind, None)
        if isinstance(known, type) and issubclass(known, Exception):
            try:
                error = known(text)
            except TypeError:  # UnicodeDecodeError and its kind take more
                continue
            error.add_note(f"in the program, line {line}")
            return error
    return RuntimeError(f"{kinds[0]}: {text}")


def verdict(channel: Channel, tests: list[str], entry: str) -> dict[str, Any]:
    """Run the tests in order until one fails. `status`: ok, failed or error; `test`: the index of the failing one."""
    try:
        codes = [compile(test, f"test-{i}", "exec") for i, test in enumerate(tests)]
    except (SyntaxError, ValueError) as error:
        return {"status": "error", "reason": f"a test does not compile: {error}", "test": -1}
    try:
        first = channel.receive()
    except ProgramEnded:
        return {"status": "failed", "reason": "the program ended before its end", "test": -1, "gone": True}
    if first[0] == "raised":
        kinds, text, line = first[1:]
        return {"status": "failed", "reason": f"the program raised {kinds[0]}: {text} (line {line})", "test": -1}
    names = taken(first[1], codes, entry)
    space: dict[str, Any] = {"__name__": "tests", **names}
    for index, code in enumerate(codes):
        try:
            exec(code, space)  # noqa: S102 - the tests
        except Unsupported as error:
            return {"status": "error", "reason": f"test {index} cannot be run: {error}", "test": index}
        except ProgramEnded:
            return {"status": "failed", "reason": f"the program ended during test {index}", "test": index, "gone": True}
        except BaseException as error:
            return {"status": "failed", "reason": f"test {index}: {_told(error)}", "test": index}
    return {"status": "ok", "reason": f"{len(tests)} tests passed" if tests else "ran to its end", "test": -1}


def _told(error: BaseException) -> str:
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    return f"{type(error).__name__}: {str(error)[:300]}{notes}" if str(error) else f"{type(error).__name__}{notes}"


def taken(names: dict[str, Any], codes: list[Any], entry: str) -> dict[str, Any]:
    """The program's names that the tests see: all but builtins, since a program may not redefine `abs` for its tests.

    Some tasks ask for a function with the name of a builtin ("sum"). It is taken when it is the named entry, or when it
    is the only thing of the program that the tests mention.
    """
    used = set().union(*(_mentioned(code) for code in codes)) if codes else set()
    known = {name: value for name, value in names.items() if not hasattr(builtins, name)}
    shadows = {name for name in names if hasattr(builtins, name)}
    if entry in shadows:
        known[entry] = names[entry]
    elif not used & set(known) and len(used & shadows) == 1:
        (only,) = used & shadows
        known[only] = names[only]
    return known


def _mentioned(code: Any) -> set[str]:
    found = set(code.co_names)
    for constant in code.co_consts:
        if hasattr(constant, "co_names"):
            found |= _mentioned(constant)
    return found
