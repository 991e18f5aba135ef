"""Plain values as bytes, for a trusted and an untrusted process to talk.

Not pickle, which runs code, nor marshal, which may crash on bad bytes, nor json, which knows no tuples and costs its
import at every start. What is decoded is always a plain value: an object of the program's own class with its own `==`
cannot come through. A value that is not plain becomes a reference, made by `outside`.
"""

from __future__ import annotations

import builtins

TYPE_CHECKING = False  # `typing` would cost half of a start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_MANY: dict[type, bytes] = {list: b"l", tuple: b"t", set: b"S", frozenset: b"Z"}
# Immutable types of the standard library, with the arguments that make them again.
_MADE: dict[str, Callable[[Any], tuple[Any, ...]]] = {
    "decimal.Decimal": lambda v: (str(v),),
    "fractions.Fraction": lambda v: (int(v.numerator), int(v.denominator)),
    "datetime.date": lambda v: (v.year, v.month, v.day),
    "datetime.time": lambda v: (v.hour, v.minute, v.second, v.microsecond),
    "datetime.datetime": lambda v: (v.year, v.month, v.day, v.hour, v.minute, v.second, v.microsecond),
    "datetime.timedelta": lambda v: (v.days, v.seconds, v.microseconds),
    "collections.deque": lambda v: (list(v),),
}


def dumps(value: Any, outside: Callable[[Any], bytes]) -> bytes:
    """`outside` makes the bytes of what is not plain: `reference(...)`, or it raises TypeError."""
    out: list[bytes] = []
    _write(value, out.append, outside)
    return b"".join(out)


def is_builtin(value: Any) -> bool:
    """Whether it is `int`, `len` or their kind, which each side has for itself."""
    name = getattr(value, "__name__", None)
    return isinstance(name, str) and getattr(builtins, name, None) is value


def reference(kind: str, name: str) -> bytes:
    """A thing that stays where it is. `kind`: "object", "callback", "builtin" or "module"."""
    data = name.encode("utf-8", "surrogatepass")
    return b"R" + _text(kind.encode()) + _text(data)


def _text(data: bytes) -> bytes:
    return b"%d:%b" % (len(data), data)


def _write(value: Any, put: Callable[[bytes], None], outside: Callable[[Any], bytes]) -> None:
    kind = type(value)
    if value is None:
        put(b"N")
    elif kind is bool:
        put(b"T" if value else b"F")
    elif kind is int:
        put(b"i%d;" % value)
    elif kind is float:
        put(b"f%b;" % repr(value).encode())
    elif kind is complex:
        put(b"c%b;%b;" % (repr(value.real).encode(), repr(value.imag).encode()))
    elif kind is str:
        put(b"s" + _text(value.encode("utf-8", "surrogatepass")))
    elif kind is bytes or kind is bytearray:
        put((b"b" if kind is bytes else b"a") + _text(bytes(value)))
    elif kind is range:
        put(b"r%d;%d;%d;" % (value.start, value.stop, value.step))
    elif kind in _MANY:
        put(_MANY[kind] + b"%d:" % len(value))
        for item in value:
            _write(item, put, outside)
    elif kind is dict:
        put(b"d%d:" % len(value))
        for key, item in value.items():
            _write(key, put, outside)
            _write(item, put, outside)
    elif made := _MADE.get(f"{kind.__module__}.{kind.__qualname__}"):
        put(b"X" + _text(f"{kind.__module__}.{kind.__qualname__}".encode()))
        _write(made(value), put, outside)
    else:
        _write_subclass(value, put, outside)


def _write_subclass(value: Any, put: Callable[[bytes], None], outside: Callable[[Any], bytes]) -> None:
    """Subclasses of plain types (named tuples, counters, int enums) as what they extend; the rest by reference."""
    if isinstance(value, int):
        plain: Any = int.__add__(value, 0)
    elif isinstance(value, float):
        plain = float.__add__(value, 0.0)
    elif isinstance(value, str):
        plain = "".join(str.__iter__(value))
    elif isinstance(value, list | tuple | set | frozenset):
        base: Any = next(kind for kind in _MANY if isinstance(value, kind))
        plain = base(base.__iter__(value))
    elif isinstance(value, dict):
        plain = dict(dict.items(value))
    else:
        put(outside(value))
        return
    _write(plain, put, outside)


def loads(data: bytes, inside: Callable[[str, str], Any]) -> Any:
    """The value. `inside(kind, name)` resolves references. Raises ValueError on bytes that are no value."""
    try:
        value, end = _read(data, 0, inside)
    except (IndexError, KeyError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not a value: {error!r}") from None
    if end != len(data):
        raise ValueError("bytes after the value")
    return value


def _until(data: bytes, at: int, mark: bytes) -> tuple[bytes, int]:
    end = data.index(mark, at)
    return data[at:end], end + 1


def _chunk(data: bytes, at: int) -> tuple[bytes, int]:
    size, at = _until(data, at, b":")
    end = at + int(size)
    if end > len(data):
        raise ValueError("cut")
    return data[at:end], end


def _read(data: bytes, at: int, inside: Callable[[str, str], Any]) -> tuple[Any, int]:
    tag, at = data[at : at + 1], at + 1
    if tag in (b"N", b"T", b"F"):
        return {b"N": None, b"T": True, b"F": False}[tag], at
    if tag in (b"i", b"f"):
        text, at = _until(data, at, b";")
        return (int(text) if tag == b"i" else float(text)), at
    if tag == b"c":
        real, at = _until(data, at, b";")
        imag, at = _until(data, at, b";")
        return complex(float(real), float(imag)), at
    if tag in (b"s", b"b", b"a"):
        text, at = _chunk(data, at)
        return (text.decode("utf-8", "surrogatepass") if tag == b"s" else text if tag == b"b" else bytearray(text)), at
    if tag == b"r":
        parts = []
        for _ in range(3):
            text, at = _until(data, at, b";")
            parts.append(int(text))
        return range(*parts), at
    if tag == b"X":
        name, at = _chunk(data, at)
        args, at = _read(data, at, inside)
        return _make(name.decode(), args), at
    if tag == b"R":
        kind, at = _chunk(data, at)
        name, at = _chunk(data, at)
        return inside(kind.decode(), name.decode("utf-8", "surrogatepass")), at
    size, at = _until(data, at, b":")
    items = []
    for _ in range(int(size) * (2 if tag == b"d" else 1)):
        item, at = _read(data, at, inside)
        items.append(item)
    if tag == b"d":
        return dict(zip(items[::2], items[1::2])), at  # noqa: B905 - always even
    return {b"l": list, b"t": tuple, b"S": set, b"Z": frozenset}[tag](items), at


def _make(name: str, args: tuple[Any, ...]) -> Any:
    if name not in _MADE:
        raise ValueError(f"{name} is not a plain type")
    module, _, kind = name.rpartition(".")
    return getattr(__import__(module), kind)(*args)
