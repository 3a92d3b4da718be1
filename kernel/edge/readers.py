"""Users who may read some of the kernel's own files: what the operating system calls an access control list (acl(5)).

A file of the kernel is its user's alone (0600), and who else may read it is a list of user ids and not a group: there is
no group that has the operators whom a configuration names, and nobody else. The list is an attribute in the form that
Linux keeps for all file systems (posix_acl_xattr.h): a version, then rows of what, which rights, whom.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Collection
from contextlib import suppress
from typing import Final

READ, LIST, ENTER = 4, 5, 1  # a file; a directory and its names; a directory, for who knows the name
_ATTRIBUTE = "system.posix_acl_access"
_VERSION, _ROW = struct.pack("<I", 2), struct.Struct("<HHI")
_OWNER, _USER, _OWN_GROUP, _MASK, _OTHERS = 1, 2, 4, 0x10, 0x20
_NONE: Final = 0xFFFFFFFF  # whom a row that names nobody names


def allow(descriptor: int, uids: Collection[int], rights: int) -> None:
    """These users have these rights on an open file or directory; of others its owner alone has any. Raises OSError."""
    own = stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o700
    if not uids:
        os.fchmod(descriptor, own)  # the bits of the group, which are the mask while there is a list
        with suppress(OSError):  # there is none; then the mode says it all
            os.removexattr(descriptor, _ATTRIBUTE)
        return
    rows = [(_OWNER, own >> 6, _NONE), *((_USER, rights, uid) for uid in sorted(set(uids)))]
    rows += [(_OWN_GROUP, 0, _NONE), (_MASK, rights, _NONE), (_OTHERS, 0, _NONE)]
    os.setxattr(descriptor, _ATTRIBUTE, _VERSION + b"".join(_ROW.pack(*row) for row in rows))


def allow_at(place: str | os.PathLike[str], uids: Collection[int], rights: int) -> None:
    """The same for a file or directory of that name, which is no link. Raises OSError."""
    descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        allow(descriptor, uids, rights)
    finally:
        os.close(descriptor)


def let_pass(place: str | os.PathLike[str], uids: Collection[int]) -> None:
    """These users can enter a directory that is closed to all but the kernel's user. One that others can enter, or that
    is somebody else's, stays as it is. Raises OSError."""
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        about = os.fstat(descriptor)
        if about.st_uid == os.geteuid() and (not about.st_mode & 0o077 or _ours(descriptor)):
            allow(descriptor, uids, ENTER)
    finally:
        os.close(descriptor)


def _ours(descriptor: int) -> bool:
    """Whether the list of a directory is one that `let_pass` has made."""
    try:
        found = os.getxattr(descriptor, _ATTRIBUTE)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return False
        raise
    rows = list(_ROW.iter_unpack(found[len(_VERSION) :]))
    passing = [(what, rights) for what, rights, _ in rows if what not in (_OWNER, _MASK)]
    return all(row in ((_USER, ENTER), (_OWN_GROUP, 0), (_OTHERS, 0)) for row in passing)
