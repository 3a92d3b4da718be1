"""What a value must be, in words: one place for the sentence that people read when a number is out of its range.

msgspec checks what arrives in system calls and says "Expected `int` <= 19"; people, in the shell as in the SDK, read
"from -20 to 19, found 99".
"""

from __future__ import annotations

import difflib
import enum
import math
import re
import typing
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "True or False",
    "bytes": "bytes",
    "null": "None",
    "array": "a list",
    "object": "a dictionary",
}
_PLAIN = re.compile(r"^Expected `([^`]+)`(?:, got `([^`]+)`)?$")
_RANGE = re.compile(r"^Expected `(?:int|float)` (<=|>=|<|>) ")
_LENGTH = re.compile(r"^Expected `(str|array|bytes|object)` of length (<=|>=) (\d+)")
_PATTERN = re.compile(r"^Expected `str` matching regex ")
_CHOICE = re.compile(r"^Invalid enum value (.+)$")


def span(low: float | None, high: float | None, *, above: bool = False, below: bool = False) -> str:
    """A range in words; `above`, `below`: its ends do not belong to it."""
    least = None if low is None else f"more than {_shown(low)}" if above else f"from {_shown(low)}"
    if high is None or math.isinf(high):
        return "any number" if least is None else least if above else f"{_shown(low or 0)} or more"
    most = f"less than {_shown(high)}" if below else f"to {_shown(high)}"
    if least is None:
        return most if below else f"at most {_shown(high)}"
    return f"{least} {most}" if not (above or below) else f"{least} and {most if below else f'at most {_shown(high)}'}"


def _shown(number: float) -> str:
    return f"{number:g}" if isinstance(number, float) and abs(number) < 1e15 else str(number)


def near(name: str, known: Iterable[str]) -> str:
    """` (is 'round_robin' meant?)` if one of the known names is near, else empty."""
    found = difflib.get_close_matches(name.lower(), list(known), 1)
    return f" (is {found[0]!r} meant?)" if found else ""


def meta_of(annotation: Any) -> Iterable[msgspec.Meta]:
    """The constraints in an annotation, those of its alternatives too."""
    if typing.get_origin(annotation) is Annotated:
        base, *more = typing.get_args(annotation)
        yield from (one for one in more if isinstance(one, msgspec.Meta))
        yield from meta_of(base)
    elif typing.get_origin(annotation) not in (list, dict):
        for inner in typing.get_args(annotation):
            yield from meta_of(inner)


def sentence(said: str, annotation: Any, found: Any) -> str:
    """msgspec's sentence about a value, without the place, as one for people. `annotation` is the declared type there,
    and `found` the value (Ellipsis: not known)."""
    here = "" if found is ... else f", found {_value(found)}"
    if _RANGE.match(said):
        low, high, above, below = None, None, False, False
        for meta in meta_of(annotation):
            low, above = (meta.gt, True) if meta.gt is not None else (meta.ge if meta.ge is not None else low, above)
            high, below = (meta.lt, True) if meta.lt is not None else (meta.le if meta.le is not None else high, below)
        return span(low, high, above=above, below=below) + here
    if match := _LENGTH.match(said):
        unit = {"str": "characters", "bytes": "bytes"}.get(match[1], "elements")
        size = f", found {len(found)}" if hasattr(found, "__len__") else ""
        return f"{'at most' if match[2] == '<=' else 'at least'} {match[3]} {unit}{size}"
    if _PATTERN.match(said):
        told = next((meta.description for meta in meta_of(annotation) if meta.description), None)
        return (told or "text without control characters") + here
    if match := _CHOICE.match(said):
        return f"there is no {match[1]}; there are {', '.join(_choices(annotation))}"
    if match := _PLAIN.match(said):
        wanted = " or ".join(_KINDS.get(kind.strip(), kind.strip()) for kind in match[1].split("|"))
        kind = _KINDS.get(match[2] or "", match[2] or "")
        return f"wanted {wanted}" + (here or (f", found {kind}" if kind else ""))
    return said


def _choices(annotation: Any) -> list[str]:
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return [f"{one.name} ({one.value})" if isinstance(one.value, int) else repr(one.value) for one in annotation]
    if typing.get_origin(annotation) is typing.Literal:
        return [repr(choice) for choice in typing.get_args(annotation)]
    return [choice for inner in typing.get_args(annotation) for choice in _choices(inner)]


def _value(found: Any) -> str:
    if isinstance(found, bytes):
        return f"{len(found)} bytes"  # secrets
    text = repr(found)
    return text if len(text) <= 60 else text[:57] + "..."
