"""What `say`, `pieces`, `stream` and `follow` return: a generator that a notebook can show."""

from __future__ import annotations

from collections.abc import Generator
from types import TracebackType
from typing import Any, TypeVar

from llmasos.userland.sdk import notebook

Y = TypeVar("Y")


class TextStream(Generator[Y, None, None]):
    """A generator of pieces. As the last value of a notebook's cell, or passed to `display`, it shows its text while that
    comes, and is used up then."""

    def __init__(self, inner: Generator[Y, None, None], holds: object = None) -> None:
        """`holds`: what must not be dropped before the stream is, its process."""
        self._inner, self._holds = inner, holds

    def __next__(self) -> Y:
        return next(self._inner)

    def send(self, value: None) -> Y:
        return self._inner.send(value)

    def throw(self, kind: Any, value: Any = None, trace: TracebackType | None = None) -> Y:
        return self._inner.throw(value if value is not None else kind)

    def close(self) -> None:
        self._inner.close()

    def __repr__(self) -> str:
        return "<an answer, which begins when its first piece is asked for: `for piece in ...`>"

    def _ipython_display_(self) -> None:
        with notebook.Growing() as shown:
            for piece in self:
                shown.add(piece)
