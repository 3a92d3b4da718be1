"""The meter of a chat template: limits of the work and memory of a rendering.

The size of a value is that of its text, so that lists which contain one another grow in it as they would when printed. A
rendering pays for everything that it makes; a filter that makes much of little is checked before it runs, by what it
would make.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from jinja2.exceptions import TemplateError

SECONDS = 1.0  # of this thread's processor time
LARGEST = 16_000_000  # characters of one value
BUDGET = 256_000_000  # characters made in one rendering
WIDEST = 10_000  # width of padding, indenting or wrapping
_BITS = 100_000  # of an integer
NUMBER = re.compile(r"\d{5,}|\*")  # in a format: a width that is large, or given by an argument
_VIEWS: tuple[type[Any], ...] = (type({}.keys()), type({}.values()), type({}.items()))
# Filters and methods whose time is the square of their input (a sum of lists is one, too); that take long for each item;
# that look attributes up.
_QUADRATIC = frozenset({"striptags", "urlize", "xmlattr", "pprint", "wordwrap"})
_QUADRATIC_MOST = 20_000  # characters
_SLOW = frozenset(
    {
        "title", "wordcount", "urlencode", "truncate", "list", "batch", "slice", "sort", "unique", "groupby", "reverse",
    }
)  # fmt: skip
_SLOW_MOST = 500_000  # items, or characters of a text
_BY_ATTRIBUTE = frozenset({"map", "sum", "groupby", "sort", "unique", "min", "max", "join", "selectattr", "rejectattr"})
_REFUSED = frozenset({"translate"})  # may make anything of each character
# Codecs and ways with errors whose work and size are in proportion to the text. Punycode and IDNA take its square.
_CODECS = frozenset({"utf-8", "utf8", "ascii", "latin-1", "strict", "ignore", "replace"})


class Exceeded(TemplateError):
    """The template does too much."""


class Meter:
    """What a rendering may still do."""

    __slots__ = ("_events", "_known", "_spent", "_until")

    def __init__(self) -> None:
        self._spent = self._events = 0
        self._until = time.thread_time() + SECONDS
        self._known: dict[int, tuple[Any, int]] = {}  # containers by id, held so that no other gets the id

    def tick(self) -> None:
        self._events += 1
        if not self._events & 31 and time.thread_time() > self._until:
            raise Exceeded(f"it takes more than {SECONDS:g} s")

    def room(self, size: int) -> None:
        """Whether a value of this size may be made."""
        if size > LARGEST:
            raise Exceeded(f"it makes a value of {size} characters; at most {LARGEST} are allowed")

    def size(self, value: Any) -> int:
        """Approximate characters of a value's text."""
        if isinstance(value, str):
            return len(value)
        if isinstance(value, (list, tuple, dict)):
            known = self._known.get(id(value))
            if known is not None and known[0] is value:
                return known[1]
            size = 2
            if isinstance(value, dict):
                for key, item in value.items():
                    size += self.size(key) + self.size(item) + 2
            else:
                for item in value:
                    size += self.size(item) + 2
            self._known[id(value)] = (value, size)
            return size
        if isinstance(value, int):
            return 1 + value.bit_length() // 3
        if isinstance(value, (bytes, range)):
            return len(value)
        if isinstance(value, _VIEWS):
            return 2 + sum(self.size(item) for item in value)
        return 1

    def made(self, value: Any) -> Any:
        """Pay for a value that was just made."""
        self.tick()
        size = self.size(value)
        self.room(size)
        self._spent += size
        if self._spent > BUDGET:
            raise Exceeded(f"it makes more than {BUDGET} characters in all")
        return value

    def check(self, name: str, values: tuple[Any, ...], given: Mapping[str, Any]) -> None:
        """Refuse a filter or method that would do too much."""
        size = self.size
        everything = (*values, *given.values())
        self.room(sum(map(size, everything)))
        if name in _WIDE and any(isinstance(item, int) and abs(item) > WIDEST for item in everything):
            raise Exceeded(f"it calls {name} with a number larger than {WIDEST}")
        if name in _REFUSED:
            raise Exceeded(f"it calls {name}, which templates here cannot")
        if name in ("encode", "decode"):
            other = [item for item in everything[1:] if str(item).lower().replace("_", "-") not in _CODECS]
            if other:
                raise Exceeded(f"it calls {name} with {str(other[0])[:40]!r}; there are {', '.join(sorted(_CODECS))}")
        adds_lists = name == "sum" and any(isinstance(item, (list, tuple)) for item in everything[1:])
        if (adds_lists or name in _QUADRATIC) and sum(map(size, everything)) > _QUADRATIC_MOST:
            raise Exceeded(f"it calls {name} for more than {_QUADRATIC_MOST} characters")
        if name in _SLOW and values and hasattr(values[0], "__len__") and len(values[0]) > _SLOW_MOST:
            raise Exceeded(f"it calls {name} for more than {_SLOW_MOST} items")
        if name in _BY_ATTRIBUTE and any(isinstance(item, str) and len(item) > WIDEST for item in everything[1:]):
            raise Exceeded(f"it calls {name} with more than {WIDEST} characters")
        if name in ("format", "%") and values and isinstance(values[0], (str, bytes)):
            if NUMBER.search(str(values[0])):
                raise Exceeded(f"it formats with {str(values[0])[:40]!r}")
            named = [item for item in everything[1:] if isinstance(item, Mapping)]  # may be written more than once
            self.room(str(values[0]).count("%") * sum(map(size, named or given.values())))
        if name in _AMPLIFIERS:
            self.room(_AMPLIFIERS[name](size, values, given))

    @staticmethod
    def bits(bits: int) -> None:
        if bits > _BITS:
            raise Exceeded(f"it makes an integer of {bits} bits")


