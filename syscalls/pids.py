"""Pids: numbers that each user of the machine counts for himself.

Within the kernel, and for the machine's operator, a process of another user than him has a pid that tells whose it is:
a mark, the uid, the number. People write it `1001:7`. To that user, and to his tenants, it is process 7; init and the
drivers have the same pids for all, which others do not get. To other users, where they may see them, the operator's
processes are those of uid 0: `0:7`.
"""

from __future__ import annotations

import re

MARK = 1 << 62  # of a pid that tells a uid
_BITS = 31  # of a uid, and of a number
MOST_UID = (1 << _BITS) - 1
MOST = (1 << _BITS) - 1  # the greatest number
FIRST = 100  # of every user but the operator; those below are left to init and the drivers

_WRITTEN = re.compile(r"(?:([0-9]{1,10}):)?([0-9]{1,19})")
_MARKED = re.compile(r"(?<![0-9])[4-9][0-9]{18}(?![0-9])")


def pid_of(uid: int, number: int) -> int:
    """The pid of a user's process; uid 0 stands for the operator."""
    return MARK | uid << _BITS | number if uid else number


def uid_of(pid: int) -> int:
    """Whose process it is; 0: the operator's, init or a driver."""
    return (pid ^ MARK) >> _BITS if pid >= MARK else 0


def number_of(pid: int) -> int:
    return pid & MOST if pid >= MARK else pid


def foreign(pid: int) -> int:
    """The same, with the operator's as others know them."""
    return pid if pid >= MARK or pid <= 0 else MARK | pid


def plain(pid: int) -> int:
    """The same, with the operator's as a number."""
    return number_of(pid) if not uid_of(pid) else pid


def shown(pid: int) -> str:
    """A pid as people read it: `7`, or `1001:7`."""
    return f"{uid_of(pid)}:{number_of(pid)}" if pid >= MARK else str(pid)


def parse(word: str) -> int | None:
    """The pid that somebody wrote; None: it is none."""
    found = _WRITTEN.fullmatch(word)
    if found is None:
        return None
    uid, number = int(found[1] or 0), int(found[2])
    if uid > MOST_UID or (found[1] and number > MOST):
        return None
    return pid_of(uid, number) if uid or not found[1] else MARK | number


def told(text: str, uid: int = 0) -> str:
    """A text with its pids as the user `uid` reads them (0: the operator): the numbers of his own, others with their
    uid."""

    def read(found: re.Match[str]) -> str:
        pid = int(found[0])
        if not MARK <= pid < MARK << 1:
            return found[0]
        return str(number_of(pid)) if uid_of(pid) == uid else shown(pid)

    return _MARKED.sub(read, text)
