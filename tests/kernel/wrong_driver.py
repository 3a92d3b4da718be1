"""A driver that answers wrongly: any message of its, with one field replaced by what cannot be, or at the wrong time.

The values are made of the records in drivers/protocol.py, by their fields' types, so a new field or message is covered by
itself. They are replaced in the encoded message, as a driver with a fault of its own would send it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import inspect

from llmasos.drivers import protocol
from llmasos.drivers.protocol import FromDriver, ToDriver
from llmasos.simulator.driver import Driver

MESSAGES: tuple[type[Any], ...] = FromDriver.__args__
HUGE, LONG = (1 << 63) - 1, "x" * 100_000
_FOREIGN: tuple[Any, ...] = (None, True, 7, -1, 1.5, "x", b"x", [], {}, [[]], {"x": 1}, [None], 1 << 63, math.nan)
_OF: dict[type[inspect.Type], tuple[Any, ...]] = {
    inspect.IntType: (-1, 0, 1, 2, 3, 1 << 31, HUGE, -HUGE, (1 << 64) - 1, -(1 << 63)),
    inspect.FloatType: (math.nan, math.inf, -math.inf, -1.0, -0.0, 1e-320, 1e9 + 1, 1e308, 2),
    inspect.StrType: ("", LONG, "\x1b]0;x\a\x00", "\U0010ffff"),
    inspect.BytesType: (b"", b"\0" * 100_000),
    inspect.BoolType: (True, False),
}


@dataclass(frozen=True)
class Wrong:
    """One way of being wrong: in `field` (a path; "" is the message itself), by `value`, of the right type or not."""

    message: str
    field: str
    value: Any
    body: list[Any]  # the message with it
    fits: bool = False  # it is of the field's type

    def __str__(self) -> str:
        return f"{self.message}.{self.field}={str(self.value)[:60]}"


def wrongs(message: FromDriver) -> Iterator[Wrong]:
    """All that a message may become."""
    name, right = type(message).__name__, _plain(message)
    kind = inspect.type_info(type(message))
    assert isinstance(kind, inspect.StructType)
    for index, each in enumerate(kind.fields, start=1):
        for path, value, fits in _values(each.type, right[index]):
            yield Wrong(name, each.name + path, value, [*right[:index], value, *right[index + 1 :]], fits)
        yield Wrong(name, each.name, "(left out)", right[:index])
        yield Wrong(name, each.name, "(twice)", [*right[:index], right[index], *right[index:]])
    yield Wrong(name, "", "(its name)", ["Nothing", *right[1:]])
    yield Wrong(name, "", "(nothing)", [])
    for other in MESSAGES:
        if other is not type(message):
            yield Wrong(name, "", other.__name__, [other.__name__, *right[1:]])
            yield Wrong(name, "", f"{other.__name__} with its ref", _plain(made(other, getattr(message, "ref", 1))))


def made(kind: type[Any], ref: int = 1) -> FromDriver:
    """A message of this kind as the decoder takes it, with `ref` if it has one."""
    message: FromDriver = msgspec.convert(_some(inspect.type_info(kind)), kind)
    return msgspec.structs.replace(message, ref=ref) if hasattr(message, "ref") else message


def _plain(message: Any) -> Any:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(message))


def _values(kind: inspect.Type, right: Any) -> Iterator[tuple[str, Any, bool]]:
    """Values for a field of this type, with the path within the field of what is wrong in them, and whether that is at
    least of the right type."""
    yield from (("", value, False) for value in _FOREIGN)
    match kind:
        case inspect.UnionType(types=types):
            for one in types:
                if not isinstance(one, inspect.NoneType):
                    yield from _values(one, right if right is not None else _some(one))
        case inspect.ListType(item_type=item):
            first = right[0] if right else _some(item)
            yield from (("", value, True) for value in ([], [*right, first], right[1:], right[::-1], [first] * 5000))
            yield from ((f"[]{path}", [value, *right[1:]], fits) for path, value, fits in _values(item, first))
        case inspect.DictType(value_type=item):
            yield "", {f"{number}": 0.0 for number in range(20_000)}, True
            yield from (
                (f"[]{path}", {**right, "model": value}, fits) for path, value, fits in _values(item, _some(item))
            )
        case inspect.StructType(fields=fields, array_like=True):
            for index, each in enumerate(fields, start=int(kind.tag is not None)):
                for path, value, fits in _values(each.type, right[index]):
                    yield f".{each.name}{path}", [*right[:index], value, *right[index + 1 :]], fits
        case inspect.StructType(fields=fields):
            for each in fields:
                for path, value, fits in _values(each.type, right.get(each.encode_name)):
                    yield f".{each.name}{path}", {**right, each.encode_name: value}, fits
        case inspect.EnumType(cls=values):
            yield from (("", value, True) for value in (*(one.value for one in values), 9, 200))
        case _:
            yield from (("", value, True) for value in _OF.get(type(kind), ()))


def _some(kind: inspect.Type) -> Any:
    """A value of this type, for where the right message has none."""
    match kind:
        case inspect.StructType(fields=fields, array_like=True):
            return [*([kind.tag] if kind.tag is not None else []), *(_some(each.type) for each in fields)]
        case inspect.StructType(fields=fields):
            return {each.encode_name: _some(each.type) for each in fields}
        case inspect.UnionType(types=types):
            return _some(types[0])
        case inspect.ListType(item_type=item):
            return [_some(item)]
        case inspect.FloatType():
            return 0.5
        case inspect.StrType(pattern=pattern):
            return next(text for text in ("x", "0" * 64) if re.search(pattern or "", text))
        case inspect.BytesType():
            return b"x"
        case inspect.BoolType():
            return False
        case inspect.DictType():
            return {}
    return 1


@dataclass
class Lie:
    """What drivers do instead of sending the `number`-th message of a kind, once."""

    message: str
    number: int
    bodies: list[bytes]  # sent in its place, one after the other
    twice: bool = False  # before these, the right one
    late: bool = False  # the right one too, after the next message
    told: bool = False
    refused: str = ""  # why the edge took it for no message
    heard: list[FromDriver] = field(default_factory=list)  # all messages that drivers sent, before it is told


class Liar(Driver):
    """A simulated driver that tells the lie of its simulation."""

    lie: Lie  # of the class, which a test makes for one simulation
    seen: dict[str, int]
    held: FromDriver | None = None

    def _deliver(self, message: FromDriver) -> None:
        name = type(message).__name__
        lie, spoken = self.lie, self.alive and not self.mute and not self.hung
        if not spoken or lie.told:
            super()._deliver(message)
            if (late := self.held) is not None:
                self.held = None
                super()._deliver(late)
            return
        self.seen[name] = self.seen.get(name, 0) + 1
        lie.heard.append(message)
        if name != lie.message or self.seen[name] != lie.number:
            super()._deliver(message)
            return
        lie.told = self.sim.checked = True
        if lie.twice:
            super()._deliver(message)
        if lie.late:
            self.held = message
        for body in lie.bodies:
            self._tell(body)

    def _tell(self, body: bytes) -> None:
        """As the edge does: what is no message costs the driver its life."""
        if not self.alive:
            return
        try:
            message = protocol.decode_from_driver(body)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            self.lie.refused = str(error)
            self.die(f"killed by the kernel: it sent what is no message: {error}")
        else:
            super()._deliver(message)

    def _check_faults(self, message: ToDriver) -> None:
        """What the kernel was made to believe is no fault of its own."""
        if not self.lie.told:
            super()._check_faults(message)
        self.device.faults.clear()


def liar(lie: Lie) -> type[Liar]:
    """The class of drivers of one simulation."""
    return type("Liar", (Liar,), {"lie": lie, "seen": {}})
