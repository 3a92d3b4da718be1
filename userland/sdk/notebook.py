"""How processes, tables and streams look in a notebook (Jupyter), by IPython's own protocol: objects say how they are
shown (`_repr_html_`, `_repr_mimebundle_`, `_ipython_display_`), and IPython is not imported unless it asks.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Generic, TypeVar

import msgspec

from llmasos.syscalls import blocking
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.printable import printable
from llmasos.syscalls.records import ProcessInfo
from llmasos.syscalls.table import Getinfo

R = TypeVar("R", bound=msgspec.Struct)
SHOWN_ROWS = 200
LOOK_SECONDS = 1.0  # a cell waits no longer for the state of a process


def cell(value: object) -> str:
    """A value as text for a cell."""
    if value is None or value == "":
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, msgspec.Struct):
        fields = ((field, getattr(value, field)) for field in value.__struct_fields__)
        return ", ".join(f"{name} {cell(found)}" for name, found in fields if found)
    if isinstance(value, dict):
        return ", ".join(f"{name} {cell(found)}" for name, found in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(cell, value))
    return printable(str(value), one_line=True)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """An HTML table. Everything in it is text, whatever it spells."""
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell(value))}</td>" for value in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


class Table(list[R], Generic[R]):
    """A list of records that a notebook shows as a table. Columns that are empty or alike in all of many rows are left
    out of the picture, not of the records."""

    def _told(self) -> list[str]:
        names = self[0].__struct_fields__
        return [name for name in names if any(cell(getattr(row, name)) not in ("", "0", "False") for row in self)]

    def _repr_html_(self) -> str:
        if not self:
            return "<i>nothing</i>"
        told = self._told()
        shown = table(told, ([getattr(row, name) for name in told] for row in self[:SHOWN_ROWS]))
        left = len(self) - SHOWN_ROWS
        return shown + (f"<i>and {left} more</i>" if left > 0 else "")


def row_now(kernel: Any, pid: int, found: ProcessInfo | None) -> list[tuple[str, object]]:
    """What a process does at this moment: names and values. A program under an event loop would have to wait for it; of
    that, what it has `found` last."""
    if not isinstance(kernel, blocking.Client):
        return _doing(found, f"{found.state} when last asked") if found is not None else []
    try:
        row = kernel(Getinfo(pid), timeout=LOOK_SECONDS)
    except SyscallError as error:
        return [("state", "has ended" if error.errno is Errno.ESRCH else f"unknown ({error.reason})")]
    return _doing(row, row.state)


def _doing(row: ProcessInfo, state: str) -> list[tuple[str, object]]:
    return [("name", row.name), ("state", state), ("tokens", f"{row.length} of {row.context}")]


def bundle(plain: str, pairs: Sequence[tuple[str, object]]) -> dict[str, str]:
    """A thing by its names and values, as the MIME types that a notebook chooses from."""
    return {"text/plain": plain, "text/html": table([name for name, _ in pairs], [[value for _, value in pairs]])}


def in_notebook() -> bool:
    """Whether IPython, which asks, shows things in a notebook and not on a terminal."""
    from IPython import get_ipython  # the caller of `_ipython_display_` has it

    return hasattr(get_ipython(), "kernel")


class Growing:
    """A place in a notebook whose text grows. Where IPython shows it on a terminal, the text is printed as it comes."""

    def __init__(self) -> None:
        from IPython import display as ipython

        self._text = ""
        self._thought = ""
        self._in_notebook = in_notebook()
        show: Any = ipython.display
        self._place = show(self._bundle(), raw=True, display_id=True) if self._in_notebook else None

    def __enter__(self) -> Growing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._place is None:
            print()

    def add(self, piece: Any) -> None:
        """Show one more piece: text, or a `Piece` (thoughts stand apart)."""
        text = piece if isinstance(piece, str) else piece.text
        if isinstance(piece, str) or piece.kind != "thought":
            self._text += text
        else:
            self._thought += text
        self._update(text)

    def fail(self, error: Exception) -> None:
        """Show that no more comes, and why."""
        said = f"\n[{error}]"
        self._text += said
        self._update(said)

    def _update(self, more: str) -> None:
        if self._place is not None:
            self._place.update(self._bundle(), raw=True)
        else:
            print(printable(more), end="", flush=True)

    def _bundle(self) -> dict[str, str]:
        style = "white-space: pre-wrap"
        thought = f'<details><summary>thought</summary><div style="{style}">{html.escape(self._thought)}</div></details>'
        body = f'<div style="{style}">{html.escape(self._text)}</div>'
        return {"text/plain": self._text, "text/html": (thought if self._thought else "") + body}