def _replaced(size: Callable[[Any], int], values: tuple[Any, ...], given: Mapping[str, Any]) -> int:
    text, old, new, *_ = (*values, given.get("old", ""), given.get("new", ""))
    text, old = str(text), str(old)
    return len(text) + (text.count(old) if old else len(text) + 1) * size(new)


def _joined(size: Callable[[Any], int], values: tuple[Any, ...], given: Mapping[str, Any]) -> int:
    items, separator, *_ = (*values, given.get("d", ""))
    return size(items) + len(items) * size(separator)


def _indented(size: Callable[[Any], int], values: tuple[Any, ...], given: Mapping[str, Any]) -> int:
    text = str(values[0]) if values else ""
    widths = [item if isinstance(item, int) else size(item) for item in (*values[1:], *given.values())]
    return size(text) + (text.count("\n") + 1) * max(widths, default=4)


def _tabbed(size: Callable[[Any], int], values: tuple[Any, ...], given: Mapping[str, Any]) -> int:
    return size(values[0]) * max([8, *(item for item in (*values[1:], *given.values()) if isinstance(item, int))])


def _dumped(size: Callable[[Any], int], values: tuple[Any, ...], given: Mapping[str, Any]) -> int:
    indent = given.get("indent") or (values[2] if len(values) > 2 else 0) or 0
    separators = given.get("separators") or (values[3] if len(values) > 3 else ()) or ()
    width = indent if isinstance(indent, int) else size(indent)
    return size(values[0]) * (1 + size(tuple(separators)) // 8) * (1 + width // 4) if values else 0


# Filters and methods that make much of little, and the largest size that they can make.
_AMPLIFIERS: dict[str, Callable[..., int]] = {
    "replace": _replaced,
    "join": _joined,
    ".join": lambda size, values, given: _joined(size, (values[1], values[0]), given),
    "indent": _indented,
    "expandtabs": _tabbed,
    "tojson": _dumped,
    "batch": lambda size, values, given: size(values[0]) + WIDEST * max(map(size, (*values[1:], *given.values()))),
}  # fmt: skip
_WIDE = frozenset(
    {
        "center",
        "ljust",
        "rjust",
        "zfill",
        "expandtabs",
        "indent",
        "wordwrap",
        "batch",
        "slice",
        "round",
        ".to_bytes",
    }
)
