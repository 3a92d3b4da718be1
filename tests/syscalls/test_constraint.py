"""The words for values out of range say what msgspec, which refuses them, takes: its verdict on the ends that they name
is asked."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import pytest

from llmasos.syscalls import constraint
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import Nice
from llmasos.syscalls.table import TABLE

_NUMBER = r"(-?[\d.]+(?:e[+-]?\d+)?)"


def declared() -> Iterator[tuple[str, Any]]:
    """Every number with a range in the arguments of the system calls, those in records too."""

    def within(place: str, annotation: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
            for field in msgspec.structs.fields(annotation):
                yield from within(f"{place}.{field.name}", field.type)
        elif any(meta.ge is not None or meta.gt is not None for meta in constraint.meta_of(annotation)):
            yield place, annotation

    for entry in TABLE.values():
        yield from within(entry.name, entry.record)


FIELDS = dict(declared())


def refused(value: object, annotation: Any) -> str | None:
    """What people read of this value; None: it is taken."""
    try:
        msgspec.convert(value, annotation)
    except msgspec.ValidationError as error:
        return constraint.sentence(str(error), annotation, value)
    return None


def test_there_are_many() -> None:
    assert len(FIELDS) > 40


@pytest.mark.parametrize("place", FIELDS)
def test_the_range_that_is_named_is_the_one_that_is_taken(place: str) -> None:
    annotation = FIELDS[place]
    seen = 0
    for value in (-(1 << 62), -1, -1.5, 0, 0.0, 1 << 62, 1e300, math.nan):
        said = refused(value, annotation)
        if said is None or said.startswith("wanted"):
            continue
        seen += 1
        low = re.search(rf"(from|more than) {_NUMBER}|^{_NUMBER} or more", said)
        high = re.search(rf"(to|less than|at most) {_NUMBER}", said)
        assert low or high, said
        assert f"found {value!r}" in said
        for end, kept in ((low, ("from", None)), (high, ("to", "at most"))):
            if end is not None:
                number = float(end[2] or end.group(end.lastindex or 0))
                edge = int(number) if number.is_integer() else number
                assert (refused(edge, annotation) is None) == (end[1] in kept), said
    assert seen


@pytest.mark.parametrize(
    ("annotation", "value", "said"),
    [
        (Nice, 99, "from -20 to 19, found 99"),
        (Annotated[float, msgspec.Meta(gt=0.0, le=1.0)], 0.0, "more than 0 and at most 1, found 0.0"),
        (Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)], 1.0, "from 0 and less than 1, found 1.0"),
        (Annotated[int, msgspec.Meta(ge=1)], 0, "1 or more, found 0"),
        (Annotated[int, msgspec.Meta(le=5)], 6, "at most 5, found 6"),
        (Annotated[str, msgspec.Meta(max_length=3)], "four", "at most 3 characters, found 4"),
        (Annotated[list[int], msgspec.Meta(min_length=1)], [], "at least 1 elements, found 0"),
        (int, "x", "wanted a whole number, found 'x'"),
        (int | None, "x", "wanted a whole number or None, found 'x'"),
        (Errno, 9999, "there is no 9999; there are OK (0), EPERM (1)"),
        (Annotated[bytes, msgspec.Meta(max_length=3)], b"secret", "at most 3 bytes, found 6"),
    ],
)
def test_the_words(annotation: Any, value: object, said: str) -> None:
    assert str(refused(value, annotation)).startswith(said)
