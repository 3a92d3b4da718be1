"""Names of full blocks, so that contexts which start alike share frames (vLLM's and SGLang's prefix caching).

A block's name is the chain (parent's serial, its 16 tokens). The dictionary compares the tokens themselves, so a hash
collision can never map a wrong frame; serials are never reused, so a name whose parent was forgotten can never be
reached again by mistake. The chain's root is the owner's salt: contexts of different owners never share, which keeps one
from probing another's prompts by timing. KV that this kernel cannot vouch for hangs on a root of its own, which only the
process that brought it and its forks have. Contexts whose owners have both said so have a root in common.
"""

from __future__ import annotations

from collections.abc import KeysView
from dataclasses import dataclass

Tokens = bytes  # of a block: a token is an int32 of this machine's order, as in a log (kernel/tokens.py)
Parent = int | tuple[int, int]
COMMON = -1  # the salt of all owners' contexts that are to share prefixes: no owner has it


@dataclass(slots=True)
class _Name:
    serial: int
    parent: Parent
    tokens: Tokens
    frame: int


def root(salt: int, apart: int = 0) -> Parent:
    """The parent of a chain's first block, which no serial equals: that of an owner's contexts, or (`apart`) of one
    process's."""
    return salt, apart


class PrefixIndex:
    """Which frame holds the KV of a chain of blocks. A frame has at most one name, and a name exactly one frame."""

    def __init__(self) -> None:
        self._by_name: dict[tuple[Parent, Tokens], _Name] = {}
        self._by_frame: dict[int, _Name] = {}
        self._next = 0

    def __contains__(self, frame: int) -> bool:
        return frame in self._by_frame

    @property
    def frames(self) -> KeysView[int]:
        """Those that have a name."""
        return self._by_frame.keys()

    def find(self, parent: Parent, tokens: Tokens) -> tuple[int, int] | None:
        """(serial, frame) of the block with these tokens after `parent`, or None."""
        name = self._by_name.get((parent, tokens))
        return None if name is None else (name.serial, name.frame)

    def name(self, parent: Parent, tokens: Tokens, frame: int) -> int:
        """Name a frame whose block is full and computed; returns the serial for its children.

        If an equal block is named already, that one's serial is returned and `frame` stays nameless.
        """
        name = self._by_name.get((parent, tokens)) or self._by_frame.get(frame)
        if name is None:
            name = _Name(self._next, parent, tokens, frame)
            self._next += 1
            self._by_name[(parent, tokens)] = self._by_frame[frame] = name
        return name.serial

    def unname(self, frame: int) -> None:
        """Take the name of a frame away: it will be overwritten."""
        name = self._by_frame.pop(frame, None)
        if name is not None:
            del self._by_name[(name.parent, name.tokens)]

    def clear(self) -> None:
        self._by_name.clear()
        self._by_frame.clear()
