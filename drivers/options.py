"""Options of drivers: `KEY=VALUE` words read into one typed record.

A driver declares its options as a dataclass, a field an option with its default; `option` says how to read its text. An
unknown option, or a text that cannot be read, is refused by name, with what is allowed, as Linux's module parameters and
argparse do it. A driver begins nothing before all its options have been read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from llmasos.syscalls import size as sizes
from llmasos.syscalls.errno import Errno, SyscallError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
R = TypeVar("R", bound="DataclassInstance")
_FORM = "form"
_MOST_DIGITS = 9
_SUFFIXES = {
    "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12,
    "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Form(Generic[T]):
    """How the text of an option is read: `read` raises ValueError or SyscallError where it is not what was `wanted`. An
    empty text stands for the default, unless the form `takes_empty`."""

    wanted: str
    read: Callable[[str], T]
    takes_empty: bool = False


def number(least: int, most: int) -> Form[int]:
    def read(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS and least <= int(text) <= most):
            raise ValueError(text)
        return int(text)

    return Form(f"a number from {least} to {most}", read)


def one_of(*words: str) -> Form[str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(text)
        return text

    return Form(" or ".join(words), read)


def _yes(text: str) -> bool:
    return {"yes": True, "no": False}[text]


def _quantity(text: str) -> float:
    """A number with a suffix of `_SUFFIXES`, or without."""
    digits = text.strip().lower()
    suffix = next((s for s in sorted(_SUFFIXES, key=len, reverse=True) if digits.endswith(s)), "")
    value = float(digits.removesuffix(suffix)) * _SUFFIXES.get(suffix, 1)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _whole(text: str) -> int:
    value = _quantity(text)
    if value != int(value):
        raise ValueError(text)
    return int(value)


WORD = Form("a word", str)
YES_OR_NO = Form("yes or no", _yes)
SIZE = Form("a size such as 512MiB, 2G or 1000000", lambda text: sizes.size(text, "it"))
DIRECTORY = Form("a directory", Path)
REAL = Form("a number such as 512, 1.5e9 or 16g", _quantity)
WHOLE = Form("a whole number such as 512, 1.5e9 or 16g", _whole)
_BY_TYPE: dict[object, Form[Any]] = {"int": WHOLE, "float": REAL, "str": WORD}


def option(form: Form[T], default: T | Callable[[], T] | None) -> Any:
    """A field of a record of options; a default that is a function is called for each record. Fields that are declared
    without this are read by their type: int, float or str."""
    if callable(default):
        return dataclasses.field(default_factory=default, metadata={_FORM: form})
    return dataclasses.field(default=default, metadata={_FORM: form})


def no_option(default: object) -> Any:
    """A field of a record of options that is none."""
    return dataclasses.field(default=default, metadata={_FORM: None})


def forms(record: type[DataclassInstance]) -> dict[str, Form[Any]]:
    """The options of a record, by name."""
    declared = {field.name: field.metadata.get(_FORM, _BY_TYPE.get(field.type)) for field in dataclasses.fields(record)}
    return {name: form for name, form in declared.items() if form is not None}


def parse(record: type[R], texts: Mapping[str, str], who: str) -> R:
    """The options that `texts` name, the defaults for the others. Raises EINVAL; `who` is whose they are."""
    refuse_unknown(texts, who, record)
    return replace(record(), texts, who)


def refuse_unknown(texts: Mapping[str, str], who: str, *records: type[DataclassInstance]) -> None:
    """Raises EINVAL for an option that none of the records has."""
    known = [name for record in records for name in forms(record)]
    for name in texts:
        if name not in known:
            raise SyscallError(Errno.EINVAL, f"{who} has no option {name!r}; it has {', '.join(known)}")


def replace(record: R, texts: Mapping[str, str], who: str) -> R:
    """The record with other values for the options that `texts` name. Raises EINVAL."""
    known = forms(type(record))
    values: dict[str, Any] = {}
    for name, text in texts.items():
        form = known[name]
        if not text and not form.takes_empty:
            continue
        try:
            values[name] = form.read(text)
        except (ValueError, KeyError, OverflowError, SyscallError):
            raise SyscallError(Errno.EINVAL, f"{who}: {name}={text!r}: {form.wanted} was wanted") from None
    return dataclasses.replace(record, **values)
