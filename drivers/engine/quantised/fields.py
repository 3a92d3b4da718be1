"""A configuration's fields, taken one by one with their types and bounds; a field that nobody has taken is refused by
name.

Everything here comes from a file of unknown origin: messages show its values by repr, in one line of bounded length.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from llmasos.modelfiles.files import broken, quoted
from llmasos.syscalls.errno import Errno, SyscallError


def unsupported(method: str, what: str, instead: str) -> SyscallError:
    """The error for a checkpoint that is sound as far as one can see, and not read here."""
    return SyscallError(Errno.ENOTSUP, f"weights quantised by {quoted(method)}: {what}; {instead}")


class Fields:
    """One JSON object. `where` says which, for messages."""

    def __init__(self, where: str, values: object) -> None:
        if not isinstance(values, Mapping):
            raise broken(f"{where} is {quoted(values)}, an object was wanted")
        self.where = where
        self._values: Mapping[str, Any] = values
        self._taken: set[str] = set()

    def has(self, name: str) -> bool:
        return self._values.get(name) is not None

    def raw(self, name: str) -> Any:
        """The value as JSON gives it, None where it is missing. The caller checks it."""
        self._taken.add(name)
        return self._values.get(name)

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int:
        value = self.raw(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.broken(name, value, f"a whole number from {low} to {high}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.raw(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.broken(name, value, "true or false")
        return value

    def word(self, name: str, default: str | None = None) -> str:
        value = self.raw(name)
        value = default if value is None else value
        if not isinstance(value, str):
            raise self.broken(name, value, "a string")
        return value

    def block(self, name: str) -> tuple[int, int] | None:
        """Two sizes, [rows, columns]; "128x128" is the same, as compressed-tensors once wrote it."""
        value = self.raw(name)
        if isinstance(value, str) and value.count("x") == 1 and len(value) < 20:
            value = [int(part) if part.isdecimal() else 0 for part in value.split("x")]
        if value is None:
            return None
        if (
            not isinstance(value, list)
            or len(value) != 2
            or not all(isinstance(size, int) and 0 < size <= 1 << 20 for size in value)
        ):
            raise self.broken(name, value, "two sizes of a block")
        return value[0], value[1]

    def broken(self, name: str, value: object, wanted: str) -> SyscallError:
        return broken(
            f"{self.where}: {name} is {quoted(value)}, {wanted} was wanted; download the model again",
        )

    def finish(self, method: str, harmless: Iterable[str] = ()) -> None:
        """Refuse fields that are set and that nobody has read: they may change the meaning of the weights. Raises
        ENOTSUP."""
        left = sorted(
            name
            for name, value in self._values.items()
            if name not in self._taken and name not in harmless and value not in (None, False, [], {}, "")
        )
        if left:
            raise unsupported(
                method,
                f"{self.where} sets {', '.join(quoted(name) for name in left[:4])}, whose meaning is not known",
                "take it out of the file if it says nothing about the weights, or use another quantisation",
            )
