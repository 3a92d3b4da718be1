"""The log of a process in memory: an array of 32-bit integers, 4 bytes a token.

A list takes 8 bytes for each token and an object of 32 more for most of them, which the collector of garbage does not
look into, but a copy does. Token ids fit an int32 (syscalls/limits.py, MAX_TOKEN). Where tokens leave in a record
(to a driver, a program, the journal) they become a list.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import TypeAlias

Log: TypeAlias = "array[int]"


def log_of(tokens: Iterable[int] = ()) -> Log:
    """A log of its own, of these tokens. Raises OverflowError: one of them is no token id."""
    return array("i", tokens)
